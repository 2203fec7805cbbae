"""Scores of label maps: mean IoU, IoU and accuracy per class, pixel accuracy, confusion matrix."""

import csv
import io
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .augment import IGNORE


class Counter:
    """Counts of pixels by true and predicted class, by torchmetrics, in integers, exact over all processes."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        try:
            from torchmetrics.classification import MulticlassConfusionMatrix
        except ImportError as error:
            raise UserError("metrics need torchmetrics: pip install 'lwrn-fast[train]'") from error
        self.num_classes = num_classes
        self._metric = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE, validate_args=False).to(device)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Add two maps of one shape, of integers below num_classes; pixels with the label 255 do not count."""
        self._metric.update(predicted.long(), labels.long())

    def scores(self) -> "Scores":
        """Return the scores of everything that all processes have added; every process must call it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about nothing added, which the scores show
            counts = self._metric.compute()
        return Scores(counts.reshape(self.num_classes, self.num_classes).cpu())


@dataclass(frozen=True)
class Scores:
    """Scores from a confusion matrix, int64 (classes, classes): rows are true classes, columns predicted ones.

    >>> scores = Scores(torch.tensor([[3, 1], [0, 4]]))
    >>> round(scores.mean_iou, 4), scores.pixel_accuracy
    (0.775, 0.875)
    """

    confusion: Tensor

    @property
    def iou(self) -> list[float]:
        """Return per class the correct pixels over all that are or were predicted as it; NaN if it never occurs."""
        correct = self.confusion.diagonal().double()
        return (correct / (self.confusion.sum(0) + self.confusion.sum(1) - correct)).tolist()

    @property
    def accuracy(self) -> list[float]:
        """Return per class the correct pixels over its pixels; NaN for a class without any."""
        return (self.confusion.diagonal().double() / self.confusion.sum(1)).tolist()

    @property
    def mean_iou(self) -> float:
        """Return the mean over classes that occur in the labels or the predictions; NaN without any pixel."""
        occurring = [value for value in self.iou if not math.isnan(value)]
        return sum(occurring) / len(occurring) if occurring else math.nan

    @property
    def pixel_accuracy(self) -> float:
        """Return the correct pixels over all that count; NaN without any."""
        return float(self.confusion.diagonal().sum().double() / self.confusion.sum())

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return one row per class: class, name, pixels, iou, accuracy (None where it is NaN)."""
        columns = zip(names, self.confusion.sum(1).tolist(), self.iou, self.accuracy, strict=True)
        return [
            {"class": i, "name": name, "pixels": pixels, "iou": known(iou), "accuracy": known(accuracy)}
            for i, (name, pixels, iou, accuracy) in enumerate(columns)
        ]

    def table(self, names: Sequence[str], images: Sequence[int] | None = None) -> str:
        """Return a text table. images: the number of label maps with each class, as another column."""
        width = max(14, *map(len, names))
        lines = [f"{'class':{width}}{'IoU':>9}{'accuracy':>10}{'pixels':>13}{'' if images is None else '  images'}"]
        for i, row in enumerate(self.rows(names)):
            last = "" if images is None else f"{images[i]:8}"
            scores = f"{_cell(row['iou']):>9}{_cell(row['accuracy']):>10}"
            lines.append(f"{row['name']:{width}}{scores}{row['pixels']:13,}{last}")
        pixels = int(self.confusion.sum())
        lines.append(f"{'mean / all':{width}}{_cell(self.mean_iou):>9}{_cell(self.pixel_accuracy):>10}{pixels:13,}")
        return "\n".join(lines)

    def confusion_table(self, names: Sequence[str]) -> str:
        """Return the confusion matrix in percent of each true class, as text."""
        width = max(14, *map(len, names))
        lines = [f"{'true, predicted':{width}} " + "".join(f"{i:6}" for i in range(len(names)))]
        for i, (name, row) in enumerate(zip(names, self.confusion.tolist(), strict=True)):
            shares = "".join(f"{100 * count / max(1, sum(row)):6.1f}" for count in row)
            lines.append(f"{f'{i} {name}'[:width]:{width}} {shares}")
        return "\n".join(lines)

    def to_json(self, names: Sequence[str], **about: Any) -> str:
        """Return everything as JSON, after the items of `about`."""
        content = {
            **about,
            "mean_iou": known(self.mean_iou),
            "pixel_accuracy": known(self.pixel_accuracy),
            "classes": self.rows(names),
            "confusion": self.confusion.tolist(),
        }
        return json.dumps(content, indent=1) + "\n"

    def to_csv(self, names: Sequence[str]) -> str:
        """Return the rows as CSV, and a last one for the mean IoU and the pixel accuracy."""
        rows = self.rows(names)
        pixels = int(self.confusion.sum())
        last = {"name": "mean / all", "pixels": pixels, "iou": self.mean_iou, "accuracy": self.pixel_accuracy}
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, last])
        return text.getvalue()


def known(value: float) -> float | None:
    """Return the value, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
