"""Test scores of a checkpoint in float32, bfloat16, float16 and int8, with PyTorch's blocks and ours, on a CPU.

`python bench/targets/precision.py DATA [--checkpoint FILE] [--images N] [--dtypes f32 ...]`; the data sheet of the
checkpoint says how DATA is made. Writes bench/results/precision.json, in which rows of other dtypes stay, and
precision.md. int8 is torchao's static quantisation, simulated in float32: of rf_lw_mbv2 it takes the 53 convolutions of
encoder and classifier, and leaves the decoder's blocks in float32, PyTorch's like ours. Needs torchao and the extra
train.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lwrn_fast import backends, models
from lwrn_fast.models.networks import Network
from lwrn_fast.profiling import machine, text
from lwrn_fast.training import data
from lwrn_fast.training.evaluate import evaluate

ROWS = Path(__file__).parents[1] / "results" / "precision.json"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "int8": torch.float32}
BACKENDS = {"reference": "reference", "fused": "cpu"}
# Images that int8 is calibrated with.
CALIBRATION = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", default=models.SHAPES, help="default: the package's")
    parser.add_argument("--images", type=int, default=100, help="the first so many of the test split (100)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    arguments = parser.parse_args()
    pairs = data.find(arguments.data, "test")[: arguments.images]
    rows = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else {}
    for dtype in arguments.dtypes:
        for name, backend in BACKENDS.items():
            with backends.use_backend(backend), torch.no_grad():
                model = models.load(arguments.checkpoint).to(DTYPES[dtype])
                if dtype == "int8":
                    model = Quantised(model, data.find(arguments.data, "train")[:CALIBRATION])
                scores, _ = evaluate(model, pairs)
            rows[f"{dtype}, {name}"] = {
                "mean_iou": scores.mean_iou,
                "pixel_accuracy": scores.pixel_accuracy,
                "images": len(pairs),
                "machine": machine.describe(),
            }
    ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    ROWS.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def table(rows: dict) -> str:
    lines = [["type, blocks", "mean IoU", "pixel accuracy", "test images"]]
    for name, row in rows.items():
        lines.append([name, f"{row['mean_iou']:.4f}", f"{row['pixel_accuracy']:.4f}", str(row["images"])])
    return f"# How much precision the network needs\n\n{text.markdown(lines)}\n"


class Quantised(nn.Module):
    """A model in int8, for images of the size of those that it is calibrated with."""

    def __init__(self, model: Network, pairs: Sequence[data.Pair]) -> None:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        super().__init__()
        self.num_classes = model.num_classes
        self.input_like = nn.Parameter(torch.zeros(1))  # says the device and dtype of inputs
        inputs = [models.preprocess(data.read(pair, model.num_classes)[0]) for pair in pairs]
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(model, (inputs[0],)).module(), quantizer)
        for x in inputs:
            prepared(x)
        self.converted = convert_pt2e(prepared)

    def forward(self, x: Tensor) -> Tensor:
        return self.converted(x)


if __name__ == "__main__":
    main()
