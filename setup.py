"""Adds the C++ part to the build that pyproject.toml describes; build_tools/native.py compiles it."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from build_tools import native


class BuildExt(build_ext):
    """Hands both extensions to ninja."""

    def get_ext_filename(self, fullname: str) -> str:
        name = super().get_ext_filename(fullname)
        # _ops holds no Python symbol, so its name carries no Python version.
        return str(Path(name).with_name("_ops.so")) if fullname.split(".")[-1] == "_ops" else name

    def build_extensions(self) -> None:
        places = {name: Path(self.get_ext_fullpath(f"lwrn_fast.{name}")) for name in ("_ops", "_C")}
        native.build(self.distribution.get_version(), places)


class BuildPy(build_py):
    """Starts from an empty folder, so that a file deleted from the sources is not shipped from an earlier build."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


def extensions() -> list[Extension]:
    if not native.wanted():
        native.say("building the pure-Python package, without the C++ part")
        return []
    sources = [str(path.relative_to(native.ROOT)) for path in sorted((native.ROOT / "csrc").rglob("*.cpp"))]
    module = [source for source in sources if source.endswith("module.cpp")]
    return [
        Extension("lwrn_fast._ops", [source for source in sources if source not in module]),
        Extension("lwrn_fast._C", module),
    ]


setup(
    packages=[*find_packages(include=["lwrn_fast", "lwrn_fast.*"]), "lwrn_fast.kernels"],
    package_dir={"lwrn_fast.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
)
