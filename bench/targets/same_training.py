"""Training with fused blocks, or in two processes, compared with plain PyTorch's.

`python bench/targets/same_training.py [tuned]`: one seed, float32, the same steps of rf_lw_mbv2 on generated data.
Float32 rounds, and every rounding grows from step to step, so the measure is what PyTorch alone does when its sums are
in another order: with two threads instead of one. From random weights roundings grow to visible differences of the
curves; `tuned` begins with trained weights and a hundredth of the rates, where they do not. Writes
bench/results/same_training.md, or same_training_tuned.md, and the losses in build/ under the same name, as .csv and
.svg. Needs matplotlib and the extra train.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from lwrn_fast.models import SHAPES
from lwrn_fast.profiling import machine, text

ROOT = Path(__file__).parents[2]
RESULTS, BUILD = ROOT / "bench" / "results", ROOT / "build"
REFERENCE, NOISE = "reference, 1 thread", "reference, 2 threads"
# Name to backend, threads and processes.
RUNS = {
    REFERENCE: ("reference", 1, 1),
    NOISE: ("reference", 2, 1),
    "fused": ("cpu", 1, 1),
    "fused, 2 processes": ("cpu", 1, 2),
}
# Steps of a mean.
WINDOW = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("start", nargs="?", choices=["random", "tuned"], default="random")
    arguments = parser.parse_args()
    rate = 0.05 if arguments.start == "random" else 0.0005
    weights = [] if arguments.start == "random" else ["--checkpoint", SHAPES]
    images = arguments.steps * arguments.batch * 10 // 8  # 8 in 10 of them are trained on, each once
    losses, scores = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        _lwrn_fast("generate", data, "--images", images, "--size", arguments.crop, arguments.crop)
        for name, (backend, threads, processes) in RUNS.items():
            out = Path(folder) / name.replace(" ", "_")
            steps = ["--epochs", 1, "--batch", arguments.batch, "--crop", arguments.crop, "--scales", 1, 1, "--clip", 1]
            rates = ["--encoder-lr", rate, "--decoder-lr", rate, "--warmup", 20]
            given = ["train", data, "--out", out, "--backend", backend, "--device", "cpu", *steps, *rates, *weights]
            _lwrn_fast(*given, threads=threads, processes=processes)
            with (out / "losses.csv").open(encoding="utf-8") as file:
                losses[name] = np.array([float(row["loss"]) for row in csv.DictReader(file)])
            given = ["eval", data, "--split", "test", "--checkpoint", out / "last.safetensors", "--backend", backend]
            _lwrn_fast(*given, "--device", "cpu", "--out", out / "scores.json", threads=threads, processes=processes)
            scores[name] = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    write(losses, scores, arguments)


def write(losses: dict[str, np.ndarray], scores: dict[str, dict], arguments: argparse.Namespace) -> None:
    BUILD.mkdir(exist_ok=True)
    name = "same_training" if arguments.start == "random" else "same_training_tuned"
    with (BUILD / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", *losses])
        rows.writerows([i + 1, *map(float, step)] for i, step in enumerate(zip(*losses.values(), strict=True)))
    smooth = {run: np.convolve(values, np.ones(WINDOW) / WINDOW, "valid") for run, values in losses.items()}
    page = report(losses, smooth, scores, arguments)
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)
    plot(smooth, BUILD / f"{name}.svg")


def report(losses: dict, smooth: dict, scores: dict, arguments: argparse.Namespace) -> str:
    first = f"{arguments.steps} steps of {arguments.batch} crops of {arguments.crop} pixels, float32, one seed, "
    first += "from random weights." if arguments.start == "random" else "from trained weights."
    lines = ["# Is it the same training?", "", first, "Machine: " + ", ".join(machine.describe().values()) + ".", ""]
    lines.append(f"Loss: of step 1, then means of {WINDOW} steps until the one named. Difference: the largest one of")
    lines.append(f"these means from {REFERENCE}. Scores: of the held-out test split, by the same backend.")
    marks = [step for step in (50, 100, 200, 300) if step <= arguments.steps]
    rows = [["run", "1", *map(str, marks), "difference", "mean IoU", "pixel accuracy"]]
    for name, values in losses.items():
        means = [f"{smooth[name][step - WINDOW]:.4f}" for step in marks]
        difference = np.abs(smooth[name] - smooth[REFERENCE]).max()
        reached = [f"{scores[name][key]:.4f}" for key in ("mean_iou", "pixel_accuracy")]
        rows.append([name, f"{values[0]:.6f}", *means, f"{difference:.4f}", *reached])
    return "\n".join([*lines, "", text.markdown(rows)]) + "\n"


def plot(smooth: dict[str, np.ndarray], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "same_training"  # the same file from the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, values in smooth.items():
        axes.plot(np.arange(len(values)) + WINDOW, values, label=name, linewidth=1)
    axes.set(xlabel="step", ylabel=f"loss, mean of {WINDOW} steps")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def _lwrn_fast(*arguments: object, threads: int = 1, processes: int = 1) -> None:
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [sys.executable, "-m", *(several if processes > 1 else []), "lwrn_fast", *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


if __name__ == "__main__":
    main()
