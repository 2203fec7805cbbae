"""Golden outputs, state-dict names and images from a folder next to the repository, which is no part of it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


def shared(name: str) -> Path:
    """Return the path of a shared file or folder; skip the test where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"../shared/{name} is not beside this repository")
    return path


def golden_weights() -> ModuleType:
    """Import shared/golden/weights.py: `fill(module)` and `image(shape, seed)`."""
    spec = importlib.util.spec_from_file_location("golden_weights", shared("golden/weights.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
