"""The base class of all models: an encoder and a decoder in one module."""

from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from .decoder import LevelDecoder
from .loaded import Loaded


class Network(LevelDecoder):
    """An encoder and a decoder in one module, so that every name stands at the top of the state dict.

    Logits are (N, num_classes, ceil(H / 4), ceil(W / 4)) for an image (N, 3, H, W) as `preprocess` gives it; hand
    them to `lwrn_fast.upsample_argmax(logits, (H, W))` for the label map.
    """

    name: str
    num_classes: int
    # The record of what `load` took from a file; None for a model that is not from one.
    loaded: Loaded | None = None
    # Memory format that the input is converted to and the encoder keeps. May be set at any time.
    memory_format = torch.channels_last

    @property
    def plain(self) -> bool:  # type: ignore[override]  # follows memory_format
        return self.memory_format == torch.contiguous_format

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's feature maps of an image, finest first; a subclass implements it."""
        raise TypeError(f"{type(self).__name__} has no encoder")

    def forward(self, x: Tensor) -> Tensor:
        """Map a normalised image (N, 3, H, W) to logits (N, num_classes, ceil(H / 4), ceil(W / 4))."""
        # torch.fx passes proxies, and torch.jit.trace would warn about the comparison
        checked = isinstance(x, Tensor) and checks.tracing_state() is None
        if checked and (x.dim() != 4 or x.shape[1] != 3):
            raise ValueError(f"{self.name}: x must be (N, 3, H, W), got {tuple(x.shape)}")
        if not torch._C._are_functorch_transforms_active():  # torch.vmap knows no memory formats
            x = x.contiguous(memory_format=self.memory_format)
        return self.decode(self.features(x))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the name of the memory format, which torch.save cannot pickle itself."""
        return {**super().__getstate__(), "memory_format": str(self.memory_format)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        name = str(state["memory_format"]).removeprefix("torch.")
        super().__setstate__({**state, "memory_format": getattr(torch, name)})

    def _configure(self, name: str, num_classes: int, memory_format: torch.memory_format) -> None:
        num_classes = checks.integer(name, "num_classes", num_classes)
        if num_classes < 1:
            raise ValueError(f"{name}: num_classes must be at least 1, got {num_classes}")
        self.name, self.num_classes, self.memory_format = name, num_classes, memory_format
