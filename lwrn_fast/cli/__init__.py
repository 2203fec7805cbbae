"""The command `lwrn-fast`: parse, call, print. Exit code 0, 2 where something was wrong, 130 after Ctrl-C."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import __version__, backends, heap, models
from ..errors import UserError
from ..info import info
from ..models import outputs
from . import export, profile, receptive_field, train, video
from .terminal import Parser, exit_code, one_line, positive, progress_bar, say_error, whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, sys.argv's by default; returns the exit code.

    >>> main(["segment", "photo.jpg", "--num-classes", "999", "--out", "."])
    2
    """
    arguments = _parser().parse_args(argv)
    heap.keep()
    return exit_code(lambda: arguments.command(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="lwrn-fast", description="Light-Weight RefineNet segmentation, fast.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"lwrn-fast {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    commands.add_parser("info", help="backends, versions, what is missing and why").set_defaults(command=_info)
    segment = commands.add_parser("segment", help="label maps of photographs", allow_abbrev=False)
    segment.set_defaults(command=_segment)
    segment.add_argument("paths", nargs="+", metavar="PATHS", help="images, and folders whose images are taken")
    segment.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the palette PNGs go")
    segment.add_argument("--model", choices=models.NETWORKS, help="network; default: the checkpoint's, or rf_lw_mbv2")
    segment.add_argument("--checkpoint", metavar="FILE", help="weights, .pth.tar or .safetensors; without: untrained")
    segment.add_argument("--weights", metavar="WHICH", help="of several in it: ema, model or their key; default: ema")
    segment.add_argument("--num-classes", type=whole, metavar="N", help="default: the checkpoint's, or 21")
    segment.add_argument("--backend", choices=backends.BACKENDS, help="default: LWRN_FAST_BACKEND, or auto")
    segment.add_argument("--dtype", choices=("f32", "bf16", "f16"), default="f32")
    segment.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    size = segment.add_mutually_exclusive_group()
    size.add_argument("--size", nargs=2, type=whole, metavar=("H", "W"), help="of the network's input")
    size.add_argument("--scale", type=positive, default=1.0, metavar="S", help="of the network's input to the image")
    limit = "of an image, and of the network's input; default: 2^29 (LWRN_FAST_MAX_PIXELS), 89478485"
    segment.add_argument("--max-pixels", type=whole, metavar="N", help=limit)
    segment.add_argument("--overlay", action="store_true", help="also the photograph with the labels' colours over it")
    segment.add_argument("--verify", action="store_true", help="compare with the reference backend in float32")
    segment.add_argument("--recursive", action="store_true", help="also folders below, which DIR then has too")
    segment.add_argument("--resume", action="store_true", help="keep DIR/manifest.jsonl, and skip what it has as done")
    train.add_commands(commands)
    export.add_commands(commands)
    profile.add_commands(commands)
    video.add_commands(commands)
    receptive_field.add_commands(commands)
    return parser


def _info(_: argparse.Namespace) -> int:
    try:
        print(info())
    except ValueError as error:
        return say_error(str(error))
    return 0


def _segment(arguments: argparse.Namespace) -> int:
    try:
        from ..inference import folders, segment
    except ImportError as error:
        return say_error(f"{error}; the command line needs Pillow: pip install pillow")
    options = segment.Options(
        out=arguments.out,
        network=arguments.model,
        checkpoint=arguments.checkpoint,
        num_classes=arguments.num_classes,
        weights=arguments.weights,
        backend=arguments.backend,
        dtype=arguments.dtype,
        device=arguments.device,
        size=arguments.size and tuple(arguments.size),
        scale=arguments.scale,
        overlay=arguments.overlay,
        verify=arguments.verify,
        recursive=arguments.recursive,
        resume=arguments.resume or folders.processes() > 1,
        max_pixels=arguments.max_pixels,
    )
    speaks = folders.rank() == 0  # of several processes, one
    try:
        segment.check_backend(options.backend)
        model, trained = segment.build(options)
        if speaks:
            weights = "trained" if trained else "UNTRAINED"
            print(f"{model.name}, {outputs.classes(model.num_classes)}, {weights} weights", flush=True)
        run = folders.run if options.resume else segment.run
        report = run(arguments.paths, options, model, say_error, progress_bar() if speaks else iter)
    except UserError as error:
        return say_error(str(error))
    except (RuntimeError, MemoryError) as error:  # too large for this machine
        return say_error((str(error).strip() or "not enough memory").splitlines()[0])
    if not speaks:
        return 0  # torchrun would end the others; the first one tells that images failed, and is the last to end
    if not trained:
        print("the weights are untrained: the labels mean nothing; give --checkpoint for real ones")
    for line in report.renamed:
        print(one_line(line))
    if report.skipped is not None:
        print(report.skipped)
    print(report.table(verified=options.verify))
    if report.folder is not None:
        print(report.folder)
    return 2 if report.errors else 0
