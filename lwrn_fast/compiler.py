"""The backend "lwrn_fast" of torch.compile, at the path that the package's entry point names."""

from .rewrite.compiling import backend

__all__ = ["backend"]
