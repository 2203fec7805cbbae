"""Networks and their ops beside PyTorch's own ways and other engines: what `lwrn-fast bench` measures, for JSON.

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
from . import contests, machine, peers
from .cases import CLASSES, Case, CrpCase, FusionCase, ModelCase, UpsampleArgmaxCase
from .paired import Contest, race

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
    """What to compare. names: of `models.NETWORKS`. size: of their input. seconds: measured time per contestant and
    case. others: who is compared with ours, keys of PEERS. In float32, which is what all of them can."""

    names: tuple[str, ...] = ("rf_lw_mbv2",)
    size: tuple[int, int] = (512, 512)
    threads: int | None = None
    seconds: float = 1.0
    others: tuple[str, ...] = tuple(PEERS)


def bench(options: Options, say: Say = lambda _: None) -> dict[str, Any]:
    """Measure, and return all figures. Raises UserError for what the user can mend. say: is told what is next.
    A case that cannot be set up, too large for this machine for one, is among "absent", with the reason."""
    if reason := machine.why_no_numbers():
        raise UserError(reason)
    threads = options.threads or torch.get_num_threads()
    everybody = [PEERS[name] for name in options.others]
    absent = {name: peers.why_absent(name) for name in everybody}
    absent |= {name: "not asked for" for name in PEERS.values() if name not in everybody}
    cases = []
    found = list(_cases(options))
    for i, (kind, set_up, case, where) in enumerate(found):
        say(f"{i + 1} of {len(found)}: {kind} {case}")
        try:
            contest = set_up()
        except (RuntimeError, MemoryError) as error:
            absent[str(case)] = (str(error).strip() or "not enough memory").splitlines()[0]
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
    """What the levels of a network compute for an image of this size, deepest first, and where; nothing is computed.

    >>> [str(case) for case in op_cases("rf_lw50", (512, 512))][:2]
    ['2048x16x16-512-relu', '512x16x16']
    """
    found: dict[Case, str] = {}
    with torch.device("meta"), torch.no_grad(), backends.use_backend("reference"):
        network = models.NETWORKS[name](CLASSES).eval()
        level = network._level

        def noting(inputs: list[Tensor], weights: list[Tensor], biases: list[Tensor], described: Level) -> Tensor:
            where = f"{name}, level {len(network.levels) - network.levels.index(described)}"
            result = level(inputs, weights, biases, described)
            if weights:  # none in the original RefineNet, whose convolutions are 3x3
                shapes = tuple(cast(tuple[int, int, int], tuple(x.shape[1:])) for x in inputs)
                found[FusionCase(shapes, result.shape[1], network.activation)] = where
                if described.crp is not None:
                    found[CrpCase(*result.shape[1:])] = where
            return result

        network.__dict__["_level"] = noting
        logits = network(torch.empty(1, 3, *size))
    found[UpsampleArgmaxCase(logits.shape[1], logits.shape[2], logits.shape[3], size)] = f"{name}, labels"
    return found


def _cases(options: Options) -> Iterator[tuple[str, Callable[[], Contest], Case, str]]:
    """Kind, set-up, case and where it occurs; the networks first."""
    for labels, kind in ((False, "network"), (True, "image to labels")):
        for name in options.names:
            whole = ModelCase(name, *options.size, labels=labels)
            yield kind, partial(contests.model.set_up, whole, torch.float32), whole, name
    places: dict[Case, list[str]] = {}
    for name in options.names:
        for case, where in op_cases(name, options.size).items():
            places.setdefault(case, []).append(where)
    ops = {CrpCase: contests.crp, FusionCase: contests.fusion, UpsampleArgmaxCase: contests.upsample_argmax}
    for of, module in ops.items():
        for case, found in places.items():
            if isinstance(case, of):
                set_up = partial(cast(Any, module).set_up, case, torch.float32)
                yield module.__name__.rpartition(".")[2], set_up, case, "; ".join(found)


def _measure(contest: Contest, names: Sequence[str], threads: int, seconds: float) -> dict[str, Any]:
    failed: dict[str, str] = {}
    times = race(contest, threads, seconds, tuple(names), failed)
    took = {name: times.median(name) for name in times.rounds}
    limit = machine.limit(contest.operations or 0, contest.bytes or 0, torch.float32, threads)
    return {
        "operations": contest.operations,
        "limit_ms": round(1e3 * limit, 6),
        "ms": {name: round(1e3 * t, 6) for name, t in took.items()},
        "ratio": {name: round(times.ratio(name, peers.OURS), 4) for name in took} if peers.OURS in took else {},
        "rounds": {name: len(times.taken(name)) for name in took},
        "failed": failed,
    }
