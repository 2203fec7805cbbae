"""Weights that are stored in parts, which weight_norm, spectral_norm and pruning combine before every forward."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .entries import Entry


class _Form(NamedTuple):
    """The ends of the parts' names, the end of the whole weight's name, and the function that combines the parts.

    The whole takes the first part's position in the order.
    """

    ends: tuple[str, ...]
    whole: str
    make: Callable[..., Tensor]


def _weight_norm(direction: Tensor, length: Tensor) -> Tensor:
    """Return direction (out, ...) times length (out, 1, ...) (Salimans and Kingma, equation 2)."""
    axes = [i for i in range(direction.dim()) if length.dim() == 0 or length.shape[i] == 1]
    return direction * (length / torch.linalg.vector_norm(direction, dim=axes, keepdim=True))


def _spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Divide the weight by its largest singular value, as the last training step estimated it (Miyato et al.,
    section 2)."""
    return weight / torch.dot(u, weight.flatten(1) @ v)


# Known forms of weights in parts.
FORMS = (
    _Form(("weight_v", "weight_g"), "weight", _weight_norm),
    _Form(("parametrizations.weight.original1", "parametrizations.weight.original0"), "weight", _weight_norm),
    _Form(("weight_orig", "weight_u", "weight_v"), "weight", _spectral_norm),
    _Form(
        ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"),
        "weight",
        _spectral_norm,
    ),
    _Form(("weight_orig", "weight_mask"), "weight", torch.mul),
    _Form(("bias_orig", "bias_mask"), "bias", torch.mul),
)


def whole(entries: list[Entry]) -> list[Entry]:
    """Return the entries with every weight in one piece, computed in float64; unknown forms are kept unchanged."""
    by_name = {entry.full: entry for entry in entries}
    for entry in entries:
        for form in FORMS:
            base = entry.full.removesuffix(form.ends[0])
            parts = [by_name.get(base + end) for end in form.ends]
            if base == entry.full or not (base == "" or base.endswith(".")) or base + form.whole in by_name:
                continue
            made = _make(form, [part.tensor for part in parts if part is not None])
            if made is None:
                continue
            by_name[base + form.whole] = Entry(entry.location, entry.name.removesuffix(form.ends[0]) + form.whole, made)
            for end in form.ends:
                by_name.pop(base + end)
            break
    return list(by_name.values())


def _make(form: _Form, parts: list[Tensor]) -> Tensor | None:
    if len(parts) != len(form.ends) or not all(part.is_floating_point() and _is_stored(part) for part in parts):
        return None
    try:
        made = form.make(*(part.double() for part in parts))
    except (RuntimeError, IndexError, ValueError):  # the shapes do not match
        return None
    return made.to(parts[0].dtype) if made.shape == parts[0].shape else None


def _is_stored(tensor: Tensor) -> bool:
    """Return False for a tensor that claims more elements than the file has, which a computation would allocate."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
