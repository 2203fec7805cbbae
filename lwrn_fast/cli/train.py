"""The commands `lwrn-fast generate`, `train` and `eval`: parse, call, print."""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .. import backends, models
from .terminal import natural, not_negative, positive, progress_bar, say, say_error, tqdm_class, whole

NEEDS = "this command needs Pillow, safetensors and torchmetrics: pip install 'lwrn-fast[train]'"
MAP = "classes of the values or colours of label maps: 255:1 or 0:255,1-150:0-149 or ff0000:1,000000:0 or cityscapes"


def add_commands(commands: Any) -> None:
    """Add the commands to what add_subparsers gave."""
    _add_generate(commands.add_parser("generate", help="synthetic data to train on", allow_abbrev=False))
    _add_train(commands.add_parser("train", help="train a network, or continue to", allow_abbrev=False))
    _add_eval(commands.add_parser("eval", help="mean IoU of a checkpoint, and more", allow_abbrev=False))


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_generate)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--images", type=whole, default=1000, metavar="N", help="in all; default: %(default)s")
    parser.add_argument("--seed", type=natural, default=0, metavar="S", help="of every pixel; default: %(default)s")
    parser.add_argument("--size", nargs=2, type=whole, default=(256, 256), metavar=("H", "W"), help="default: 256 256")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_train)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="train/images and train/labels, or images and labels, or VOC's layout")
    add("--out", required=True, type=Path, metavar="DIR", help="where weights, metrics and the state to resume from go")
    add("--val", type=Path, metavar="DIR", help="data to validate with; default: DATA's split val, if it has one")
    add("--model", choices=models.NETWORKS, help="network; default: the checkpoint's, or rf_lw_mbv2")
    add("--checkpoint", metavar="FILE", help="weights to start from; default: random ones")
    add("--weights", metavar="WHICH", help="of several in it: ema, model or their key; default: ema")
    add("--num-classes", type=whole, metavar="N", help="default: as classes.txt or the checkpoint says; 1: one logit")
    add("--map-labels", metavar="MAP", help=MAP)
    add("--epochs", type=whole, default=50, metavar="N", help="default: %(default)s")
    add("--batch", type=whole, default=8, metavar="N", help="images of a step, of all processes; default: %(default)s")
    add("--crop", type=whole, default=256, metavar="N", help="pixels of a side; default: %(default)s")
    add("--scales", nargs=2, type=positive, default=(0.5, 2.0), metavar=("LEAST", "MOST"), help="default: 0.5 2")
    add("--no-flip", action="store_true", help="no mirrored images")
    add("--encoder-lr", type=not_negative, default=5e-4, metavar="X", help="learning rate; default: %(default)s")
    add("--decoder-lr", type=not_negative, default=5e-3, metavar="X", help="learning rate; default: %(default)s")
    add("--momentum", type=not_negative, default=0.9, metavar="X", help="default: %(default)s")
    add("--weight-decay", type=not_negative, default=1e-5, metavar="X", help="default: %(default)s")
    add("--power", type=not_negative, default=0.9, metavar="X", help="of the poly schedule; default: %(default)s")
    add("--warmup", type=natural, default=0, metavar="STEPS", help="in which the rates rise; default: %(default)s")
    add("--clip", type=not_negative, default=0.0, metavar="NORM", help="of all gradients; 0 for any; default: 0")
    add("--amp", choices=("off", "bf16", "f16"), default="off", help="automatic mixed precision; default: %(default)s")
    add("--freeze-bn", action="store_true", help="leave the statistics of batch normalisations as they are")
    add("--seed", type=natural, default=0, metavar="S", help="default: %(default)s")
    add("--workers", type=natural, default=0, metavar="N", help="processes that read data; default: %(default)s")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    add("--backend", choices=backends.BACKENDS, help="default: LWRN_FAST_BACKEND, or auto")
    add("--save-every", type=whole, default=100, metavar="STEPS", help="and after every epoch; default: %(default)s")
    add("--half", action="store_true", help="export weights in float16: files of half the size")
    add("--tensorboard", action="store_true", help="also write DIR/tensorboard")
    add("--resume", action="store_true", help="continue the run in DIR, with the same options; or begin it")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_eval)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="as for train")
    add("--checkpoint", required=True, metavar="FILE", help="weights, .pth.tar or .safetensors")
    add("--weights", metavar="WHICH", help="of several in it: ema, model or their key; default: ema")
    add("--split", default="val", metavar="NAME", help="of DATA; default: %(default)s")
    add("--model", choices=models.NETWORKS, help="network; default: the checkpoint's")
    add("--map-labels", metavar="MAP", help=MAP)
    add("--scales", nargs="+", type=positive, default=(1.0,), metavar="S", help="results are averaged; default: 1")
    add("--flip", action="store_true", help="average with the mirrored image's result")
    add("--dtype", choices=("f32", "bf16", "f16"), default="f32")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    add("--backend", choices=backends.BACKENDS, help="default: LWRN_FAST_BACKEND, or auto")
    add("--confusion", action="store_true", help="also print the confusion matrix")
    add("--out", type=_table_file, metavar="FILE", help="also write the scores, as .json or .csv")


