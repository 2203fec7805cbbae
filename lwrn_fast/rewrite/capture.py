"""In-place acceleration of one module instance: Dynamo captures its forward, and the captured graph runs our ops.

The instance gets a subclass of its own class, as torch.nn.utils.parametrize does it, whose forward hands the module to
compiled code. Replicas, shallow copies and deep copies therefore run with their own weights. At each call, Dynamo's
guards and its treatment of side effects decide whether the captured code still stands for the forward.
"""

import functools
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from . import compiling, notes
from .notes import thread
from .report import Finding, Report

# Attribute in which an accelerated module keeps its `Capture`.
KEY = "_lwrn_fast_capture"
# Dynamo's settings whenever it may capture.
SETTINGS = {
    "skip_nnmodule_hook_guards": False,  # hooks may be registered later
    "suppress_errors": True,  # code that cannot be captured runs as it is
    "optimize_ddp": False,  # DDP's buckets would cut patterns in two
    "trace_numpy": False,  # PyTorch would compute it, and not all of it alike
    "allow_unspec_int_on_nn_module": True,  # a counter must not cause another capture
    "recompile_limit": compiling.MAX_RECOMPILES,
}
# Captures of one model that may be started, the first included, for reasons that Dynamo does not see.
MAX_STARTS = 8


