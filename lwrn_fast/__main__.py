"""`python -m lwrn_fast` is `lwrn-fast`."""

import sys

from .cli import main

sys.exit(main())
