"""The command `lwrn-fast export`."""

import argparse
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from .. import models
from ..errors import UserError, as_user_error, first_line
from ..io import atomic
from . import building
from .command import Command
from .options import adder, fill

ENDINGS = {"onnx": ".onnx", "aoti": ".pt2", "safetensors": ".safetensors"}
RUN_BY = {"onnx": "run by ONNX Runtime", "aoti": "run as compiled", "safetensors": "read back"}
# Largest difference of a logit from PyTorch's, relative to the largest logit.
MAX_DIFFERENCE = 1e-4
# Largest share of labels that differ: where two logits are nearly equal, their order is chance.
MAX_LABELS = 0.01


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = adder(parser)
    add("--to", required=True, choices=ENDINGS, help="ONNX of standard operators; a package for CPUs; the weights")
    add("--out", required=True, type=Path, metavar="FILE", help="ending in .onnx, .pt2 or .safetensors")
    add("--model")
    add("--checkpoint")
    add("--weights")
    add("--num-classes")
    add("--size")
    add("--dynamic", action="store_true", help="for any batch, height and width")
    add("--labels", action="store_true", help="end with the label map, uint8, of the size of the input")


def run(arguments: argparse.Namespace) -> int:
    """Write the file, compare it with PyTorch, and print the difference."""
    target, out = arguments.to, arguments.out
    _check(arguments)
    with building.importing(building.NEEDS_CLI):
        from .. import export
        from ..inference import segment
    size = tuple(arguments.size or (512, 512))
    with as_user_error(str, ImportError), atomic.writing(out, OSError), _exporting(out, target):
        model, _ = building.build(fill(segment.Options, arguments, size=None))
        if target == "safetensors":
            export.to_safetensors(model, out)
        else:
            to = export.to_onnx if target == "onnx" else export.to_aoti
            image = torch.zeros(1, 3, *size, dtype=torch.float32)
            to(model, image, out, dynamic=arguments.dynamic, labels=arguments.labels)
    taken = f", for {_shape(size, arguments.dynamic)} float32" if target != "safetensors" else ""
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB{taken}", flush=True)
    print(_compare(arguments, model, size))
    return 0


def _exporting(out: Path, target: str) -> AbstractContextManager[None]:
    """Turn errors into a UserError that names the file: no compiler, not captured, or too large for this machine."""
    classes = (RuntimeError, ValueError, TypeError, MemoryError)
    return as_user_error(lambda error: f"{out}: {first_line(error).removeprefix(f'to_{target}: ')}", *classes)


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError where the options do not go together."""
    target, out = arguments.to, arguments.out
    if out.suffix != ENDINGS[target]:
        raise UserError(f"--out must end in {ENDINGS[target]} for {target}, got {str(out)!r}")
    graph = {"--size": arguments.size, "--dynamic": arguments.dynamic, "--labels": arguments.labels}
    if target == "safetensors" and any(graph.values()):
        given = next(name for name, value in graph.items() if value)
        raise UserError(f"{given} is not for safetensors, which holds weights alone")


def _compare(arguments: argparse.Namespace, model: models.base.Network, size: tuple[int, ...]) -> str:
    """Run the file, a dynamic one with a second size too, and return its difference from PyTorch in a line.

    Raises UserError where it does not run or differs by more than MAX_DIFFERENCE or MAX_LABELS.
    """
    from .. import export

    shapes = [(1, 3, *size)]
    if arguments.dynamic:
        shapes.append((2, 3, size[0] // 2 + 7, size[1] // 2 + 9))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes]
    try:
        difference = max(export.compare(arguments.out, model, x, arguments.labels) for x in inputs)
    except ImportError as error:
        return f"not compared with PyTorch ({error})"
    except Exception as error:  # runtimes have errors of their own
        raise UserError(f"{arguments.out}: does not run: {first_line(error)}") from error
    text = f"{100 * difference:.4f} % of the labels" if arguments.labels else f"{difference:.1e} of the largest value"
    if not difference <= (MAX_LABELS if arguments.labels else MAX_DIFFERENCE):  # NaN too
        raise UserError(f"{arguments.out}: differs from PyTorch by {text}")
    return f"{RUN_BY[arguments.to]}: difference to PyTorch {text}"


def _shape(size: tuple[int, ...], dynamic: bool) -> str:
    return "any (N, 3, H, W)" if dynamic else f"(1, 3, {size[0]}, {size[1]})"


COMMAND = Command("export", "a network as a file for other programs", add_options, run)
