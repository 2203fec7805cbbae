"""The command `lwrn-fast erf`: parse, call, draw, print."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import models
from ..io import atomic
from .terminal import natural, progress_bar, say_error, whole

NEEDS = "this command needs Pillow and safetensors: pip install 'lwrn-fast[cli]'"
REPORT = "erf.json"


def add_commands(commands: Any) -> None:
    """Add the command to what add_subparsers gave."""
    about = "what a unit sees of the image before and after CRP: the empirical receptive field, a picture per level"
    parser = commands.add_parser("erf", help="pictures of the receptive field before and after CRP", description=about)
    parser.set_defaults(command=_erf)
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="DIR", help=f"where the pictures and {REPORT} go")
    add("--model", choices=models.NETWORKS, help="network; default: the checkpoint's")
    add("--checkpoint", metavar="FILE", help="weights; default: the package's, or with --model untrained ones")
    add("--size", nargs=2, type=whole, default=(512, 512), metavar=("H", "W"), help="of the input; default: 512 512")
    noise = "how many inputs of noise, or images, and folders whose images are taken; default: 8"
    add("--images", nargs="+", default=["8"], metavar="N|PATHS", help=noise)
    add("--seed", type=natural, default=0, metavar="S", help="of the noise; default: %(default)s")


def _erf(arguments: argparse.Namespace) -> int:
    try:
        from .. import receptive
        from ..inference import segment
        from ..io import images
        from ..receptive.drawing import draw
    except ImportError as error:
        return say_error(f"{error}; {NEEDS}")
    out, size = arguments.out, tuple(arguments.size)
    checkpoint = arguments.checkpoint or (None if arguments.model else str(models.SHAPES))
    try:
        model, trained = segment.build(segment.Options(out, arguments.model, checkpoint))
        inputs, wrong = _inputs(arguments.images)
        for line in wrong:
            say_error(line)
        images.make_folder(out)
        weights = f"weights of {checkpoint}" if trained else "UNTRAINED weights"
        what = f"{inputs} x noise" if isinstance(inputs, int) else f"{len(inputs)} photographs"
        print(f"{model.name}, {weights}, {size[0]} x {size[1]}, {what}", flush=True)
        found = receptive.receptive_field(
            model, size=size, images=inputs, seed=arguments.seed, progress=progress_bar()
        )
        for name, fields in found.items():
            images.write(out / f"{name}.png", draw(_title(model.name, name, fields), fields))
        about = {"network": model.name, "checkpoint": checkpoint, "size": size, "inputs": what, "seed": arguments.seed}
        text = json.dumps({**about, "levels": {name: figures(fields) for name, fields in found.items()}}, indent=1)
        atomic.write(out / REPORT, lambda beside: beside.write_text(text + "\n", encoding="utf-8"))
    except (segment.UserError, images.ImageError, ValueError) as error:
        return say_error(str(error))
    except OSError as error:
        return say_error(f"{out / REPORT}: cannot be written ({images.reason(error)})")
    except (RuntimeError, MemoryError) as error:  # too large for this machine
        return say_error((str(error).strip() or "not enough memory").splitlines()[0])
    print(table(found))
    print(f"pictures and {REPORT} are in {out}")
    return 2 if wrong else 0


def _inputs(given: Sequence[str]) -> tuple[int | list, list[str]]:
    """The number of inputs of noise, or the photographs that can be read and a line for each that cannot."""
    from ..inference import segment
    from ..io import formats, images

    if len(given) == 1 and given[0].isascii() and given[0].isdigit():
        if int(given[0]) < 1:
            raise segment.UserError(f"--images must be at least 1, or paths, got {given[0]}")
        return int(given[0]), []
    found, wrong, skipped = images.search(given)
    if skipped:
        print(formats.skipped(skipped))
    photographs = []
    for file in found:
        try:
            photographs.append(images.read(Path(file.path)))
        except images.ImageError as error:
            wrong.append(str(error))
    if not photographs:
        raise segment.UserError("; ".join(wrong))
    return photographs, wrong


def _title(network: str, name: str, fields: Any) -> str:
    (row, column), (height, width) = fields.unit, fields.size
    return f"{network}, {name}: what the unit ({row}, {column}) of {height} x {width} sees"


def figures(fields: Any) -> dict[str, Any]:
    """The fields of a level as JSON has them, without the maps; boxes are top, left, bottom, right."""
    sides = {}
    for side, field in (("before", fields.before), ("after", fields.after)):
        sides[side] = {
            **{f"area_{share}": pixels for share, pixels in field.area.items()},
            **{f"radius_{share}": round(pixels, 2) for share, pixels in field.radius.items()},
            "centre": [round(place, 2) for place in field.centre],
            "theoretical": list(field.theoretical),
        }
    return {"unit": fields.unit, "map": fields.size, **sides}


def table(found: dict[str, Any]) -> str:
    """A line per level: radii and areas before and after, and the theoretical field."""
    name = max(5, *map(len, found))
    head = ["radius 50 %", "radius 95 %", "area 95 %", "theoretical"]
    lines = [" " * name + "".join(f"{title:>20}" for title in head)]
    lines.append(f"{'level':{name}}" + f"{'before':>12}{'after':>8}" * len(head))
    for level, fields in found.items():
        sides = fields[:2]
        cells = [[f"{field.radius[share]:.0f}" for field in sides] for share in (50, 95)]
        cells.append([f"{100 * field.area[95] / field.map.numel():.1f} %" for field in sides])
        boxes = [field.theoretical for field in sides]
        cells.append([f"{box.bottom - box.top}x{box.right - box.left}" for box in boxes])
        lines.append(f"{level:{name}}" + "".join(f"{before:>12}{after:>8}" for before, after in cells))
    return "\n".join([*lines, "in pixels of the input; areas in per cent of it"])
