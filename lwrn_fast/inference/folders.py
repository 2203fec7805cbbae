"""Folders at scale: `lwrn-fast segment --resume`, and any number of processes that torchrun starts.

    torchrun --nproc-per-node 8 --max-restarts 3 -m lwrn_fast segment photos/ --out labels --checkpoint FILE

The processes share out the images as `claims` tells, through the folder of the results and nothing else: they may run
on several machines, at the same paths, may be killed, and more may come. What became of every image is in the folder's
`manifest.jsonl` (`manifest`). An image that is done is skipped, unless it or its results have changed since. One that
failed is tried again, but not when torchrun restarts its own processes. An image over which MOST_DEATHS processes have
ended is taken for failed. A folder has the results of one set of weights and options; others are refused.

Of several processes, that of rank 0 ends last, with exit code 2 where images failed; the others end with 0, for
torchrun ends all when one fails. torchrun itself then ends with 1; if it may restart, it does, and nothing is left to
do. It sets OMP_NUM_THREADS to 1 where nobody has: start a process for each core, or set it. Other launchers' processes
share the cores.
"""

import dataclasses
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from .. import backends
from ..errors import UserError
from ..io import atomic, formats, images
from ..models.networks import Network
from . import manifest, segment, work_queue
from .segment import Options, Report

MOST_DEATHS = 3
OPTIONS = "options.json"
NOT_IN_RESULTS = {
    *("out", "network", "checkpoint", "num_classes", "verify", "recursive", "resume", "device", "max_pixels"),
}
"""Options that change no result, or only through the network and its weights."""


def processes() -> int:
    """How many torchrun, or another launcher, has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def run(
    paths: Sequence[str],
    options: Options,
    model: Network,
    error: Callable[[str], object],
    progress: Callable[[Any], Iterable] = iter,
) -> Report:
    """As `segment.run`, together with all other processes that do so with the same `options.out`.

    The report is of what this process did, but for the errors: rank 0 has one more where images failed in any process.
    Raises UserError also where the folder has results of other weights or options.
    """
    segment.check_backend(options.backend)
    report = Report()

    def fail(line: str) -> None:
        report.errors.append(line)
        error(line)

    try:
        run = _Run(paths, options, settings(model, options))
        images.make_folder(options.out)
        hidden = options.out / manifest.HIDDEN
        hidden.mkdir(exist_ok=True)
        _share_cores()
        work = segment.Work(model, options, report)
        with _ended_tidily(), segment.using(options.backend), work_queue.joined(hidden, run.begin) as plan:
            run.check(plan)
            with closing(manifest.Journal(options.out)) as journal:
                for job in chain(progress(plan), plan.rest()):
                    trouble = None if job is None else run.one(job, plan, work, journal)
                    report.renamed.clear()  # the manifest tells
                    if trouble is not None:
                        fail(trouble)
            failed, wrong, skipped = plan.count(work_queue.FAILED), plan.about["errors"], plan.about["skipped"]
        if rank() == 0:
            with work_queue.alone(hidden):
                manifest.fold(options.out)
            for line in wrong:
                fail(line)
            report.skipped = formats.skipped(skipped) if skipped else None
            where = options.out / manifest.NAME
            report.folder = f"{len(plan) - failed} of {len(plan)} images are done, {failed} failed: {where}"
            if failed and not report.errors:
                fail(f"{failed} image{'s' * (failed != 1)} failed, {where} says why")
    except images.ImageError as reason:
        raise UserError(str(reason)) from reason
    except BrokenPipeError:
        raise
    except OSError as reason:
        raise UserError(f"{options.out}: {images.reason(reason)}") from reason
    return report


def settings(model: Network, options: Options) -> dict[str, Any]:
    """All that a result depends on, apart from the image, in JSON's types."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    chosen = {name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_IN_RESULTS}
    chosen["backend"] = options.backend or backends.requested()
    network = {"network": model.name, "classes": model.num_classes, "weights": digest.hexdigest()[:16]}
    return json.loads(json.dumps(chosen | network))  # "weights" is the digest, not the option that chooses some