class Capture:
    """The captured code of one module, its replicas and its shallow copies.

    options: options of the backend. report: takes the findings of each captured graph.
    """

    def __init__(self, options: dict[str, bool], report: Report) -> None:
        self.options, self.report = options, report
        self._run: Callable[..., Any] | None = None
        self._snapshot = _Snapshot([])
        self._starts = 0
        self._lock = threading.Lock()
        self._logged: set[str] = set()

    def __call__(self, owner: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module's forward. owner: the subclass that defines its `forward`."""
        run = self._run
        if run is None or not self._snapshot.is_current():
            run = self._start(owner, module)
        revert = _apply_settings()
        messages: list[str] = []
        outer, thread.notes = getattr(thread, "notes", None), messages
        try:
            result = run(module, args, kwargs)
        except Exception:
            self._run = None  # Dynamo never retries a frame that failed, and the next call may succeed
            raise
        finally:
            thread.notes = outer
            revert()
        if messages:
            notes.tell(messages, self._logged, "accelerate", type(module).__name__, self.report)
        return result

    def _start(self, owner: Any, module: nn.Module) -> Callable[..., Any]:
        def forward(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return super(owner, self).forward(*args, **kwargs)  # type: ignore[misc]

        with self._lock:
            foreign = [inner for inner in module.modules() if not type(inner).__module__.startswith("torch.")]
            self._snapshot = _Snapshot(foreign)
            self._starts += 1
            if self._starts <= MAX_STARTS:
                options = {**self.options, "backend": "eager", "report": self.report}
                self._run = compiling.compile_alone(forward, options)
            else:
                reason = f"its classes or attributes change at every call: it ran anew {MAX_STARTS} times"
                self.report.add([Finding("", "module", type(module).__name__, reason)])
                self._run = forward
            return self._run

    def __deepcopy__(self, memo: dict) -> "Capture":
        return Capture(dict(self.options), Report())

    def __reduce__(self) -> tuple:
        return Capture, (self.options, Report())


class _Snapshot:
    """A snapshot of the state that Dynamo does not guard: the functions of classes and the attribute names of
    instances."""

    def __init__(self, modules: list[nn.Module]) -> None:
        classes = {cls for module in modules for cls in type(module).__mro__}
        foreign = [cls for cls in classes if not cls.__module__.startswith(("torch.", "builtins"))]
        self._classes = [vars(cls) for cls in foreign if cls not in _originals]
        self._instances = [vars(module) for module in modules]
        self._values = [tuple(names.values()) for names in self._classes]
        self._counts = [len(names) for names in self._instances]

    def is_current(self) -> bool:
        if [len(names) for names in self._instances] != self._counts:
            return False
        values = [tuple(names.values()) for names in self._classes]
        if all(map(_same, values, self._values)):
            return True
        functions = [[value for value in entries if callable(value)] for entries in (*values, *self._values)]
        self._values = values  # Dynamo guards data itself
        return functions[: len(values)] == functions[len(values) :]


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def install(module: nn.Module, capture: Capture) -> None:
    """Have the module's forward captured from now on."""
    cls: Any = type(module)
    module.__class__ = subclass(cls)
    vars(module)[KEY] = capture


def remove(module: nn.Module) -> None:
    """Undo `install`. A module without it stays as it is."""
    vars(module).pop(KEY, None)
    if type(module) in _originals:
        module.__class__ = _originals[type(module)]


_originals: dict[type, type] = {}


class _Unannounced(nn.Module):  # a plain class has another object layout, which forbids to assign __class__
    """A base that skips `__init_subclass__` of the accelerated class, which may need arguments or fill a registry."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if _Unannounced not in cls.__bases__:  # a subclass of the user's
            super().__init_subclass__(**kwargs)


def _recompile(self: Any) -> Any:
    """Recompile as the original class: fx.GraphModule writes its forward into the class of the instance."""
    cls = type(self)
    self.__class__ = _originals[cls]
    try:
        return self.recompile()
    finally:
        self.__class__ = cls


@functools.cache
def subclass(cls: Any) -> Any:
    """Return the class of accelerated instances of a class. It has the class's name, and its pickles name the class."""

    is_graph_module = issubclass(cls, fx.GraphModule)  # it looks for its own class among the bases

    class Accelerated(*((cls,) if is_graph_module else (_Unannounced, cls))):  # type: ignore[misc]
        @functools.wraps(cls.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            capture = None if torch.compiler.is_compiling() or _is_observed() else vars(self).get(KEY)
            if capture is None:
                return super().forward(*args, **kwargs)
            return capture(Accelerated, self, args, kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            reduced = super().__reduce_ex__(protocol)
            if isinstance(reduced, tuple) and reduced[1][:1] == (Accelerated,):  # copyreg's functions
                return _reconstruct, (cls, reduced[0], *reduced[1][1:]), *reduced[2:]
            if isinstance(reduced, tuple) and reduced[0] is Accelerated:
                return _reconstruct, (cls, None, *reduced[1]), *reduced[2:]
            return reduced

    if is_graph_module:
        Accelerated.recompile = _recompile
    Accelerated.__name__, Accelerated.__qualname__ = cls.__name__, cls.__qualname__
    Accelerated.__module__, Accelerated.__doc__ = cls.__module__, cls.__doc__
    _originals[Accelerated] = cls
    return Accelerated


def _reconstruct(cls: Any, make: Callable[..., Any] | None, *args: Any) -> Any:
    """Make an instance for copy and pickle: by copyreg's function `make`, or by calling the class."""
    accelerated = subclass(cls)
    return accelerated(*args) if make is None else make(accelerated, *args)


def _is_observed() -> bool:
    """Return whether PyTorch's operations are recorded or transformed, so that the model's own forward must run."""
    return (
        torch._C._is_tracing()  # torch.jit.trace
        or torch.fx._symbolic_trace.is_fx_symbolic_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or any(_global_hooks())
    )


def _global_hooks() -> Iterator[Any]:
    hooks = nn.modules.module
    yield hooks._global_forward_hooks
    yield hooks._global_forward_pre_hooks
    yield hooks._global_backward_hooks
    yield hooks._global_backward_pre_hooks


def _apply_settings() -> Callable[[], None]:
    """Apply `SETTINGS` and return a function that reverts them. config.patch does the same in five times the time."""
    return _settings_patcher()()


@functools.cache
def _settings_patcher() -> Callable[[], Callable[[], None]]:
    notes.prepare()
    return torch._dynamo.config._make_closure_patcher(**SETTINGS)
