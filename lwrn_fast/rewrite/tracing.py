"""Tracing: record a module's forward as an FX graph, with the modules in it as they are."""

import functools
import inspect
import operator
from collections import OrderedDict
from typing import Any

import torch
from torch import fx, nn

from ..ops import conv_parameters

# PyTorch modules within a module that is traced inline; a module with more is traced for itself.
MAX_INLINED = 6


class NotTraced(Exception):
    """The reason why there is no graph."""


class Proxy(fx.Proxy):
    """A proxy that writes in place where the forward does; torch.fx's own makes a new tensor of `x += y`."""


def _in_place(name: str) -> Any:
    target = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", target, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(Proxy, f"__{_name}__", _in_place(_name))


class Tracer(fx.Tracer):
    """Records one forward without patches outside of the module.

    `fx.Tracer.trace` patches all modules of all threads. Here the modules within get a forward of their own meanwhile,
    so the module must not be in use elsewhere.
    """

    def __init__(self, root: nn.Module, closed: set[nn.Module]) -> None:
        super().__init__()
        self.root, self.graph, self.tensor_attrs = root, fx.Graph(tracer_cls=Tracer), {}
        self.opened: list[nn.Module] = [root]
        self._closed = closed
        self._saved: dict[nn.Module, dict[str, Any]] = {}
        self._swapped: list[tuple[nn.Module, str, nn.Module]] = []

    def record(self) -> fx.Graph:
        try:
            self._prepare(self.root, "")
            arguments = [self.create_proxy("placeholder", name, (), {}) for name in required(self.root)]
            result = type(self.root).forward(self.root, *arguments)
            self.create_node("output", "output", (self.create_arg(result),), {})
        finally:
            for parent, name, module in self._swapped:
                parent._modules[name] = module
            for module, attributes in self._saved.items():
                if not isinstance(module, torch.jit.ScriptModule):
                    vars(module).clear()
                    vars(module).update(attributes)
        return self.graph

    def proxy(self, node: fx.Node) -> Proxy:
        return Proxy(node, self)

    def _prepare(self, module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if child in self._saved:
                continue
            self._saved[child] = dict(vars(child))
            if isinstance(child, torch.jit.ScriptModule):  # Python does not see its calls
                self._swapped.append((module, name, child))
                module._modules[name] = stand_in = nn.Module()
                vars(stand_in)["forward"] = functools.partial(self._call, inner)
            elif type(child).forward is nn.Module.forward:  # a list, say, that is never called
                self._prepare(child, inner)
            elif self._is_leaf(child):
                hooks: dict[str, Any] = {name: OrderedDict() for name in vars(child) if name.endswith("_hooks")}
                vars(child).update(hooks, forward=functools.partial(self._call, inner))
            else:
                self.opened.append(child)
                vars(child)["forward"] = functools.partial(self._enter, child, inner)
                self._prepare(child, inner)

    def _is_leaf(self, m: nn.Module) -> bool:
        """Return False for containers and small modules without hooks, to trace into; True for `closed` ones too."""
        if m in self._closed or conv_parameters.has_hooks(m) or "forward" in vars(m):
            return True
        if type(m) is nn.Sequential:
            return False
        return _is_torch_module(m) or sum(map(_is_torch_module, m.modules())) > MAX_INLINED

    def _call(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return self.create_proxy("call_module", path, args, kwargs)

    def _enter(self, module: nn.Module, path: str, *args: Any, **kwargs: Any) -> Any:
        self.module_stack[path] = (path, type(module))
        try:
            return type(module).forward(module, *args, **kwargs)
        finally:
            self.module_stack.popitem()


def trace(module: nn.Module, closed: set[nn.Module]) -> tuple[fx.Graph, list[nn.Module]]:
    """Return the graph and the modules that were traced into. Raise NotTraced where the forward cannot be recorded."""
    tracer = Tracer(module, closed)
    try:
        return tracer.record(), tracer.opened
    except Exception as error:  # user code may raise anything
        raise NotTraced(str(error)) from error


def required(module: nn.Module) -> list[str]:
    """Return the names of the forward's arguments without a default, or of the first argument where all have one.

    Raise NotTraced where it takes any number of arguments, or some by name only.
    """
    names = []
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY):
            raise NotTraced("its forward takes any number of arguments, or some by name only")
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            names.append(parameter.name)
    return names or [parameter.name for parameter in parameters[:1] if parameter.kind is not parameter.VAR_KEYWORD]


def _is_torch_module(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")
