"""The ops, one file each: function, module, argument checks, gradients, registration with PyTorch's dispatcher.

`torch.ops.lwrn_fast.crp` and the other operators return new memory: maps channels-last, labels contiguous.
"""

from ..backends import ALL, Call, Op
from . import crp, fusion, normalise, package_input, upsample_argmax

# The ops that have a public function, with the backends that have a kernel of each. A new op is added here.
OPS: dict[str, Op] = {module.OP.name: module.OP for module in (crp, fusion, upsample_argmax, normalise)}


def explain(op: str, *args: object, **kwargs: object) -> dict[str, str]:
    """Return for each backend "ready", or why it cannot run a call of the op of this name with these arguments.

    Raises the errors of the call itself for invalid arguments.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.explain("upsample_argmax", torch.zeros(1, 2, 3, 3), 6)["reference"]
    'ready'
    """
    if op not in OPS:
        raise ValueError(f"explain: op must be one of {', '.join(OPS)}, got {op!r}")
    call = Call(OPS[op], OPS[op].check(*args, **kwargs))
    return {backend.name: backend.why_not(call) or "ready" for backend in ALL}


__all__ = ["OPS", "crp", "explain", "fusion", "normalise", "package_input", "upsample_argmax"]
