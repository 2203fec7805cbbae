"""Large folders of images: `lwrn-fast segment --resume`, and any number of processes that torchrun starts.

    torchrun --nproc-per-node 8 --max-restarts 3 -m lwrn_fast segment photos/ --out labels --checkpoint FILE

The processes share out the images (`work_queue`) through the folder of the results and nothing else: they may run on
several machines, at the same paths, may be killed, and others may join later. The result of every image stands in the
folder's `manifest.jsonl` (`manifest`). An image that is done is skipped, unless it or its results have changed since.
One that failed is tried again, but not when torchrun restarts its own processes. An image over which MAX_DEATHS
processes have ended counts as failed. A folder has the results of one set of weights and options; others are refused.

The process of rank 0 ends last, with exit code 2 where images failed; the others end with 0, for torchrun ends all
when one fails. torchrun itself then ends with 1; if it may restart, it does, and nothing is left to do. It sets
OMP_NUM_THREADS to 1 where that is not set: start a process for each core, or set it. Other launchers' processes share
the cores.
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
from ..errors import UserError, reason
from ..io import atomic, formats, images
from ..models.networks import Network
from . import manifest, segment, work_queue
from .segment import Options, Report

# Processes that may end over an image before it counts as failed.
MAX_DEATHS = 3
# File of the options of a folder's results.
OPTIONS = "options.json"
# Options that change no result, or only through the model and its weights.
NOT_IN_RESULTS = {
    *("out", "network", "checkpoint", "num_classes", "weights"),
    *("verify", "recursive", "resume", "device", "max_pixels"),
}


def processes() -> int:
    """Return the number of processes that torchrun, or another launcher, has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def run(
    paths: Sequence[str],
    options: Options,
    model: Network,
    error: Callable[[str], object],
    progress: Callable[[Any], Iterable] = iter,
) -> Report:
    """Segment as `segment.run`, together with all other processes that do so with the same `options.out`.

    The report covers the work of this process; rank 0 has one more error where images failed in any process.
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
        with _sigterm_exits(), segment.using(options.backend), work_queue.joined(hidden, run.begin) as plan:
            run.check(plan)
            with closing(manifest.Journal(options.out)) as journal:
                for job in chain(progress(plan), plan.rest()):
                    line = None if job is None else run.one(job, plan, work, journal)
                    report.renamed.clear()  # stands in the manifest
                    if line is not None:
                        fail(line)
            failed, errors, skipped = plan.count(work_queue.FAILED), plan.about["errors"], plan.about["skipped"]
        if rank() == 0:
            with work_queue.alone(hidden):
                manifest.fold(options.out)
            for line in errors:
                fail(line)
            report.skipped = formats.skipped(skipped) if skipped else None
            path = options.out / manifest.NAME
            report.folder = f"{len(plan) - failed} of {len(plan)} images are done, {failed} failed: {path}"
            if failed and not report.errors:
                fail(f"{failed} image{'s' * (failed != 1)} failed, {path} says why")
    except (UserError, BrokenPipeError):
        raise
    except OSError as why:
        raise UserError(f"{options.out}: {reason(why)}") from why
    return report


def settings(model: Network, options: Options) -> dict[str, Any]:
    """Return everything that a result depends on, apart from the image, in JSON's types."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    chosen = {name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_IN_RESULTS}
    chosen["backend"] = options.backend or backends.requested()
    network = {"network": model.name, "classes": model.num_classes, "weights": digest.hexdigest()[:16]}
    return json.loads(json.dumps(chosen | network))  # "weights" is the digest, not the option that chooses some


class _Run:
    """The work of one process in a folder of results."""

    def __init__(self, paths: Sequence[str], options: Options, settings: dict[str, Any]) -> None:
        self.out = options.out
        self.options = options
        self.paths = [os.path.abspath(path) for path in paths]
        self.settings = settings
        self.fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        if os.path.realpath(self.out) in map(os.path.realpath, self.paths):
            raise UserError(f"{self.out}: is one of PATHS, and results would be taken for images; choose another --out")

    def begin(self) -> None:
        """Fold the journals of killed processes and write the plan; this must be the only process."""
        self._check_settings()
        path = self.out / manifest.HIDDEN / work_queue.PLAN
        begun = {entry["input"]: b"%d" % times for entry, times in work_queue.unfinished(path)}
        path.unlink(missing_ok=True)
        files, errors, skipped = images.search(self.paths, self.options.recursive, leave_out=self.out)
        inputs = {file.path: file for file in files}
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
        work_queue.write(path, about, entries)

    def _records(self, inputs: Container[str]) -> tuple[dict[str, str], dict[str, list[str]], list[str]]:
        """Return by input the manifest's lines and the outputs' names, and the inputs that failed before a restart."""
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
        """Raise UserError where this process is not one of those that follow the plan."""
        self._check_settings()
        if plan.about["paths"] != self.paths:
            raise UserError(f"{self.out}: a run with other PATHS is going on in this folder")

    def one(self, job: work_queue.Job, plan: work_queue.Plan, work: Any, journal: manifest.Journal) -> str | None:
        """Finish one image and note it in the journal; return its error in one line, None where there is none."""
        if manifest.holds(job.entry, self.out):
            plan.finish(job, done=True)
            return None
        path = Path(job.entry["input"])
        outputs = [self.out / name for name in job.entry["outputs"]]
        error: str | None = None
        stamps: list[list[int]] = []
        size: tuple[int | None, int | None] = (None, None)
        start = time.perf_counter()
        try:
            stamps, size = self._made(job, path, outputs, work)
        except images.ImageError as why:
            error = str(why)
        record = {
            "input": job.entry["input"],
            "outputs": job.entry["outputs"],
            "state": "done" if error is None else "failed",
            "reason": error and error.removeprefix(f"{path}: "),
            "height": size[0],
            "width": size[1],
            "milliseconds": round((time.perf_counter() - start) * 1000, 1),
            "rank": rank(),
            "run": _run_id(),
            "fingerprint": self.fingerprint,
            "stamps": stamps,
        }
        journal.append(record)
        plan.finish(job, done=error is None)
        return error

    def _made(self, job: work_queue.Job, path: Path, outputs: list[Path], work: Any) -> tuple[list, tuple[int, int]]:
        """Segment one image; return its stamps and its size. Raises ImageError."""
        try:
            if job.begun:
                for output in outputs:
                    atomic.remove_unfinished(output)
            if job.begun >= MAX_DEATHS:
                raise images.ImageError(f"{path}: {job.begun} processes ended while they worked on it")
            stamps = [manifest.stamp(path)]  # before it is read: if it changes meanwhile, it is done again
            line = segment.attempt(work, path, outputs)
            if line is not None:
                raise images.ImageError(line)
            return stamps + [manifest.stamp(output) for output in outputs], images.size(outputs[0])
        except images.ImageError:
            raise
        except (OSError, ValueError) as error:
            file = getattr(error, "filename", None) or path
            raise images.ImageError(f"{file}: cannot be read ({reason(error)})") from error

    def _check_settings(self) -> None:
        path = self.out / manifest.HIDDEN / OPTIONS
        try:
            before = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            atomic.write_text(path, json.dumps(self.settings, indent=1))
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
def _sigterm_exits() -> Iterator[None]:
    """Let SIGTERM, with which torchrun ends processes, raise SystemExit within, so that they clean up."""
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
