"""The command `lwrn-fast info`."""

import argparse

from ..errors import as_user_error
from ..info import info
from .command import Command


def run(_: argparse.Namespace) -> int:
    """Print the table."""
    with as_user_error(str, ValueError):  # LWRN_FAST_BACKEND names no backend
        print(info())
    return 0


COMMAND = Command("info", "backends, versions, what is missing and why", lambda parser: None, run)
