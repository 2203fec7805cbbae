"""A module's forward as a graph, with the modules in it as they are."""

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn

from .. import children

MOST_INLINED = 6
"""Modules of PyTorch's own in one that is looked into; a larger one is traced for itself."""


class NotTraced(Exception):
    """Why there is no graph."""


class Proxy(fx.Proxy):
    """One that writes in place where the forward does; torch.fx's own makes a new tensor of `x += y`."""


def _in_place(name: str) -> Any:
    target = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", target, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(Proxy, f"__{_name}__", _in_place(_name))


class Tracer(fx.Tracer):
    """Looks into containers and small modules, never into those with hooks, nor into `closed` ones."""

    def __init__(self, closed: set[nn.Module]) -> None:
        super().__init__()
        self.closed = closed
        self.opened: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self.closed or children.has_hooks(m) or "forward" in vars(m):  # accelerated, or the user's
            return True
        if type(m) is not nn.Sequential:
            own = [inner for inner in m.modules() if _of_torch(inner)]
            if _of_torch(m) or len(own) > MOST_INLINED or isinstance(m, torch.jit.ScriptModule):
                return True
        self.opened.append(m)
        return False

    def proxy(self, node: fx.Node) -> Proxy:
        return Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        try:
            self.path_of_module(m)
        except NameError:  # made in the forward, as nn.Upsample often is
            return m.forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list]:
        """What a caller must give; the rest keeps its default."""
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in required(self.root))]


def trace(module: nn.Module, closed: set[nn.Module]) -> tuple[fx.Graph, list[nn.Module]]:
    """The graph, and the modules within that it looks into. NotTraced where the forward cannot be recorded."""
    tracer = Tracer(closed)
    try:
        return tracer.trace(module), tracer.opened
    except Exception as error:  # it is somebody else's code
        raise NotTraced(str(error)) from error


def required(module: nn.Module) -> list[str]:
    """The arguments of the forward that have no default, or the first; NotTraced where it takes any number."""
    names = []
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY):
            raise NotTraced("its forward takes any number of arguments, or some by name only")
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            names.append(parameter.name)
    return names or [parameter.name for parameter in parameters[:1] if parameter.kind is not parameter.VAR_KEYWORD]


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")