def _generate(arguments: argparse.Namespace) -> int:
    try:
        from ..training import generate
    except ImportError as error:
        return say_error(f"{error}; {NEEDS}")

    def work() -> int:
        counts = generate.generate(
            arguments.out, arguments.images, arguments.seed, tuple(arguments.size), progress_bar()
        )
        print(f"{arguments.out}: " + ", ".join(f"{count} images in {split}" for split, count in counts.items()))
        return 0

    return _in_one_line(work)


def _train(arguments: argparse.Namespace) -> int:
    try:
        from ..training import loop
    except ImportError as error:
        return say_error(f"{error}; {NEEDS}")
    given = vars(arguments) | {
        "network": arguments.model,
        "flip": not arguments.no_flip,
        "scales": tuple(arguments.scales),
    }
    options = loop.Options(**{name: given[name] for name in loop.Options.__dataclass_fields__})

    def work() -> int:
        loop.train(options, say, _steps_bar)
        return 0

    return _in_one_line(work)


def _eval(arguments: argparse.Namespace) -> int:
    try:
        from ..training import evaluate
    except ImportError as error:
        return say_error(f"{error}; {NEEDS}")
    options = evaluate.Job(
        data=arguments.data,
        checkpoint=arguments.checkpoint,
        weights=arguments.weights,
        split=arguments.split,
        network=arguments.model,
        predict=evaluate.Options(tuple(arguments.scales), arguments.flip),
        dtype=arguments.dtype,
        device=arguments.device,
        backend=arguments.backend,
        confusion=arguments.confusion,
        out=arguments.out,
        map_labels=arguments.map_labels,
    )
    return _in_one_line(lambda: 2 if evaluate.run(options, say, say_error, progress_bar()) else 0)


def _in_one_line(work: Callable[[], int]) -> int:
    """The exit code of the work; what it raises becomes one line on stderr, and 2.

    A failure of our own keeps its traceback where Python runs with -X dev.
    """
    from ..errors import UserError
    from ..training.processes import ToldError

    try:
        return work()
    except ToldError:
        return 0  # torchrun would end the others, of which the first one tells what is wrong
    except UserError as error:
        return say_error(str(error))
    except BrokenPipeError:
        raise
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        return say_error(_line(error))


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # a worker of the data loader puts its traceback into the message
    line = lines[-1] if lines[0].startswith("Caught ") and len(lines) > 1 else lines[0]
    if isinstance(error, MemoryError) or any(words in line for words in ("out of memory", "allocate memory")):
        return f"not enough memory; a smaller --batch, --crop or --scales needs less ({line})"
    if isinstance(error, OSError) and error.strerror:
        return ("" if error.filename is None else f"{error.filename}: ") + error.strerror.lower()
    # such as a backend that cannot do this; a name says more about what nobody thought of
    return line if isinstance(error, (RuntimeError, OSError)) else f"{type(error).__name__}: {line}"


def _steps_bar(items: Iterable, length: int) -> Iterable:
    """A progress bar of so many steps, where tqdm is there and somebody looks."""
    tqdm: Callable | None = tqdm_class()
    return items if tqdm is None else tqdm(items, total=length, leave=False, disable=None)


def _table_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".json", ".csv"):
        raise argparse.ArgumentTypeError(f"must end in .json or .csv, got {text!r}")
    return path
