"""The build looks for the torch of the environment that it installs into."""

import os
import sys
import venv

import pytest

from support.building import ROOT, run


@pytest.mark.parametrize("where", ["activated", "conda", "above_the_sources"])
def test_finds_the_torch_of_an_environment_that_uv_installs_into(tmp_path, where):
    """uv shows the build its own isolated environment as interpreter and as VIRTUAL_ENV."""
    isolated, target, sources = tmp_path / "isolated", tmp_path / "sources" / ".venv", tmp_path / "sources" / "package"
    if where != "above_the_sources":
        target = tmp_path / "target"
    sources.mkdir(parents=True)
    for folder in (isolated, target):
        venv.create(folder)
    (packages,) = target.glob("lib/python*/site-packages")
    (packages / "torch").mkdir()
    (packages / "torch" / "__init__.py").touch()
    (packages / "torch" / "version.py").write_text("__version__ = '2.12.1+cpu'\n")
    path = [isolated / "bin", *([target / "bin"] if where == "activated" else []), "/usr/bin"]
    uv = {"UV": "uv", "VIRTUAL_ENV": str(isolated), "PATH": os.pathsep.join(map(str, path))}
    uv["CONDA_PREFIX"] = str(target) if where == "conda" else ""
    if where == "conda":
        (target / "conda-meta").mkdir()
    ask = f"import sys; sys.path.append({str(ROOT)!r}); from build_tools.torch_headers import *; print(find_torch())"
    answer = run(isolated / "bin" / "python", "-c", ask, cwd=sources, **uv)
    assert "version='2.12.1+cpu'" in answer
    without = run(isolated / "bin" / "python", "-c", ask, cwd=tmp_path, VIRTUAL_ENV=str(isolated), PATH="/usr/bin")
    assert without.strip() == "None"


def test_old_torch_is_asked_to_be_replaced(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.9.1+cpu'\ndebug = False\n")
    ask = "from build_tools import native; print(native.requirements())"
    both = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert run(sys.executable, "-c", ask, cwd=tmp_path, PYTHONPATH=both).strip() == "['torch>=2.10']"
