"""Checks of the modules inside a fused block: a fused op may replace only plain ones.

A fused op reads the weights of a 1x1 convolution and never calls it. That is right only for a module of PyTorch's own
class whose call is its class's forward on its own attributes. Hooks, a forward of the instance (adapters, offloading),
other classes (LoRA, quantised or scripted layers) and compiled calls are honoured by calling the module as it is.
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.utils.parametrize import type_before_parametrizations

# Modules of PyTorch whose global hooks change nothing: they count operations by module.
OBSERVERS = ("torch.utils.module_tracker", "torch.distributed._tools.mod_tracker")
_FORWARDS: dict[Any, Any] = {module_class: module_class.forward for module_class in (nn.Conv2d, nn.MaxPool2d)}
_CONV_FORWARD = nn.Conv2d._conv_forward


def parameters(convs: Sequence[nn.Module], depthwise: bool = False) -> tuple[list[Tensor], list[Tensor]] | str:
    """Return weights and biases of 1x1 convolutions for the public functions, or why a fused op cannot replace them.

    depthwise: True to accept convolutions with one channel per group. Where some have a bias, the others get zeros.
    """
    reason = why_not_fused(convs)
    # Decide before any weight is read: reading a parametrised one may change its state.
    if reason is not None:
        return reason
    groups = cast(int, convs[0].groups)
    if groups != 1 and not (depthwise and groups == convs[0].in_channels):
        return f"a Conv2d inside the block has {groups} groups"
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    for conv in convs:
        if conv.groups != groups:
            return "the Conv2d inside the block differ in groups"
        weights.append(_own(conv, "weight"))
        biases.append(_own(conv, "bias"))
    if biases.count(None) == len(biases):
        return weights, []
    return weights, [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)]


def why_not_fused(convs: Sequence[nn.Module]) -> str | None:
    """Return the first reason why one of `convs` cannot be represented by its weight and bias."""
    reason = why_not_here()
    if reason is not None:
        return reason
    for conv in convs:
        reason = _why_not_1x1(conv)
        if reason is not None:
            return reason
    return None


def why_not_plain(module: nn.Module, module_class: type[nn.Module] = nn.Conv2d) -> str | None:
    """Return why a call of `module` may be more than `module_class.forward` on its attributes; None where it is not.

    A parametrised weight is a weight like any other: read it as an attribute, once per call.

    >>> from lwrn_fast.ops import conv_parameters
    >>> conv_parameters.why_not_plain(nn.Conv2d(3, 3, 1)), conv_parameters.why_not_plain(nn.Identity())
    (None, 'a module inside the block is an Identity, not a Conv2d')
    """
    return why_not_here() or _why_not_own(module, module_class)


def why_not_1x1(conv: nn.Module) -> str | None:
    """Return why `conv` is more than its weight (out, in / groups, 1, 1) and bias; None where it is not."""
    return why_not_here() or _why_not_1x1(conv)


def why_not_pool5x5(pool: nn.Module) -> str | None:
    """Return why `pool` is not the maximum of 5x5 windows at stride 1 with the same size; None where it is."""
    reason = _why_not_own(pool, nn.MaxPool2d)
    if reason is not None:
        return reason
    size = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    if size != (5, 1, 2, 1) and size != ((5, 5), (1, 1), (2, 2), (1, 1)):
        sizes = zip(size, (5, 1, 2, 1), strict=True)
        if any(given not in (number, (number, number), [number, number]) for given, number in sizes):
            return "the pooling inside the block is not 5x5 with stride 1 and padding 2"
    return "the pooling inside the block returns indices" if pool.return_indices else None


def has_hooks(module: nn.Module) -> bool:
    """Return whether the module has hooks of its own."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks)


def why_not_here() -> str | None:
    """Return why no module may be replaced in this process now: hooks or patches of all modules; None without them."""
    if nn_module._has_any_global_hook() and not _only_observed():
        return "there are hooks for all modules"
    if (
        nn.Conv2d.forward is not _FORWARDS[nn.Conv2d]
        or nn.Conv2d._conv_forward is not _CONV_FORWARD
        or nn.MaxPool2d.forward is not _FORWARDS[nn.MaxPool2d]
    ):
        return "PyTorch's own modules are patched"
    return None


def _why_not_1x1(conv: nn.Module) -> str | None:
    reason = _why_not_own(conv, nn.Conv2d)
    if reason is not None:
        return reason
    if conv.kernel_size != (1, 1) or conv.stride != (1, 1) or conv.padding != (0, 0) or conv.padding_mode != "zeros":
        padded = conv.padding not in ((0, 0), 0, "same", "valid") or conv.padding_mode != "zeros"
        if padded or conv.kernel_size not in ((1, 1), 1) or conv.stride not in ((1, 1), 1):
            return "a Conv2d inside the block is not a 1x1 convolution of stride 1 without padding"
    return None


def _why_not_own(module: nn.Module, module_class: type[nn.Module]) -> str | None:
    """Return the reason of `why_not_plain` that lies in the module itself; None without one."""
    if type(module) is not module_class:
        actual = type_before_parametrizations(module)
        if actual is not module_class:
            article = "an" if actual.__name__[0] in "AEIOU" else "a"
            return f"a module inside the block is {article} {actual.__name__}, not a {module_class.__name__}"
    own = module.__dict__
    # The same as has_hooks, in a third of its time.
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return f"a {module_class.__name__} inside the block has hooks"
    if "forward" in own or "_conv_forward" in own or "_call_impl" in own:
        return f"a {module_class.__name__} inside the block has a forward of its own instance"
    if "_compiled_call_impl" in own and own["_compiled_call_impl"] is not None:
        return f"a {module_class.__name__} inside the block is compiled"
    return None


def _own(conv: nn.Module, name: str) -> Any:
    """Return the module's attribute, without nn.Module.__getattr__ where it is a parameter."""
    parameters = conv._parameters
    if name in parameters and name not in conv.__dict__:
        return parameters[name]
    return getattr(conv, name)


def _only_observed() -> bool:
    passes = ("forward", "forward_pre", "backward", "backward_pre")
    hooks = [hook for name in passes for hook in getattr(nn_module, f"_global_{name}_hooks").values()]
    return all(type(getattr(hook, "__self__", None)).__module__ in OBSERVERS for hook in hooks)
