"""Models and their ops next to PyTorch's own ways and other engines: the figures of `lwrn-fast bench`, for JSON.

Everybody is checked before being timed, and all take turns.
"""

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from .. import backends, models
from ..errors import UserError
from ..models.decoder import Level
from . import machine, peers, workloads
from .cases import CLASSES, Case, CrpCase, FusionCase, ModelCase, UpsampleArgmaxCase
from .paired import Contest, first_line, race

# Contestants by the names of the option --peers.
PEERS = {
    "nchw": peers.EAGER_NCHW,
    "eager": peers.EAGER,
    "compile": peers.COMPILE,
    "onnxruntime": peers.ONNX_RUNTIME,
    "openvino": peers.OPENVINO,
}
OURS = (peers.OURS, peers.OURS_EAGER, peers.OURS_NCHW)
Say = Callable[[str], object]


@dataclass(frozen=True)
class Options:
    """Models to compare, in float32, which all contestants can.

    names: of `models.NETWORKS`. size: of their input. seconds: measured time per contestant and case. others: the
    contestants that are compared with ours, keys of PEERS.
    """

    names: tuple[str, ...] = ("rf_lw_mbv2",)
    size: tuple[int, int] = (512, 512)
    threads: int | None = None
    seconds: float = 1.0
    others: tuple[str, ...] = tuple(PEERS)


def bench(options: Options, say: Say = lambda _: None) -> dict[str, Any]:
    """Measure, and return all figures. Raises UserError for what the user can mend.

    say: called with a line for each case. A case that cannot be set up, for example one that is too large for this
    machine, is among "absent", with the reason.
    """
    if reason := machine.why_no_numbers():
        raise UserError(reason)
    threads = options.threads or torch.get_num_threads()
    everybody = [PEERS[name] for name in options.others]
    absent = {name: peers.why_absent(name) for name in everybody}
    absent |= {name: "not asked for" for name in PEERS.values() if name not in everybody}
    cases = []
    todo = list(_cases(options))
    for i, (kind, set_up, case, where) in enumerate(todo):
        say(f"{i + 1} of {len(todo)}: {kind} {case}")
        try:
            contest = set_up()
        except (RuntimeError, MemoryError) as error:
            absent[str(case)] = first_line(error, "not enough memory")
            continue
        measured = _measure(contest, (*OURS, *everybody), threads, options.seconds)
        cases.append({"kind": kind, "name": str(case), "where": where} | measured)
    return {
        "kind": "bench",
        "title": f"{', '.join(options.names)}, side by side",
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "options": {
            "models": list(options.names),
            "size": list(options.size),
            "dtype": "f32",
            "threads": threads,
            "seconds": options.seconds,
        },
        "limits": {
            "operations_per_s": machine.gemm_rate(torch.float32, threads),
            "bytes_per_s": machine.copy_rate(threads),
        },
        "absent": {name: reason for name, reason in absent.items() if reason},
        "cases": cases,
    }


def op_cases(name: str, size: tuple[int, int]) -> dict[Case, str]:
    """Return the cases of a model for an image of this size, deepest level first, and their levels, without computing.

    >>> [str(case) for case in op_cases("rf_lw50", (512, 512))][:2]
    ['2048x16x16-512-relu', '512x16x16']
    """
    cases: dict[Case, str] = {}
    with torch.device("meta"), torch.no_grad(), backends.use_backend("reference"):
        model = models.NETWORKS[name](CLASSES).eval()
        level = model._level

        def note(inputs: list[Tensor], weights: list[Tensor], biases: list[Tensor], described: Level) -> Tensor:
            where = f"{name}, level {len(model.levels) - model.levels.index(described)}"
            result = level(inputs, weights, biases, described)
            if weights:  # none in the original RefineNet, whose convolutions are 3x3
                shapes = tuple(cast(tuple[int, int, int], tuple(x.shape[1:])) for x in inputs)
                cases[FusionCase(shapes, result.shape[1], model.activation)] = where
                if described.crp is not None:
                    cases[CrpCase(*result.shape[1:])] = where
            return result

        model.__dict__["_level"] = note
        logits = model(torch.empty(1, 3, *size))
    cases[UpsampleArgmaxCase(logits.shape[1], logits.shape[2], logits.shape[3], size)] = f"{name}, labels"
    return cases


def _cases(options: Options) -> Iterator[tuple[str, Callable[[], Contest], Case, str]]:
    """Yield kind, set-up function, case and where it occurs; the models first."""
    for labels, kind in ((False, "network"), (True, "image to labels")):
        for name in options.names:
            whole = ModelCase(name, *options.size, labels=labels)
            yield kind, partial(workloads.model.set_up, whole, torch.float32), whole, name
    levels: dict[Case, list[str]] = {}
    for name in options.names:
        for case, where in op_cases(name, options.size).items():
            levels.setdefault(case, []).append(where)
    ops = {CrpCase: workloads.crp, FusionCase: workloads.fusion, UpsampleArgmaxCase: workloads.upsample_argmax}
    for case_type, module in ops.items():
        for case, names in levels.items():
            if isinstance(case, case_type):
                set_up = partial(cast(Any, module).set_up, case, torch.float32)
                yield module.__name__.rpartition(".")[2], set_up, case, "; ".join(names)


def _measure(contest: Contest, only: Sequence[str], threads: int, seconds: float) -> dict[str, Any]:
    failed: dict[str, str] = {}
    times = race(contest, threads, seconds, tuple(only), failed)
    names = list(times.rounds)
    limit = machine.limit(contest.operations or 0, contest.bytes or 0, torch.float32, threads)
    return {
        "operations": contest.operations,
        "limit_ms": round(1e3 * limit, 6),
        "ms": {name: round(1e3 * times.median(name), 6) for name in names},
        "ratio": {name: round(times.ratio(name, peers.OURS), 4) for name in names} if peers.OURS in names else {},
        "rounds": {name: len(times.taken(name)) for name in names},
        "failed": failed,
    }
