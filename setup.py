"""Adds the C++ part to the build that pyproject.toml describes; build_tools/ compiles it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from build_tools import cuda, native
from build_tools.messages import say


class BuildExt(build_ext):
    """Hands all extensions to ninja."""

    def get_ext_filename(self, fullname: str) -> str:
        name = super().get_ext_filename(fullname)
        stem = fullname.split(".")[-1]
        # A library without Python symbols carries no Python version in its name.
        return str(Path(name).with_name(f"{stem}.so")) if stem in ("_ops", "_ops_cuda") else name

    def build_extensions(self) -> None:
        places = {e.name.split(".")[-1]: Path(self.get_ext_fullpath(e.name)) for e in self.extensions}
        built = native.build(self.distribution.get_version(), places)
        self.extensions = [e for e in self.extensions if e.name.split(".")[-1] in built]


class BuildPy(build_py):
    """Starts from an empty folder, so that a file deleted from the sources is not shipped from an earlier build."""

    def run(self) -> None:
        logging.root.setLevel(logging.WARNING)  # hundreds of lines of copying would bury a compiler's error
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


def extensions() -> list[Extension]:
    if not native.wanted():
        say("building the pure-Python package, without the C++ part")
        return []
    once, per_set = native.sources()
    found = [
        Extension("lwrn_fast._ops", [*once, *per_set]),
        Extension("lwrn_fast._C", ["csrc/module.cpp"]),
    ]
    if isinstance(cuda.find(), cuda.Cuda):
        found.append(Extension("lwrn_fast._ops_cuda", ["csrc/cuda/ops_cuda.cpp"]))
    return found


setup(
    packages=[*find_packages(include=["lwrn_fast", "lwrn_fast.*"]), "lwrn_fast.kernels"],
    package_dir={"lwrn_fast.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
)
