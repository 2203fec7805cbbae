"""`cd tests && python -m support.entrances` prints the table."""

from support.entrances import main

raise SystemExit(main())
