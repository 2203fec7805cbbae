"""Record the numbers of a run: a table in the terminal, metrics.csv, losses.csv and, if asked for, TensorBoard."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import saving
from .scores import Scores

# The head of the table in the terminal.
HEADER = f"{'epoch':>9}{'step':>9}{'decoder lr':>12}{'loss':>10}{'mean IoU':>10}{'accuracy':>10}{'s':>8}"


def row(
    epoch: int,
    step: int,
    rates: Sequence[float],
    loss: float,
    scores: Scores | None,
    names: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """Return one epoch's numbers in plain types; the scores are NaN without validation. rates: encoder's, decoder's."""
    iou = scores.iou if scores else [math.nan] * len(names)
    return {
        "epoch": epoch,
        "step": step,
        "encoder_lr": rates[0],
        "decoder_lr": rates[1],
        "loss": loss,
        "mean_iou": scores.mean_iou if scores else math.nan,
        "pixel_accuracy": scores.pixel_accuracy if scores else math.nan,
        "seconds": round(seconds, 2),
        **{f"iou_{name}": value for name, value in zip(names, iou, strict=True)},
    }


def line(row: Mapping[str, Any], epochs: int) -> str:
    """Format a row for the terminal, under HEADER."""
    scores = "".join(
        f"{'-' if math.isnan(row[name]) else format(row[name], '.4f'):>10}" for name in ("mean_iou", "pixel_accuracy")
    )
    epoch = f"{row['epoch']}/{epochs}"
    return f"{epoch:>9}{row['step']:9}{row['decoder_lr']:12.2e}{row['loss']:10.4f}{scores}{row['seconds']:8.1f}"


def write_csv(folder: Path, rows: Sequence[Mapping[str, Any]], losses: Sequence[float]) -> None:
    """Write all epochs so far, and the loss of every step, counted from 1."""
    if rows:
        saving.write_text(folder / "metrics.csv", _csv(list(rows[0]), [row.values() for row in rows]))
    saving.write_text(folder / "losses.csv", _csv(["step", "loss"], enumerate(losses, start=1)))


def _csv(header: Sequence[str], rows: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


class Board:
    """TensorBoard's files, or nothing without a folder or where it is not installed, which `say` gets a line about."""

    def __init__(self, folder: Path | None, step: int, say: Callable[[str], object]) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            say("TensorBoard is not installed, so nothing is written for it: pip install tensorboard")
        else:
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)  # later entries of a killed run are void

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers by name at a step."""
        if self._writer is not None:
            for name, value in values.items():
                if not math.isnan(value):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