class _Run:
    """What one process does in a folder of results."""

    def __init__(self, paths: Sequence[str], options: Options, settings: dict[str, Any]) -> None:
        self.out = options.out
        self.options = options
        self.paths = [os.path.abspath(path) for path in paths]
        self.settings = settings
        self.fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        if os.path.realpath(self.out) in map(os.path.realpath, self.paths):
            raise UserError(f"{self.out}: is one of PATHS, and results would be taken for images; choose another --out")

    def begin(self) -> None:
        """As the only process: fold what killed ones have left, and plan what is to be done."""
        self._check_settings()
        place = self.out / manifest.HIDDEN / work_queue.PLAN
        begun = {entry["input"]: b"%d" % times for entry, times in work_queue.unfinished(place)}
        place.unlink(missing_ok=True)
        found, errors, skipped = images.search(self.paths, self.options.recursive, leave_out=self.out)
        inputs = {file.path: file for file in found}
        records, names, failed = self._records(inputs)
        manifest.write(self.out, records)
        new = [file for key, file in inputs.items() if key not in names]
        made = images.output_names(new, self.out, segment.endings(self.options), chain.from_iterable(names.values()))
        names.update(zip([file.path for file in new], made, strict=True))
        begun |= dict.fromkeys(failed, work_queue.FAILED)
        entries = (
            (records.get(key) or json.dumps({"input": key, "outputs": names[key]}), begun.get(key, work_queue.NEW))
            for key in inputs
        )
        about = {"images": len(inputs), "paths": self.paths, "errors": errors, "skipped": skipped}
        work_queue.write(place, about, entries)

    def _records(self, inputs: Container[str]) -> tuple[dict[str, str], dict[str, list[str]], list[str]]:
        """Lines of the manifest by input, names of outputs by input, and which inputs failed before a restart."""
        records, names, failed = {}, {}, []
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        for key, line in manifest.read(self.out).items():
            record = json.loads(line)
            good = record["state"] == "done"
            if record["fingerprint"] == self.fingerprint and (good or key in inputs):
                records[key], names[key] = line, record["outputs"]
                if restarted and not good and record.get("run") == _run_id():
                    failed.append(key)
        return records, names, failed

    def check(self, plan: work_queue.Plan) -> None:
        """UserError where this process is not one of those that follow the plan."""
        self._check_settings()
        if plan.about["paths"] != self.paths:
            raise UserError(f"{self.out}: a run with other PATHS is going on in this folder")

    def one(self, job: work_queue.Job, plan: work_queue.Plan, work: Any, journal: manifest.Journal) -> str | None:
        """Bring one image to its end, and its end into the journal; what went wrong, in one line."""
        if manifest.holds(job.entry, self.out):
            plan.finish(job, done=True)
            return None
        path = Path(job.entry["input"])
        outputs = [self.out / name for name in job.entry["outputs"]]
        trouble: str | None = None
        stamps: list[list[int]] = []
        size: tuple[int | None, int | None] = (None, None)
        start = time.perf_counter()
        try:
            stamps, size = self._made(job, path, outputs, work)
        except images.ImageError as error:
            trouble = str(error)
        record = {
            "input": job.entry["input"],
            "outputs": job.entry["outputs"],
            "state": "done" if trouble is None else "failed",
            "reason": trouble and trouble.removeprefix(f"{path}: "),
            "height": size[0],
            "width": size[1],
            "milliseconds": round((time.perf_counter() - start) * 1000, 1),
            "rank": rank(),
            "run": _run_id(),
            "fingerprint": self.fingerprint,
            "stamps": stamps,
        }
        journal.append(record)
        plan.finish(job, done=trouble is None)
        return trouble

    def _made(self, job: work_queue.Job, path: Path, outputs: list[Path], work: Any) -> tuple[list, tuple[int, int]]:
        """Segment one image; its stamps and its size. Raises ImageError."""
        try:
            if job.begun:
                for output in outputs:
                    images.remove_unfinished(output)
            if job.begun >= MOST_DEATHS:
                raise images.ImageError(f"{path}: {job.begun} processes ended while they worked on it")
            stamps = [manifest.stamp(path)]  # before it is read: if it changes meanwhile, it is done again
            trouble = segment.attempt(work, path, outputs)
            if trouble is not None:
                raise images.ImageError(trouble)
            return stamps + [manifest.stamp(output) for output in outputs], images.size(outputs[0])
        except images.ImageError:
            raise
        except (OSError, ValueError) as error:
            place = getattr(error, "filename", None) or path
            raise images.ImageError(f"{place}: cannot be read ({images.reason(error)})") from error

    def _check_settings(self) -> None:
        path = self.out / manifest.HIDDEN / OPTIONS
        try:
            before = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            atomic.write(path, lambda beside: beside.write_text(json.dumps(self.settings, indent=1), "utf-8"))
            return
        except ValueError:
            before = {}
        for name in sorted(before | self.settings):
            if before.get(name) != self.settings.get(name):
                then, now = before.get(name), self.settings.get(name)
                raise UserError(f"{self.out}: has results with {name} {then}, here it is {now}; choose another --out")


def _run_id() -> str | None:
    return os.environ.get("TORCHELASTIC_RUN_ID")


def _share_cores() -> None:
    share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes() > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, share))


@contextmanager
def _ended_tidily() -> Iterator[None]:
    """SIGTERM, with which torchrun ends processes, lets them clean up within."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
