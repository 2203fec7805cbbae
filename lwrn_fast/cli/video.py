"""The command `lwrn-fast video`. Exit code 130 after Ctrl-C and 143 after SIGTERM."""

import argparse
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..errors import SignalError, UserError, as_user_error, first_line
from . import building, terminal
from .command import Command
from .numbers import natural, whole
from .options import add_input_size, adder, fill

NEEDS = "this command needs PyAV and Pillow: pip install 'lwrn-fast[video]'"
VIEWS = ("overlay", "labels", "beside")
CODECS = ("h264", "hevc", "vp9", "h264rgb", "ffv1")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = adder(parser)
    add("source", metavar="IN", help="a video file; or a whole number N for the camera /dev/videoN")
    add("out", nargs="?", type=Path, metavar="OUT", help="a .mp4, .m4v, .mov, .mkv or .webm; with --live not needed")
    add("--view", choices=VIEWS, default="overlay", help="colours over the frame, alone, beside it; default: overlay")
    add("--live", action="store_true", help="show it in a window, whose closing ends the work")
    add("--frames", type=whole, metavar="N", help="stop after so many")
    add("--codec", choices=CODECS, help="default: h264, vp9 for .webm; h264rgb and ffv1 lose nothing")
    add("--quality", type=natural, metavar="N", help="constant rate factor, lower is better; default: the codec's")
    add("--model")
    add("--checkpoint")
    add("--weights")
    add("--num-classes")
    add("--device")
    add("--backend")
    add("--dtype")
    add_input_size(parser, "frame")


def run(arguments: argparse.Namespace) -> int:
    """Segment the frames and print the closing line. Raises SignalError after SIGINT or SIGTERM."""
    out: Path | None = arguments.out
    if out is None and not arguments.live:
        raise UserError("the following arguments are required: OUT, or --live")
    with building.importing(NEEDS):
        from ..inference import segment, video
        from ..io.window import Window
    received: list[int] = []
    # too large for this machine, or not for this backend
    with as_user_error(lambda error: f"{arguments.source}: {first_line(error)}", RuntimeError, MemoryError):
        segment.check_backend(arguments.backend)
        options = fill(segment.Options, arguments, out=out or Path())
        model, trained = building.build(options)
        segmenter = segment.segmenter(model, options)
        title = terminal.one_line(f"lwrn-fast: {arguments.source}")
        window = Window(title) if arguments.live else nullcontext()
        with segment.using(options.backend), window as shown, _stopping(received) as stop:
            show = None if shown is None else shown.show
            report = video.run(arguments.source, out, segmenter, fill(video.Options, arguments), stop, _bar, show)
    for line in report.notes:
        print(terminal.one_line(line))
    if not trained:
        terminal.say_untrained()
    print(report.line())
    if received:
        done = "" if out is None else f": {out} has the {report.done} frames done until then"
        raise SignalError(f"interrupted{done}", received[0])
    if report.broken is not None:
        raise UserError(report.broken + ("" if out is None else f"; {out} has what comes before"))
    return 0


@contextmanager
def _stopping(received: list[int]) -> Iterator[threading.Event]:
    """Give an event that SIGINT or SIGTERM sets; a second signal raises KeyboardInterrupt, as Ctrl-C does elsewhere.

    received: gets the first signal's number, which also ends up in the exit code of a UserError that is raised within.
    """
    stop = threading.Event()

    def handle(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop.set()

    in_main = threading.current_thread() is threading.main_thread()  # Python lets no other thread set handlers
    before = {number: signal.signal(number, handle) for number in SIGNALS if in_main}
    try:
        yield stop
    except UserError as error:
        if received:
            raise SignalError(str(error), received[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bar(frames: Iterable, length: int | None) -> Iterable:
    """Wrap frames in a progress bar that shows frames/s."""
    return terminal.bar(frames, length, unit="frame")


COMMAND = Command("video", "label maps of a video or a camera", add_options, run)
