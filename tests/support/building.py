"""Environments and commands for the tests that build and install the package."""

import os
import re
import subprocess
import venv
from pathlib import Path

import pytest
import torch

from lwrn_fast.backends import native

ROOT = Path(__file__).resolve().parents[2]
SITE_PACKAGES = Path(torch.__file__).resolve().parent.parent
# The CUDA architectures of the package under test.
ARCHITECTURES = native.extension().build_info()["cuda_architectures"] if native.extension() is not None else []
needs_cuda = pytest.mark.skipif(not ARCHITECTURES, reason="the package under test is built without CUDA")


def environment(**changes):
    """Return the variables of this process without those that steer a build, make or pytest, and with `changes`.

    A build has the CUDA part that the package under test has, whose objects are used again, or none.
    """
    steering = ("PYTHONPATH", "CXX", "CXXFLAGS", "LDFLAGS", "VIRTUAL_ENV", "MAKEFLAGS", "ARGS")
    kept = {k: v for k, v in os.environ.items() if k not in steering and not k.startswith(("LWRN_FAST", "PYTEST_"))}
    cuda = {"LWRN_FAST_CUDA_ARCHS": ";".join(ARCHITECTURES)} if ARCHITECTURES else {"LWRN_FAST_CUDA": "0"}
    return {**kept, **cuda, **changes}


def run(*command, cwd, **changes):
    """Return the output of a command on both streams; it must succeed."""
    done = subprocess.run(command, cwd=cwd, env=environment(**changes), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def make_environment(folder, pip, elsewhere=None):
    """Make a virtual environment with that pip and all of this one except this package; return its python.

    The packages lie in site-packages, or elsewhere, in a folder that a .pth file names.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-U", pip, cwd=folder)
    (own,) = folder.glob("lib/python*/site-packages")
    visible = elsewhere or own
    if elsewhere:
        (own / "visible.pth").write_text(f"{visible}\n")
    for entry in SITE_PACKAGES.iterdir():
        other = not re.match(r"pip\b|lwrn_fast|__|_distutils_hack|setuptools", entry.name) and entry.suffix != ".pth"
        if other and not (visible / entry.name).exists():
            (visible / entry.name).symlink_to(entry)
    return python
