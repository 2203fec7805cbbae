"""Objects other than weights: torch.load(weights_only=True) refuses a file for one NumPy scalar, so it gets a stand-in,
an empty class, for every class that the file names. Nothing that a file names is imported or called."""

import pickletools
import threading
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names of Python 2, which torch.save writes
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import torch

# Modules from which torch reads nothing with weights_only=True, whatever is allowed.
BLOCKED = ("nt", "os", "posix", "sys")
# The pickle protocol of torch.save, and the newest that weights_only=True reads.
NEWEST_PROTOCOL = 2
_lock = threading.Lock()


class StandIn:
    """A stand-in for an object of a file that is neither tensor nor container, with its class's name and its state."""

    name = ""
    state: object = None

    def __new__(cls, *_: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class Uses(NamedTuple):
    """The names in a pickle and their use."""

    # Every "module.name" that is looked up.
    names: frozenset[str]
    # The use of objects by name: "dict" for items set, "list" for items appended, "call".
    filled: dict[str, str]
    protocol: int


class _Object(NamedTuple):
    """An item of the stack: a name that was looked up, or, with made, the result of calling it."""

    name: str
    made: bool


_MARK = object()


def uses(file: IO[bytes]) -> Uses:
    """Read one pickle up to its end, instruction by instruction, running none of them.

    Raises ValueError or another exception where it is no pickle.

    >>> import io, pickle, pathlib
    >>> sorted(uses(io.BytesIO(pickle.dumps(pathlib.PurePosixPath("/"), 2))).names)[-1].split(".")[-1]
    'PurePosixPath'
    """
    scan = _Scan()
    for operation, argument, _ in pickletools.genops(file):
        scan.step(operation, argument)
    return Uses(frozenset(scan.names), scan.filled, scan.protocol)


class _Scan:
    """A stack machine over unknown values, None, that follows the names among them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()
        self.filled: dict[str, str] = {}
        self.protocol = 0

    def step(self, operation: pickletools.OpcodeInfo, argument: Any) -> None:
        name, stack = operation.name, self.stack
        if name in ("GLOBAL", "INST"):
            self._look_up(*argument.split(" ", 1))
        elif name in ("REDUCE", "NEWOBJ"):
            stack.pop()
            self._call(stack.pop())
        elif name in ("SETITEM", "APPEND"):
            del stack[-2 if name == "SETITEM" else -1 :]
            self._fill("dict" if name == "SETITEM" else "list")
        elif name in ("SETITEMS", "APPENDS"):
            self._drop_to_mark()
            self._fill("dict" if name == "SETITEMS" else "list")
        elif name == "BUILD":
            stack.pop()
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "PROTO":
            self.protocol = argument
        else:
            self._move(operation)

    def _move(self, operation: pickletools.OpcodeInfo) -> None:
        if pickletools.markobject in operation.stack_before:
            self._drop_to_mark()
        elif operation.stack_before:
            del self.stack[-len(operation.stack_before) :]
        self.stack.extend([None] * len(operation.stack_after))

    def _look_up(self, module: str, name: str) -> None:
        self.names.add(f"{module}.{name}")
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[(module, name)]
        full = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        self.names.add(full)
        self.stack.append(_Object(full, made=False))

    def _call(self, function: Any) -> None:
        if isinstance(function, _Object):
            if function.made:
                self.filled[function.name] = "call"
            self.stack.append(_Object(function.name, made=True))
        else:
            self.stack.append(None)

    def _fill(self, use: str) -> None:
        top = self.stack[-1]
        if isinstance(top, _Object) and top.made:
            self.filled.setdefault(top.name, use)

    def _drop_to_mark(self) -> None:
        while self.stack.pop() is not _MARK:
            pass


@contextmanager
def stand_ins(objects: Uses) -> Iterator[None]:
    """Let torch.load(weights_only=True) make a stand-in of every object whose class it does not know.

    One file at a time, since torch keeps one list of allowed names for the whole process. Names that the program itself
    has allowed with torch.serialization.add_safe_globals are kept.
    """
    plain = _stand_in("")
    with _lock:
        allowed = {_full_name(entry) for entry in torch.serialization.get_safe_globals()}
        names = sorted(objects.names - allowed)
        entries = [(_make(name, objects.filled.get(name), plain), name) for name in names]
        with torch.serialization.safe_globals([(plain, f"{__name__}.{plain.__name__}"), *entries]):
            yield


def _full_name(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def _make(name: str, use: str | None, plain: type[StandIn]) -> Callable[..., object]:
    if use is None:
        return _stand_in(name)
    # torch fills only dict, OrderedDict and list themselves; an OrderedDict also takes a state
    makers: dict[str, Callable[[], object]] = {"dict": OrderedDict, "list": list, "call": lambda: plain}
    make = makers[use]

    class Filled:
        def __new__(cls, *_: object) -> Any:
            return make()

    return Filled


def _stand_in(name: str) -> type[StandIn]:
    return type("StandIn", (StandIn,), {"name": name})
