"""The command `lwrn-fast export`: parse, call, compare, print."""

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import models
from ..models import outputs
from .terminal import say_error, whole

NEEDS = "this command needs Pillow and safetensors: pip install 'lwrn-fast[cli]'"
ENDINGS = {"onnx": ".onnx", "aoti": ".pt2", "safetensors": ".safetensors"}
RUN_BY = {"onnx": "run by ONNX Runtime", "aoti": "run as compiled", "safetensors": "read back"}
MOST_DIFFERENCE = 1e-4
MOST_LABELS = 0.01
"""Share that may differ: where two logits are nearly equal, their order is chance."""


def add_commands(commands: Any) -> None:
    """Add the command to what add_subparsers gave."""
    parser = commands.add_parser("export", help="a network as a file for other programs", allow_abbrev=False)
    parser.set_defaults(command=_export)
    add = parser.add_argument
    add("--to", required=True, choices=ENDINGS, help="ONNX of standard operators; a package for CPUs; the weights")
    add("--out", required=True, type=Path, metavar="FILE", help="ending in .onnx, .pt2 or .safetensors")
    add("--model", choices=models.NETWORKS, help="network; default: the checkpoint's, or rf_lw_mbv2")
    add("--checkpoint", metavar="FILE", help="weights, .pth.tar or .safetensors; without: untrained")
    add("--weights", metavar="WHICH", help="of several in it: ema, model or their key; default: ema")
    add("--num-classes", type=whole, metavar="N", help="default: the checkpoint's, or 21")
    add("--size", nargs=2, type=whole, metavar=("H", "W"), help="of the input; default: 512 512")
    add("--dynamic", action="store_true", help="for any batch, height and width")
    add("--labels", action="store_true", help="end with the label map, uint8, of the size of the input")


def _export(arguments: argparse.Namespace) -> int:
    kind, out = arguments.to, arguments.out
    if out.suffix != ENDINGS[kind]:
        return say_error(f"--out must end in {ENDINGS[kind]} for {kind}, got {str(out)!r}")
    graph = {"--size": arguments.size, "--dynamic": arguments.dynamic, "--labels": arguments.labels}
    if kind == "safetensors" and any(graph.values()):
        given = next(name for name, value in graph.items() if value)
        return say_error(f"{given} is not for safetensors, which holds weights alone")
    try:
        from .. import export
        from ..inference import segment
        from ..io import images
    except ImportError as error:
        return say_error(f"{error}; {NEEDS}")
    options = segment.Options(
        out=out,
        network=arguments.model,
        checkpoint=arguments.checkpoint,
        num_classes=arguments.num_classes,
        weights=arguments.weights,
    )
    size = tuple(arguments.size or (512, 512))
    try:
        model, trained = segment.build(options)
        classes = outputs.classes(model.num_classes)
        print(f"{model.name}, {classes}, {'trained' if trained else 'UNTRAINED'} weights", flush=True)
        image = torch.zeros(1, 3, *size, dtype=torch.float32)
        if kind == "safetensors":
            export.to_safetensors(model, out)
        else:
            to = export.to_onnx if kind == "onnx" else export.to_aoti
            to(model, image, out, dynamic=arguments.dynamic, labels=arguments.labels)
    except (segment.UserError, ImportError) as error:
        return say_error(str(error))
    except OSError as error:
        return say_error(f"{out}: cannot be written ({images.reason(error)})")
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:  # no compiler, not captured, or too large
        return say_error(f"{out}: {_first_line(error).removeprefix(f'to_{kind}: ')}")
    taken = f", for {_shape(size, arguments.dynamic)} float32" if kind != "safetensors" else ""
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB{taken}", flush=True)
    return _compare(arguments, model, size)


def _compare(arguments: argparse.Namespace, model: models.base.Network, size: tuple[int, ...]) -> int:
    """Runs the file, for any size with another one too, and says how far it is from PyTorch."""
    from .. import export

    shapes = [(1, 3, *size)]
    if arguments.dynamic:
        shapes.append((2, 3, size[0] // 2 + 7, size[1] // 2 + 9))
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes]
    try:
        found = max(export.compare(arguments.out, model, image, arguments.labels) for image in noise)
    except ImportError as error:
        print(f"not compared with PyTorch ({error})")
        return 0
    except Exception as error:  # runtimes have errors of their own
        return say_error(f"{arguments.out}: does not run: {_first_line(error)}")
    what = f"{100 * found:.4f} % of the labels" if arguments.labels else f"{found:.1e} of the largest value"
    if not found <= (MOST_LABELS if arguments.labels else MOST_DIFFERENCE):
        return say_error(f"{arguments.out}: differs from PyTorch by {what}")
    print(f"{RUN_BY[arguments.to]}: difference to PyTorch {what}")
    return 0


def _shape(size: tuple[int, ...], dynamic: bool) -> str:
    return "any (N, 3, H, W)" if dynamic else f"(1, 3, {size[0]}, {size[1]})"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "not enough memory").splitlines()[0]
