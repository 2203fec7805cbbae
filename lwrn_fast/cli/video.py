"""The command `lwrn-fast video`: parse, call, print. Exit code 130 after Ctrl-C and 143 after SIGTERM."""

import argparse
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from .. import backends, models
from ..models import outputs
from .terminal import natural, one_line, positive, say_error, tqdm_class, whole

NEEDS = "this command needs PyAV and Pillow: pip install 'lwrn-fast[video]'"
VIEWS = ("overlay", "labels", "beside")
CODECS = ("h264", "hevc", "vp9", "h264rgb", "ffv1")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def add_commands(commands: Any) -> None:
    """Add the command to what add_subparsers gave."""
    parser = commands.add_parser("video", help="label maps of a video or a camera", allow_abbrev=False)
    parser.set_defaults(command=_video)
    add = parser.add_argument
    add("source", metavar="IN", help="a video file; or a whole number N for the camera /dev/videoN")
    add("out", nargs="?", type=Path, metavar="OUT", help="a .mp4, .m4v, .mov, .mkv or .webm; with --live not needed")
    add("--view", choices=VIEWS, default="overlay", help="colours over the frame, alone, beside it; default: overlay")
    add("--live", action="store_true", help="show it in a window, whose closing ends the work")
    add("--frames", type=whole, metavar="N", help="stop after so many")
    add("--codec", choices=CODECS, help="default: h264, vp9 for .webm; h264rgb and ffv1 lose nothing")
    add("--quality", type=natural, metavar="N", help="constant rate factor, lower is better; default: the codec's")
    add("--model", choices=models.NETWORKS, help="network; default: the checkpoint's, or rf_lw_mbv2")
    add("--checkpoint", metavar="FILE", help="weights, .pth.tar or .safetensors; without: untrained")
    add("--weights", metavar="WHICH", help="of several in it: ema, model or their key; default: ema")
    add("--num-classes", type=whole, metavar="N", help="default: the checkpoint's, or 21")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    add("--backend", choices=backends.BACKENDS, help="default: LWRN_FAST_BACKEND, or auto")
    add("--dtype", choices=("f32", "bf16", "f16"), default="f32")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", nargs=2, type=whole, metavar=("H", "W"), help="of the network's input")
    size.add_argument("--scale", type=positive, default=1.0, metavar="S", help="of the network's input to the frame")


def _video(arguments: argparse.Namespace) -> int:
    out: Path | None = arguments.out
    if out is None and not arguments.live:
        return say_error("the following arguments are required: OUT, or --live")
    try:
        from ..inference import segment, video
        from ..inference.segmenter import Segmenter
        from ..io.window import Window
    except ImportError as error:
        return say_error(f"{error}; {NEEDS}")
    weights = segment.Options(
        out=out or Path(),
        network=arguments.model,
        checkpoint=arguments.checkpoint,
        num_classes=arguments.num_classes,
        weights=arguments.weights,
    )
    options = video.Options(arguments.view, arguments.codec, arguments.quality, arguments.frames)
    received: list[int] = []
    try:
        segment.check_backend(arguments.backend)
        model, trained = segment.build(weights)
        classes = outputs.classes(model.num_classes)
        print(f"{model.name}, {classes}, {'trained' if trained else 'UNTRAINED'} weights", flush=True)
        segmenter = Segmenter(
            model,
            device=segment.device(arguments.device),
            dtype=segment.DTYPES[arguments.dtype],
            size=arguments.size and tuple(arguments.size),
            scale=arguments.scale,
        )
        backend = nullcontext() if arguments.backend is None else backends.use_backend(arguments.backend)
        window = nullcontext() if not arguments.live else Window(one_line(f"lwrn-fast: {arguments.source}"))
        with backend, window as shown, _stopping(received) as stop:
            show = None if shown is None else shown.show
            report = video.run(arguments.source, out, segmenter, options, stop, _bar, show)
    except segment.UserError as error:
        say_error(str(error))
        return 128 + received[0] if received else 2
    except (RuntimeError, MemoryError) as error:  # too large for this machine, or not for this backend
        return say_error(f"{arguments.source}: {(str(error).strip() or 'not enough memory').splitlines()[0]}")
    for line in report.notes:
        print(one_line(line))
    if not trained:
        print("the weights are untrained: the labels mean nothing; give --checkpoint for real ones")
    print(report.line())
    if received:
        say_error("interrupted" + ("" if out is None else f": {out} has the {report.done} frames done until then"))
        return 128 + received[0]
    if report.broken is not None:
        return say_error(report.broken + ("" if out is None else f"; {out} has what comes before"))
    return 0


@contextmanager
def _stopping(received: list[int]) -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; a second one ends everything at once, as Ctrl-C does elsewhere."""
    stop = threading.Event()

    def handle(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop.set()

    in_main = threading.current_thread() is threading.main_thread()  # others may not, and get no signals
    before = {number: signal.signal(number, handle) for number in SIGNALS if in_main}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bar(frames: Iterable, length: int | None) -> Iterable:
    """A progress bar with frames/s, where tqdm is there and somebody looks."""
    tqdm = tqdm_class()
    return frames if tqdm is None else tqdm(frames, total=length, unit="frame", leave=False, disable=None)
