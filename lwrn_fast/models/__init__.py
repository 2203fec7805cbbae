"""Light-Weight RefineNets, the original RefineNets, a decoder for any encoder, checkpoints and preprocessing.

>>> from lwrn_fast import models
>>> model = models.rf_lw_mbv2(num_classes=21).eval()
"""

from ..io.palette import PALETTE
from .checkpoint import SHAPES, CheckpointError, Loaded, Untrained, load
from .decoder import Decoder
from .multi_task import rf_lw_mbv2_multi_task
from .networks import NETWORKS, rf50, rf101, rf152, rf_lw50, rf_lw101, rf_lw152, rf_lw_mbv2, rf_lw_nasnet_mobile
from .preprocessing import MEAN, STD, preprocess
from .voc import CLASSES

__all__ = [
    "CLASSES",
    "MEAN",
    "NETWORKS",
    "PALETTE",
    "SHAPES",
    "STD",
    "Untrained",
    "CheckpointError",
    "Decoder",
    "Loaded",
    "load",
    "preprocess",
    "rf50",
    "rf101",
    "rf152",
    "rf_lw50",
    "rf_lw101",
    "rf_lw152",
    "rf_lw_mbv2",
    "rf_lw_mbv2_multi_task",
    "rf_lw_nasnet_mobile",
]
