"""The commands `lwrn-fast profile` and `bench`: parse, measure, print, write."""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import backends, models
from ..io import atomic
from .terminal import not_negative, say, say_error, whole

NEEDS = "this command needs Pillow: pip install 'lwrn-fast[cli]'"
PEERS = ("nchw", "eager", "compile", "onnxruntime", "openvino")


def add_commands(commands: Any) -> None:
    """Add the commands to what add_subparsers gave."""
    _add_profile(commands.add_parser("profile", help="where a network's time goes, layer by layer", allow_abbrev=False))
    _add_bench(commands.add_parser("bench", help="networks beside PyTorch and other engines", allow_abbrev=False))


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_profile)
    add = parser.add_argument
    add("model", choices=models.NETWORKS, metavar="MODEL", help=", ".join(models.NETWORKS))
    add("--checkpoint", metavar="FILE", help="weights, .pth.tar or .safetensors; default: random ones")
    add("--size", nargs=2, type=whole, default=(512, 512), metavar=("H", "W"), help="of the input; default: 512 512")
    add("--batch", type=whole, default=1, metavar="N", help="images of a run; default: %(default)s")
    add("--dtype", choices=("f32", "bf16", "f16"), default="f32", help="default: %(default)s")
    add("--threads", type=whole, metavar="N", help="default: PyTorch's")
    add(
        "--backend",
        action="append",
        choices=("all", *backends.BACKENDS[1:]),
        help="may be repeated; default: all that can run on the device",
    )
    add("--device", choices=("cpu", "cuda"), help="default: the one that the backends named are for, or cpu")
    add("--seconds", type=not_negative, default=2.0, metavar="S", help="measured time of each; default: %(default)s")
    add("--out", type=Path, metavar="DIR", help="also write profile.html, profile.json and trace.json there")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_bench)
    add = parser.add_argument
    add("--models", nargs="+", choices=models.NETWORKS, default=("rf_lw_mbv2",), metavar="MODEL", help="networks")
    add("--size", nargs=2, type=whole, default=(512, 512), metavar=("H", "W"), help="of the input; default: 512 512")
    add("--threads", type=whole, metavar="N", help="default: PyTorch's")
    add("--seconds", type=not_negative, default=1.0, metavar="S", help="measured time of each; default: %(default)s")
    add("--peers", nargs="*", choices=PEERS, default=PEERS, metavar="PEER", help=f"default: {', '.join(PEERS)}")
    add("--out", type=Path, metavar="DIR", help="also write bench.html and bench.json there")


def _profile(arguments: argparse.Namespace) -> int:
    def measure(folder: Path | None) -> dict[str, Any]:
        from ..profiling import profile

        options = profile.Options(
            network=arguments.model,
            checkpoint=arguments.checkpoint,
            size=tuple(arguments.size),
            batch=arguments.batch,
            dtype=arguments.dtype,
            threads=arguments.threads,
            names=tuple(arguments.backend or ()),
            device=arguments.device,
            seconds=arguments.seconds,
        )
        if folder is None:
            return profile.profile(options, None, _progress)
        with tempfile.TemporaryDirectory() as there:  # PyTorch writes to names in UTF-8 alone
            trace = Path(there) / "trace.json"
            found = profile.profile(options, trace, _progress)
            atomic.write(folder / "trace.json", lambda beside: shutil.copyfile(trace, beside))
        return found

    return _run(arguments.out, ("profile.html", "profile.json", "trace.json"), measure)


def _bench(arguments: argparse.Namespace) -> int:
    def measure(_: Path | None) -> dict[str, Any]:
        from ..profiling import bench

        options = bench.Options(
            names=tuple(dict.fromkeys(arguments.models)),
            size=tuple(arguments.size),
            threads=arguments.threads,
            seconds=arguments.seconds,
            others=tuple(dict.fromkeys(arguments.peers)),
        )
        return bench.bench(options, _progress)

    return _run(arguments.out, ("bench.html", "bench.json"), measure)


def _run(folder: Path | None, names: tuple[str, ...], measure: Callable[[Path | None], dict[str, Any]]) -> int:
    """Measure, print the tables, and write the page and the figures, of which the first two names are."""
    try:
        from ..inference import segment
        from ..io import images
        from ..profiling import page, text
    except ImportError as error:
        return say_error(f"{error}; {NEEDS}")
    try:
        if folder is not None:
            images.make_folder(folder)
            for name in names:
                atomic.check_place(folder / name)
        found = measure(folder)
        print(getattr(text, f"of_{found['kind']}")(found), flush=True)
        if folder is not None:
            atomic.write(folder / names[0], lambda beside: _write(beside, page.page(found)))
            atomic.write(folder / names[1], lambda beside: beside.write_text(json.dumps(found, indent=1)))
            print(f"written: {', '.join(str(folder / name) for name in names)}")
    except (segment.UserError, images.ImageError) as error:
        return say_error(str(error))
    except OSError as error:
        return say_error(f"{error.filename or folder}: cannot be written ({images.reason(error)})")
    except (RuntimeError, MemoryError) as error:  # too large for this machine
        return say_error((str(error).strip() or "not enough memory").splitlines()[0])
    return 0


def _write(path: Path, text: str) -> None:
    """In UTF-8; names that are not are shown with backslashes."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _progress(line: str) -> None:
    say(f"... {line}")
