"""Memory formats of a rewritten graph: nodes that depend on strides see those of the model's own operations.

Our ops return channels-last memory. Values do not depend on it, and most operations only hand it on. Before a node that
may depend on strides, and before the graph's results, the format of the example which Dynamo has left is restored.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from . import running
from .effects import Effects, _nodes, arguments_of, value_of


def keep(graph: Graph, effects: Effects, new_nodes: set[Node]) -> None:
    """Restore the original memory format of the values derived from `new_nodes` where anything depends on strides."""
    derived: set[Node] = set()
    early: dict[Node, None] = {}  # formatted where they are made, for all users
    late: dict[Node, None] = {}  # for the graph's results alone
    for node in graph.nodes:
        sources = [source for source in node.all_input_nodes if source in derived]
        if node.op == "output":
            for source in sources:
                root = effects.members(source)[0]
                shared = sum(member in node.all_input_nodes for member in effects.members(source)) > 1
                alone = not shared and _order(source) is not None and _is_dense(source)
                late.update({source: None} if alone else {})
                early.update({} if alone else {root: None})
            continue
        if node in new_nodes or sources:
            derived.add(node)
        if sources and _depends_on_strides(node, effects):
            early.update({effects.members(source)[0]: None for source in sources})
    for node in early:
        if node in derived:
            _format(graph, node, list(node.users))
    for node in late:
        if node not in early:
            _format(graph, node, [user for user in node.users if user.op == "output"])


def to_channels_last(graph: Graph, effects: Effects) -> set[Node]:
    """Bring the graph's input maps (N, C, H, W) into channels-last memory and return the nodes that do so."""
    new_nodes: set[Node] = set()
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        value = value_of(node)
        is_map = isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()
        if not is_map or not _has_order(value, (0, 1, 2, 3)) or _has_order(value, (0, 2, 3, 1)) or effects.writes(node):
            continue
        users = [user for user in node.users if _may_take_copy(node, user, effects)]
        if all(_is_ours(user) for user in users):  # our ops read any strides, and copy in less time
            continue
        with graph.inserting_after(node):
            new = graph.call_function(running.run_format, (node, (0, 2, 3, 1)))
        new.meta = dict(node.meta)
        for user in users:
            user.replace_input_with(node, new)
        new_nodes.add(new)
    return new_nodes


def _may_take_copy(node: Node, user: Node, effects: Effects) -> bool:
    """Return whether a user of a map may be given a copy.

    A view may not, as others write to its base; nor may a user that takes the map behind the first argument, as a
    convolution does its weights.
    """
    is_weight = node in _nodes((user.args[1:], user.kwargs))
    return not (user.op == "output" or is_weight or user in effects.members(node) or _depends_on_strides(user, effects))


def _format(graph: Graph, node: Node, users: Sequence[Node]) -> None:
    order = _order(node)
    if order is None:
        return
    before = users[0] if users[0].op == "output" and len(users) == 1 else node.next
    with graph.inserting_before(before):
        new = graph.call_function(running.run_format, (node, order))
    new.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, new)


def _depends_on_strides(node: Node, effects: Effects) -> bool:
    """Return whether the result or the memory of a node depends on strides."""
    if node.op == "call_module":
        return False
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))
    name = name.strip("_")
    if node.op == "call_function":
        module = str(getattr(node.target, "__module__", ""))
        if _is_ours(node):
            return False
        if not module.startswith(("torch", "_operator")) or not callable(node.target):
            return True
    if name in RANDOM:
        return bool(arguments_of(node).get("training", True))
    if name in MAYBE_VIEWS:  # strides decide whether it shares memory, and only a write shows that
        return any(effects.writes(source) for source in node.all_input_nodes)
    return name not in STRIDE_INDEPENDENT


def _is_ours(node: Node) -> bool:
    return getattr(node.target, "__module__", "") == running.__name__


