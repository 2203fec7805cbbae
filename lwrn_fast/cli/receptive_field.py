"""The command `lwrn-fast receptive-field`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import models
from ..errors import UserError, as_user_error
from ..io import atomic
from . import building
from .command import Command
from .options import adder
from .terminal import progress_bar, say_error

REPORT = "erf.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = adder(parser)
    add("--out", required=True, type=Path, metavar="DIR", help=f"where the pictures and {REPORT} go")
    add("--model", help="network; default: the checkpoint's")
    add("--checkpoint", help="weights; default: the package's, or with --model untrained ones")
    add("--size", default=(512, 512))
    noise = "how many inputs of noise, or images, and folders whose images are taken; default: 8"
    add("--images", nargs="+", default=["8"], metavar="N|PATHS", help=noise)
    add("--seed", help="of the noise; default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Draw the fields of every level and print the table; return 2 where an image failed."""
    with building.importing(building.NEEDS_CLI):
        from .. import receptive
        from ..inference import segment
        from ..io import images
        from ..receptive.drawing import draw
    out, size = arguments.out, tuple(arguments.size)
    checkpoint = arguments.checkpoint or (None if arguments.network else str(models.SHAPES))
    model, trained = building.build(segment.Options(out, arguments.network, checkpoint), announce=False)
    with as_user_error(str, ValueError):  # an argument that the functions below refuse
        inputs, errors = _inputs(arguments.images)
        for line in errors:
            say_error(line)
        images.make_folder(out)
        weights = f"weights of {checkpoint}" if trained else "UNTRAINED weights"
        about = f"{inputs} x noise" if isinstance(inputs, int) else f"{len(inputs)} photographs"
        print(f"{model.name}, {weights}, {size[0]} x {size[1]}, {about}", flush=True)
        levels = receptive.receptive_field(
            model, size=size, images=inputs, seed=arguments.seed, progress=progress_bar()
        )
    for name, fields in levels.items():
        images.write(out / f"{name}.png", draw(_title(model.name, name, fields), fields))
    header = {"network": model.name, "checkpoint": checkpoint, "size": size, "inputs": about, "seed": arguments.seed}
    text = json.dumps({**header, "levels": {name: figures(fields) for name, fields in levels.items()}}, indent=1)
    with atomic.writing(out / REPORT):
        atomic.write_text(out / REPORT, text + "\n")
    print(table(levels))
    print(f"pictures and {REPORT} are in {out}")
    return 2 if errors else 0


def _inputs(given: Sequence[str]) -> tuple[int | list, list[str]]:
    """Return the number of inputs of noise, or the images that can be read, and a line for each that cannot."""
    from ..io import formats, images

    if len(given) == 1 and given[0].isascii() and given[0].isdigit():
        if int(given[0]) < 1:
            raise UserError(f"--images must be at least 1, or paths, got {given[0]}")
        return int(given[0]), []
    files, errors, skipped = images.search(given)
    if skipped:
        print(formats.skipped(skipped))
    arrays = []
    for file in files:
        try:
            arrays.append(images.read(Path(file.path)))
        except images.ImageError as error:
            errors.append(str(error))
    if not arrays:
        raise UserError("; ".join(errors))
    return arrays, errors


def _title(network: str, name: str, fields: Any) -> str:
    (row, column), (height, width) = fields.unit, fields.size
    return f"{network}, {name}: what the unit ({row}, {column}) of {height} x {width} sees"


def figures(fields: Any) -> dict[str, Any]:
    """Return the fields of a level as JSON has them, without the maps; boxes are top, left, bottom, right."""
    sides = {}
    for side, field in (("before", fields.before), ("after", fields.after)):
        sides[side] = {
            **{f"area_{share}": pixels for share, pixels in field.area.items()},
            **{f"radius_{share}": round(pixels, 2) for share, pixels in field.radius.items()},
            "centre": [round(coordinate, 2) for coordinate in field.centre],
            "theoretical": list(field.theoretical),
        }
    return {"unit": fields.unit, "map": fields.size, **sides}


def table(levels: dict[str, Any]) -> str:
    """Return a line per level: radii and areas before and after, and the theoretical field."""
    name = max(5, *map(len, levels))
    head = ["radius 50 %", "radius 95 %", "area 95 %", "theoretical"]
    lines = [" " * name + "".join(f"{title:>20}" for title in head)]
    lines.append(f"{'level':{name}}" + f"{'before':>12}{'after':>8}" * len(head))
    for level, fields in levels.items():
        sides = fields[:2]
        cells = [[f"{field.radius[share]:.0f}" for field in sides] for share in (50, 95)]
        cells.append([f"{100 * field.area[95] / field.map.numel():.1f} %" for field in sides])
        boxes = [field.theoretical for field in sides]
        cells.append([f"{box.bottom - box.top}x{box.right - box.left}" for box in boxes])
        lines.append(f"{level:{name}}" + "".join(f"{before:>12}{after:>8}" for before, after in cells))
    return "\n".join([*lines, "in pixels of the input; areas in per cent of it"])


COMMAND = Command(
    "receptive-field",
    "pictures of the receptive field before and after CRP",
    add_options,
    run,
    "what a unit sees of the image before and after CRP: the empirical receptive field, a picture per level",
    alias="erf",
)
