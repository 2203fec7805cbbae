"""The training loop. Options, seed and number determine every step, so that a killed run continues to the same losses,
and several processes give those of one."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import backends
from ..errors import UserError
from ..inference.segment import check_backend
from ..io import images
from ..models import outputs
from ..models.outputs import one_per_class
from . import data, preparing, processes, records, saving
from .augment import IGNORE
from .evaluate import evaluate
from .preparing import Options
from .scores import Counter, Scores

# Dtypes of --amp.
AMP = {"off": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# Wraps an iterable of a known length, as tqdm does.
Progress = Callable[[Iterable, int], Iterable]


def train(options: Options, say: Callable[[str], object] = print, progress: Progress = lambda items, _: items) -> None:
    """Train, and leave in options.out: best.safetensors, last.safetensors, metrics.csv, losses.csv and state.pt.

    say: gets lines of text, in the first process only. Raises UserError with one line.
    """
    check_backend(options.backend)
    with processes.joined(options.device) as device:
        if processes.rank() > 0:
            say, progress = _silent, lambda items, _: items
        preparing.check(options)
        if options.amp == "f16" and device.type != "cuda":
            raise UserError("--amp f16 needs a GPU; bf16 runs on CPUs too")
        with nullcontext() if options.backend is None else backends.use_backend(options.backend):
            _Run(options, device, say, progress).run(progress)


def poly(step: int, steps: int, power: float, warmup: int = 0) -> float:
    """Return the factor of the learning rates at a step from 0: rising over the warm-up, falling to 0 at the end.

    >>> poly(0, 100, 0.9), round(poly(50, 100, 0.9), 4), poly(0, 100, 0.9, warmup=4)
    (1.0, 0.5359, 0.25)
    """
    return min(1.0, (step + 1) / max(1, warmup)) * (1 - step / steps) ** power


def batches(count: int, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the order of one epoch: full batches of indices below count; a last, partial batch is left out.

    >>> sorted(index for indices in batches(5, 2, seed=0, epoch=3) for index in indices)
    [0, 1, 2, 3]
    """
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))
    order = random.permutation(count)[: count // batch * batch]
    return order.reshape(-1, batch).tolist()


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross entropy, summed over the pixels that count. logits: (N, classes, h, w); labels: int64 (N, H, W).

    One logit is that of class 1, with 0 for class 0: the cross entropy is then binary.
    """
    full = F.interpolate(one_per_class(logits).float(), labels.shape[1:], mode="bilinear", align_corners=True)
    return F.cross_entropy(full, labels, ignore_index=IGNORE, reduction="sum")


class _Run:
    """One training run in one process."""

    def __init__(
        self, options: Options, device: torch.device, say: Callable[[str], object], progress: Progress
    ) -> None:
        self.options, self.device, self.say = options, device, say
        loaded = preparing.load(options)
        self.data = preparing.find_data(options, loaded.num_classes if loaded else None)
        Counter(len(self.data.names))  # without torchmetrics, raise here and not after the first epoch
        self.samples = data.TrainingSet(
            self.data.train, len(self.data.names), preparing.augmentation(options), options.seed
        )
        self.model = preparing.network(options, loaded, self.data.logits)
        self.new_classifier = loaded is not None and self.model is not loaded
        preparing.check_batch(self.model, options)
        self.about_labels = processes.by_first(lambda tick: self._look(progress, tick)) or []
        self.model = self.model.to(device)
        self.steps_per_epoch = len(self.samples) // options.batch
        self.steps = self.steps_per_epoch * options.epochs
        groups = preparing.parameter_groups(self.model, options.encoder_lr, options.decoder_lr)
        self.optimizer = torch.optim.SGD(groups, momentum=options.momentum, weight_decay=options.weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "f16")
        self.losses: list[float] = []
        self.rows: list[dict[str, Any]] = []
        # time of this epoch, with that of earlier runs
        self.seconds = 0.0
        self._open()
        self.parallel: nn.Module = self.model
        if processes.count() > 1:
            processes.synchronise(self.model)
            self.parallel = nn.parallel.DistributedDataParallel(self.model)

    @property
    def step(self) -> int:
        """Return the number of steps done."""
        return len(self.losses)

    def run(self, progress: Progress) -> None:
        """Train all epochs that are left."""
        self._say_beginning()
        board = self.options.out / "tensorboard" if self.options.tensorboard and processes.rank() == 0 else None
        self.board = records.Board(board, self.step, self.say)
        self.say(records.HEADER)
        for row in self.rows:
            self.say(records.line(row, self.options.epochs))
        try:
            for epoch in range(len(self.rows), self.options.epochs):
                self._epoch(epoch, progress)
        finally:
            self.board.close()
        best = max((row["mean_iou"] for row in self.rows if not math.isnan(row["mean_iou"])), default=None)
        if best is not None:
            self.say(f"best mean IoU {best:.4f}: {self.options.out / 'best.safetensors'}")
        self.say(f"last weights: {self.options.out / 'last.safetensors'}")

    def _epoch(self, epoch: int, progress: Progress) -> None:
        """Train one epoch, validate, and save."""
        start = time.perf_counter() - self.seconds
        preparing.begin_training(self.model, self.options.freeze_bn)
        done = self.step - epoch * self.steps_per_epoch
        rates: list[float] = [group["lr"] for group in self.optimizer.param_groups]
        for batch in progress(self._loader(epoch, done), self.steps_per_epoch - done):
            if isinstance(batch, data.DataError):
                raise batch
            x, labels = batch
            rates = self._step(x.to(self.device), labels.to(self.device))
            self.board.add(self.step, {"loss": self.losses[-1], "encoder_lr": rates[0], "decoder_lr": rates[1]})
            if self.step % self.options.save_every == 0 and self.step < (epoch + 1) * self.steps_per_epoch:
                self.seconds = time.perf_counter() - start
                self._save()
        scores = self._validate(progress)
        loss = float(np.mean(self.losses[-self.steps_per_epoch :]))
        seconds = time.perf_counter() - start
        row = records.row(epoch + 1, self.step, rates, loss, scores, self.data.names, seconds)
        earlier = [row["mean_iou"] for row in self.rows]
        self.rows.append(row)
        self.seconds = 0.0
        self.say(records.line(row, self.options.epochs))
        self.board.add(self.step, {name: row[name] for name in ("mean_iou", "pixel_accuracy")})
        self._export("last", row)
        if scores is not None and row["mean_iou"] > max(earlier, default=-1):
            self._export("best", row)
        self._save()

    def _loader(self, epoch: int, done: int) -> DataLoader:
        """Return the batches of this process after the first `done` ones."""
        order = batches(len(self.samples), self.options.batch, self.options.seed, epoch)[done:]
        share = [[(epoch, i) for i in batch[processes.rank() :: processes.count()]] for batch in order]
        return DataLoader(
            self.samples,  # type: ignore[arg-type]  # it has the methods that DataLoader calls
            batch_sampler=share,
            num_workers=self.options.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )

    def _step(self, x: Tensor, labels: Tensor) -> list[float]:
        """Do one step over this process's part of a batch; return the learning rates it used."""
        # the step determines dropout, so no state of random numbers need be saved
        torch.manual_seed(_seed(self.options.seed, self.step, processes.rank()))
        factor = poly(self.step, self.steps, self.options.power, self.options.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        dtype = AMP[self.options.amp]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            logits = self.parallel(x)
        pixels = processes.total((labels != IGNORE).sum()).clamp_min(1)
        loss = loss_sum(logits, labels) / pixels
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages the gradients over processes; the loss needs their sum
        self.scaler.scale(loss * processes.count()).backward()
        value = float(processes.total(loss.detach()))
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {self.step + 1}: try lower learning rates, or --clip 1")
        if self.options.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.append(value)
        return [group["lr"] for group in self.optimizer.param_groups]

    def _validate(self, progress: Progress) -> Scores | None:
        if not self.data.val:
            return None
        self.model.eval()
        scores, _ = evaluate(self.model, self.data.val, progress=lambda pairs: progress(pairs, len(pairs)))
        return scores

    def _look(self, progress: Progress, tick: Callable[[], object]) -> list[str]:
        label_map = preparing.label_map_of(self.options.map_labels)
        return preparing.look(self.data, label_map, lambda pairs: progress(pairs, len(pairs)), tick)

    def _open(self) -> None:
        """Make the folder, and load the state in it."""
        out = self.options.out
        try:
            images.make_folder(out)
        except images.ImageError as error:
            raise UserError(str(error)) from error
        state = saving.load_state(out)
        if state is None:
            return
        if not self.options.resume:
            raise UserError(f"{out}: holds a run already; --resume continues it")
        for name, value in self._about().items():
            if state["about"].get(name) != value:
                raise UserError(f"{out}: was begun with {name} {state['about'].get(name)}, now it is {value}")
        with saving.resuming(out):
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.losses, self.rows = state["losses"].tolist(), list(state["rows"])
            self.seconds = float(state["seconds"])
        if processes.rank() == 0:
            # a killed run may have written more of one file than of another
            records.write_csv(out, self.rows, self.losses)

    def _save(self) -> None:
        if processes.rank() > 0:
            return
        saving.save_state(
            self.options.out,
            {
                "about": self._about(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "losses": torch.tensor(self.losses, dtype=torch.float64),
                "rows": self.rows,
                "seconds": self.seconds,
            },
        )
        records.write_csv(self.options.out, self.rows, self.losses)

    def _export(self, name: str, row: dict[str, Any]) -> None:
        if processes.rank() > 0:
            return
        about = {key: row[key] for key in ("epoch", "mean_iou")} | {"classes": ", ".join(self.data.names)}
        saving.export(self.options.out / f"{name}.safetensors", self.model, about, self.options.half)

    def _about(self) -> dict[str, Any]:
        return self.options.decisive() | {"network": self.model.name, "images": len(self.samples)}

    def _say_beginning(self) -> None:
        """Say what is trained, from what, on what data."""
        start = self.options.checkpoint or "random weights"
        if self.new_classifier:
            start += ", with a new classifier"
        self.say(f"{self.model.name}, {outputs.classes(self.data.logits)}, from {start}")
        validation = f"{len(self.data.val)} to validate with" if self.data.val else "none to validate with"
        count = processes.count()
        self.say(
            f"{len(self.samples)} images, {validation}; {self.steps} steps of {self.options.batch} on "
            f"{self.device.type}" + (f", {count} processes" if count > 1 else "")
        )
        unused = preparing.unused_names(self.options, self.data.names)
        for line in self.about_labels if unused is None else [unused, *self.about_labels]:
            self.say(line)
        if self.step:
            self.say(f"resumed after step {self.step}")


def _collate(samples: Sequence[tuple[Tensor, Tensor] | data.DataError]) -> tuple[Tensor, Tensor] | data.DataError:
    """Return a batch (n, 3, crop, crop) and (n, crop, crop), or the first error in it."""
    good = []
    for sample in samples:
        if isinstance(sample, data.DataError):
            return sample
        good.append(sample)
    return torch.cat([x for x, _ in good]), torch.cat([labels for _, labels in good])


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _silent(_: str) -> None:
    pass
