"""`info`: versions, backends and instruction sets of this installation and machine."""

import os
import platform
import sys
from typing import Any

import torch

from . import backends
from ._version import __version__
from .backends import native


class Info(dict[str, Any]):
    """A dictionary that prints as a table."""

    def __repr__(self) -> str:
        rows = [(key, value) for key, value in self.items() if not isinstance(value, dict)]
        for key, value in self.items():
            if isinstance(value, dict):
                rows += [(f"{key}.{name}", entry) for name, entry in value.items()]
        width = max(len(key) for key, _ in rows)
        return "\n".join(f"{key:{width}}  {_text(value)}" for key, value in rows)


def info() -> Info:
    """Return versions, the backend asked for, each backend's "ready" or the reason why not, and the build's settings.

    >>> import lwrn_fast
    >>> lwrn_fast.info()["backends"]["reference"]
    'ready'
    """
    return Info(
        version=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        machine=f"{sys.platform} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        backend=backends.requested(),
        backends={name: backends.missing(name) or "ready" for name in backends.BACKENDS if name != "auto"},
        cpu_isa=_cpu_isa(),
        native=_build(),
    )


def _build() -> dict[str, Any]:
    extension = native.extension()
    return dict(extension.build_info()) if extension is not None else {"missing": native.MISSING}


def _cpu_isa() -> str:
    extension = native.extension()
    if extension is None:
        return "none: the compiled part is missing"
    try:
        in_use = extension.cpu_isa()
    except RuntimeError as error:  # LWRN_FAST_CPU_ISA names one that cannot run
        return f"none: {error}"
    return f"{in_use} (can run {', '.join(extension.cpu_isas())})"


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)
