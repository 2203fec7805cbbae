"""The backend "lwrn_fast" of torch.compile, where PyTorch's entry point looks for it."""

from .rewrite.compiling import backend

__all__ = ["backend"]
