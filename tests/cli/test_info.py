"""The command `lwrn-fast info`."""

import subprocess

from support.commands import COMMAND


def test_info():
    outcome = subprocess.run([*COMMAND, "info"], capture_output=True, text=True, timeout=300, check=True)
    assert outcome.stderr == ""
    for name in ("version", "torch", "backends.reference", "backends.cpu", "backends.triton"):
        assert f"\n{name} " in "\n" + outcome.stdout
