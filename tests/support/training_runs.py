"""Small runs of training, and their files."""

import csv
from pathlib import Path

import numpy as np

MARK = "lwrn-fast: error: "
SMALL = ["--crop", "64", "--batch", "2", "--scales", "0.8", "1.25", "--encoder-lr", "0.01", "--decoder-lr", "0.01"]
SMALL += ["--clip", "1", "--device", "cpu", "--save-every", "2"]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses(out: Path) -> list[float]:
    return [float(row["loss"]) for row in read_csv(out / "losses.csv")]


def metrics(out: Path) -> np.ndarray:
    """Return all numbers of all epochs but the seconds."""
    return np.array([[float(row[name]) for name in row if name != "seconds"] for row in read_csv(out / "metrics.csv")])