def _order(node: Node) -> tuple[int, ...] | None:
    """Return the value's dimensions in memory, from the outermost to the innermost, None where they are not known."""
    value = value_of(node)
    if not isinstance(value, Tensor) or not 1 < value.dim() < 7:
        return None
    for order in _common_orders(value.dim()):
        if _has_order(value, order):
            return order
    strides = value.stride()
    if not all(isinstance(stride, int) for stride in strides):
        return next((order for order in itertools.permutations(range(value.dim())) if _has_order(value, order)), None)
    return tuple(sorted(range(value.dim()), key=lambda dim: (-strides[dim], dim)))


def _common_orders(dims: int) -> Iterator[tuple[int, ...]]:
    yield tuple(range(dims))
    yield (0, *range(2, dims), 1)


def _is_dense(node: Node) -> bool:
    """Return whether the value has its memory to itself, without gaps."""
    order = _order(node)
    return order is not None and _has_order(value_of(node), order)


def _has_order(value: Any, order: Sequence[int]) -> bool:
    """Return whether the value is dense, with its dimensions in this order, the outermost first."""
    expected: Any = 1
    for dim in reversed(order):
        length, stride = value.shape[dim], value.stride(dim)
        if not _equal(length, 1) and not _equal(stride, expected):
            return False
        expected = expected * length
    return True


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(a == b)


# Names of functions and methods whose values do not depend on strides; views among them keep their base.
STRIDE_INDEPENDENT = {
    "abs",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "add",
    "addcdiv",
    "addcmul",
    "addmm",
    "affine_grid",
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "argsort",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "baddbmm",
    "batch_norm",
    "bilinear",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "bmm",
    "cat",
    "ceil",
    "celu",
    "chunk",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "concat",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cos",
    "cross_entropy",
    "cumsum",
    "detach",
    "dim",
    "div",
    "einsum",
    "elu",
    "eq",
    "erf",
    "exp",
    "expand",
    "expand_as",
    "expm1",
    "floor",
    "floordiv",
    "gather",
    "ge",
    "gelu",
    "getitem",
    "grid_sample",
    "group_norm",
    "gt",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "huber_loss",
    "iadd",
    "imul",
    "index_select",
    "instance_norm",
    "interpolate",
    "ipow",
    "isfinite",
    "isinf",
    "isnan",
    "isub",
    "item",
    "itruediv",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "le",
    "leaky_relu",
    "lerp",
    "linear",
    "local_response_norm",
    "log",
    "log1p",
    "log_softmax",
    "logical_and",
    "logical_not",
    "logical_or",
    "logsigmoid",
    "lp_pool2d",
    "lt",
    "matmul",
    "max",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mish",
    "mm",
    "mod",
    "movedim",
    "mse_loss",
    "mul",
    "narrow",
    "ne",
    "neg",
    "nll_loss",
    "norm",
    "normalize",
    "numel",
    "one_hot",
    "pad",
    "permute",
    "pixel_shuffle",
    "pixel_unshuffle",
    "pow",
    "prelu",
    "prod",
    "relu",
    "relu6",
    "rms_norm",
    "round",
    "rsqrt",
    "scaled_dot_product_attention",
    "select",
    "selu",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "size",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "softsign",
    "sort",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "std",
    "std_mean",
    "sub",
    "sum",
    "swapaxes",
    "tanh",
    "tensor_split",
    "threshold",
    "topk",
    "transpose",
    "true_divide",
    "truediv",
    "unbind",
    "unsqueeze",
    "upsample",
    "var",
    "var_mean",
    "where",
}
# Names of operations that copy, or give a view where strides allow it.
MAYBE_VIEWS = {
    "bfloat16",
    "clone",
    "contiguous",
    "double",
    "flatten",
    "float",
    "half",
    "int",
    "long",
    "reshape",
    "reshape_as",
    "to",
    "type",
    "type_as",
    "unflatten",
}
# Names of operations that draw random numbers in training, in the order of memory.
RANDOM = {
    "alpha_dropout",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_alpha_dropout",
    "rrelu",
}
