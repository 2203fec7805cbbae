"""Fast CRP, fusion and upsample-argmax blocks for Light-Weight RefineNet and other PyTorch segmentation models.

>>> import torch, lwrn_fast
>>> lwrn_fast.CRP(8, 8)(torch.rand(1, 8, 6, 7)).shape
torch.Size([1, 8, 6, 7])
"""

import importlib
import warnings
from types import ModuleType

import torch

from . import ops
from ._version import __version__
from .backends import use_backend
from .info import info
from .ops import explain, reference
from .ops.crp import CRP, crp
from .ops.fusion import Fusion, fusion
from .ops.normalise import normalise
from .ops.upsample_argmax import UpsampleArgmax, upsample_argmax
from .warmup import warmup

from . import models  # isort: skip  built from the blocks above
from .accelerate import accelerate, restore  # isort: skip
from .rewrite.report import Report  # isort: skip
from .optimize import optimize  # isort: skip
from .inference.segmenter import Segmenter  # isort: skip
from . import export  # isort: skip  takes models

# torch.fx.symbolic_trace makes one node of each call.
for _name in ("crp", "fusion", "upsample_argmax"):
    torch.fx.wrap(_name)

# Modules that were at the top of the package until 0.1, by their old names.
_MOVED = {
    **{name: f"ops.{name}" for name in ("autocast", "checks", "flops")},
    **{name: f"inference.{name}" for name in ("folders", "manifest", "segment", "segmenter", "video")},
    **{name: f"io.{name}" for name in ("decoding", "formats", "images", "repair", "video_files", "window")},
    **{"children": "ops.conv_parameters", "files": "io.atomic", "outputs": "models.outputs"},
}


def __getattr__(name: str) -> ModuleType:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    moved = f"{__name__}.{_MOVED[name]}"
    warnings.warn(f"{__name__}.{name} is {moved} now", DeprecationWarning, stacklevel=2)
    return importlib.import_module(moved)


__all__ = [
    "CRP",
    "Fusion",
    "Report",
    "Segmenter",
    "UpsampleArgmax",
    "__version__",
    "accelerate",
    "crp",
    "explain",
    "export",
    "fusion",
    "info",
    "models",
    "normalise",
    "ops",
    "optimize",
    "reference",
    "restore",
    "upsample_argmax",
    "use_backend",
    "warmup",
]
