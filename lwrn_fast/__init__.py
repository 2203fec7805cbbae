"""Fast CRP, fusion and upsample-argmax blocks for Light-Weight RefineNet and other PyTorch segmentation networks.

>>> import torch, lwrn_fast
>>> lwrn_fast.CRP(8, 8)(torch.rand(1, 8, 6, 7)).shape
torch.Size([1, 8, 6, 7])
"""

from . import ops, reference
from ._version import __version__
from .backends import explain, use_backend
from .crp import CRP, crp
from .fusion import Fusion, fusion
from .info import info
from .upsample_argmax import UpsampleArgmax, upsample_argmax
from .warmup import warmup

from . import models  # isort: skip  built from the blocks above
from . import export  # isort: skip  takes models

__all__ = [
    "CRP",
    "Fusion",
    "UpsampleArgmax",
    "__version__",
    "crp",
    "explain",
    "export",
    "fusion",
    "info",
    "models",
    "ops",
    "reference",
    "upsample_argmax",
    "use_backend",
    "warmup",
]
