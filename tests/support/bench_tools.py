"""The one way by which tests of bench/ load its modules."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

BENCH = Path(__file__).parents[2] / "bench"


def load(name: str) -> ModuleType:
    """Import a module of bench/ by its path there without the suffix, for example "gpu/tune".

    Its folder joins sys.path, where its own imports look for the files beside it.
    """
    folder, stem = (BENCH / name).parent, (BENCH / name).stem
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.import_module(stem)
