"""One instance of anybody's module, in place: Dynamo captures its forward, and our ops run in what was captured.

The instance gets a subclass of its own class, as torch.nn.utils.parametrize gives one, whose forward hands the module
to compiled code. So replicas, shallow copies and deep copies run with their own weights, and Dynamo's guards and its
treatment of side effects decide at each call whether what was captured still stands for the forward.
"""

import functools
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from . import compiling, notes
from .notes import here
from .report import Finding, Report

KEY = "_lwrn_fast_capture"
"""Where an accelerated module keeps its `Capture`."""
SETTINGS = {
    "skip_nnmodule_hook_guards": False,  # hooks may be registered later
    "suppress_errors": True,  # what cannot be captured runs as it is
    "optimize_ddp": False,  # whose buckets would cut patterns in two
    "trace_numpy": False,  # which is computed by PyTorch then, not all of it alike
    "allow_unspec_int_on_nn_module": True,  # a counter is no reason to capture again
    "recompile_limit": compiling.MAX_RECOMPILES,
}
"""Dynamo's, whenever it may capture."""
MAX_BEGUN = 8
"""Times that a network's capture is begun anew, for reasons that Dynamo does not see."""


class Capture:
    """What has been captured of one module, its replicas and its shallow copies.

    wanted: options of the backend. report: is told what was captured.
    """

    def __init__(self, wanted: dict[str, bool], report: Report) -> None:
        self.wanted, self.report = wanted, report
        self._run: Callable[..., Any] | None = None
        self._seen = _Seen([])
        self._begun = 0
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def __call__(self, owner: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's forward. owner: the subclass that its `forward` was found in."""
        run = self._run
        if run is None or not self._seen.holds():
            run = self._begin(owner, module)
        revert = _set()
        said: list[str] = []
        outer, here.notes = getattr(here, "notes", None), said
        try:
            result = run(module, args, kwargs)
        except Exception:
            self._run = None  # Dynamo never looks again at a frame that failed, and the next call may be right
            raise
        finally:
            here.notes = outer
            revert()
        if said:
            notes.tell(said, self._told, "accelerate", type(module).__name__, self.report)
        return result

    def _begin(self, owner: Any, module: nn.Module) -> Callable[..., Any]:
        def forward(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return super(owner, self).forward(*args, **kwargs)  # type: ignore[misc]

        with self._lock:
            self._seen = _Seen([inner for inner in module.modules() if not type(inner).__module__.startswith("torch.")])
            self._begun += 1
            if self._begun <= MAX_BEGUN:
                options = {**self.wanted, "backend": "eager", "report": self.report}
                self._run = compiling.compile_alone(forward, options)
            else:
                reason = f"its classes or attributes change at every call: it ran anew {MAX_BEGUN} times"
                self.report.add([Finding("", "module", type(module).__name__, reason)])
                self._run = forward
            return self._run

    def __deepcopy__(self, memo: dict) -> "Capture":
        return Capture(dict(self.wanted), Report())

    def __reduce__(self) -> tuple:
        return Capture, (self.wanted, Report())


class _Seen:
    """What Dynamo has no guards on: the functions that classes hold, and which attributes instances have."""

    def __init__(self, modules: list[nn.Module]) -> None:
        kinds = {kind for module in modules for kind in type(module).__mro__}
        own = [kind for kind in kinds if not kind.__module__.startswith(("torch.", "builtins"))]
        self._classes = [vars(kind) for kind in own if kind not in _originals]
        self._instances = [vars(module) for module in modules]
        self._values = [tuple(names.values()) for names in self._classes]
        self._counts = [len(names) for names in self._instances]

    def holds(self) -> bool:
        if [len(names) for names in self._instances] != self._counts:
            return False
        values = [tuple(names.values()) for names in self._classes]
        if all(map(_same, values, self._values)):
            return True
        functions = [[value for value in found if callable(value)] for found in (*values, *self._values)]
        self._values = values  # data has guards
        return functions[: len(values)] == functions[len(values) :]


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def install(module: nn.Module, capture: Capture) -> None:
    """Have the module's forward captured from now on."""
    kind: Any = type(module)
    module.__class__ = subclass(kind)
    vars(module)[KEY] = capture


def remove(module: nn.Module) -> None:
    """Undo `install`; nothing happens to a module without it."""
    vars(module).pop(KEY, None)
    if type(module) in _originals:
        module.__class__ = _originals[type(module)]


_originals: dict[type, type] = {}


class _Unannounced(nn.Module):  # of a plain class, memory would lie otherwise, and no instance could change over
    """Keeps a class from hearing of its new subclass, which may need arguments, or enter a registry."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if _Unannounced not in cls.__bases__:  # a subclass of the user's
            super().__init_subclass__(**kwargs)


def _recompile(self: Any) -> Any:
    """fx.GraphModule writes its forward into the class of the instance, which must be its own then."""
    kind = type(self)
    self.__class__ = _originals[kind]
    try:
        return self.recompile()
    finally:
        self.__class__ = kind


@functools.cache
def subclass(kind: Any) -> Any:
    """The class of accelerated instances of a class; it has the class's name, and its pickles name the class."""

    traced = issubclass(kind, fx.GraphModule)  # which looks for its own class among the bases

    class Accelerated(*((kind,) if traced else (_Unannounced, kind))):  # type: ignore[misc]
        @functools.wraps(kind.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            capture = None if torch.compiler.is_compiling() or _is_observed() else vars(self).get(KEY)
            if capture is None:
                return super().forward(*args, **kwargs)
            return capture(Accelerated, self, args, kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            made = super().__reduce_ex__(protocol)
            if isinstance(made, tuple) and made[1][:1] == (Accelerated,):  # copyreg's functions
                return _of_subclass, (kind, made[0], *made[1][1:]), *made[2:]
            if isinstance(made, tuple) and made[0] is Accelerated:
                return _of_subclass, (kind, None, *made[1]), *made[2:]
            return made

    if traced:
        Accelerated.recompile = _recompile
    Accelerated.__name__, Accelerated.__qualname__ = kind.__name__, kind.__qualname__
    Accelerated.__module__, Accelerated.__doc__ = kind.__module__, kind.__doc__
    _originals[Accelerated] = kind
    return Accelerated


def _of_subclass(kind: Any, make: Callable[..., Any] | None, *args: Any) -> Any:
    """How copy and pickle make an instance anew: by copyreg's function, or by calling the class."""
    own = subclass(kind)
    return own(*args) if make is None else make(own, *args)


def _is_observed() -> bool:
    """Whether somebody records or transforms what PyTorch computes, and so must see the network's own forward."""
    return (
        torch._C._is_tracing()  # torch.jit.trace
        or torch.fx._symbolic_trace.is_fx_symbolic_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or any(_global_hooks())
    )


def _global_hooks() -> Iterator[Any]:
    of_all = nn.modules.module
    yield of_all._global_forward_hooks
    yield of_all._global_forward_pre_hooks
    yield of_all._global_backward_hooks
    yield of_all._global_backward_pre_hooks


def _set() -> Callable[[], None]:
    """Set `SETTINGS`; the function returned sets them back. config.patch does the same in five times the time."""
    return _change()()


@functools.cache
def _change() -> Callable[[], Callable[[], None]]:
    notes.prepare()
    return torch._dynamo.config._make_closure_patcher(**SETTINGS)
