"""The ops, a file each: function, module, what PyTorch's dispatcher knows of it, and the same in plain PyTorch."""

from . import library  # registers them

__all__ = ["library"]
