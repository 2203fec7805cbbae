"""Judge a survey of label maps: the table of classes, errors and warnings about them, and the remedies."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .augment import IGNORE
from .data import beyond, without_image
from .label_map import OPTION, PALETTE, PRESETS, LabelMap
from .survey import Survey, Tally, tally

# Uses of label maps.
TRAIN, VALIDATE, EVALUATE = "train on", "validate with", "evaluate with"
# Classes or files named in one line.
MAX_NAMED = 8
# Share of label maps above which an error is in the data and not in single files.
SYSTEMATIC = 0.5


@dataclass(frozen=True)
class Advice:
    """error: one line that says why these label maps cannot be used. warnings: one line each."""

    error: str | None = None
    warnings: list[str] = field(default_factory=list)


def judge(survey: Survey, label_map: LabelMap | None, names: Sequence[str], use: str, each: bool = True) -> Advice:
    """Return the error or the warnings about label maps for these classes.

    use: TRAIN, VALIDATE or EVALUATE. each: a single unusable label map is an error; without it only many are, since the
    rest is used.
    """
    result = tally(survey, label_map, len(names))
    judged = _Judge(survey, result, label_map, names, use)
    for error in (judged.files(each), judged.nothing(), judged.one_class(), judged.palettes()):
        if error is not None:
            return Advice(error)
    lines = (judged.mixed(), judged.blank(), judged.absent(), judged.alone())
    return Advice(None, [line for line in lines if line is not None])


class _Judge:
    """Checks of label maps, one in each method, which returns one line for a problem and None without one."""

    def __init__(
        self, survey: Survey, tally: Tally, label_map: LabelMap | None, names: Sequence[str], use: str
    ) -> None:
        self.survey, self.tally, self.names, self.use = survey, tally, names, use
        self.label_map = label_map or LabelMap()
        self.number = len(survey.pairs)
        self.folder = survey.pairs[0].labels.parent
        # the classes of a model that is evaluated cannot be changed
        self.trained = use == EVALUATE

    def files(self, each: bool) -> str | None:
        """Report unusable label maps: damaged, with colours that have no class, or with values beyond the classes."""
        many = SYSTEMATIC * (self.number - len(self.tally.errors))
        if self.tally.errors and each:
            more = len(self.tally.errors) - 1
            return self.tally.errors[0] + (f"; and so with {more} more" if more else "")
        if self.tally.colour and (each or len(self.tally.colour) > many):
            path, error = next(iter(self.tally.colour.items()))
            return f"{path}: {error}{_colours(self.tally.colours)}{self._more(self.tally.colour)}"
        if self.tally.beyond and (each or len(self.tally.beyond) > many):
            path, label = next(iter(self.tally.beyond.items()))
            return f"{beyond(path, label, len(self.names))}{self._more(self.tally.beyond)}{self._too_many_values()}"
        return None

    def _more(self, files: dict[Path, Any]) -> str:
        return f"; so it is with {len(files)} of {self.number} label maps" if len(files) > 1 else ""

    def _too_many_values(self) -> str:
        """Return a remedy for values beyond the classes, for the end of an error."""
        values = sorted(value for value in self.tally.values if value != IGNORE)
        number = len(self.names)
        last, zero = values[-1], values[0] == 0
        if number == 19 and last <= 33:
            return f"; if these are Cityscapes' labelIds, give {OPTION} cityscapes"
        if last == number:
            if not zero:
                return f"; labels that count from 1 need {OPTION} 1-{number}:0-{number - 1}"
            unlabelled = f"where 0 means unlabelled, as in ADE20K, {OPTION} 0:{IGNORE},1-{number}:0-{number - 1}"
            more = "" if self.trained else f"--num-classes {number + 1}, or, "
            return f"; 0 to {number} are {number + 1} classes: {more}{unlabelled}"
        if number == 2 and len(values) > 3:
            return f"; smoothed masks need {OPTION} 0-127:0,128-255:1"
        every = [*values, IGNORE] if self.tally.values[IGNORE] and IGNORE not in self.label_map.values else values
        if len(every) <= MAX_NAMED:
            example = ",".join(f"{value}:{i}" for i, value in enumerate(every))
            return f"; the values are {_and(every)}: name the class of each, for example {OPTION} {example}"
        more = "" if self.trained else f"--num-classes {last + 1}, or "
        return f"; there are {len(values)} values up to {last}: {more}{OPTION} names their classes"

    def nothing(self) -> str | None:
        """Report label maps that are all ignored."""
        if not self.tally.sets or self.tally.classes:
            return None
        line = f"every pixel of the label maps to {self.use} is {IGNORE}, which is ignored"
        if self._deliberate():
            return f"{self.folder}: {line}, as {OPTION} says"
        return f"{self.folder}: {line}; {OPTION} {IGNORE}:1 makes it class 1"

    def one_class(self) -> str | None:
        """Report masks of 0 and 255."""
        if len(self.tally.classes) != 1 or not self.tally.pixels[IGNORE] or self._deliberate():
            return None
        (label,) = self.tally.classes
        other = 1 if label == 0 else 0
        classes = "" if len(self.names) == 2 or self.trained else " with --num-classes 2"
        return (
            f"{self.folder}: the label maps to {self.use} hold {label} and {IGNORE} only, and {IGNORE} is ignored, so "
            f"one class is left; for masks of {label} and {IGNORE}, give {OPTION} {IGNORE}:{other}{classes}; if "
            f"{IGNORE} shall be ignored, {OPTION} {IGNORE}:{IGNORE}"
        )

    def mixed(self) -> str | None:
        """Report masks of 0 and 255 among those of 0 and 1."""
        sets = self.tally.sets.values()
        ignored = sum(IGNORE in classes for classes in sets)
        if len(self.names) != 2 or not ignored or self._deliberate() or any({1, IGNORE} <= classes for classes in sets):
            return None
        return (
            f"{self.folder}: {ignored} of {self.number} label maps hold {IGNORE}, which is ignored, others 1, and none "
            f"both; if {IGNORE} means 1, give {OPTION} {IGNORE}:1"
        )

    def palettes(self) -> str | None:
        """Report palettes with one colour under several indices, so that indices are no classes."""
        if self.label_map.values or self.label_map.colours:
            return None
        index: dict[int, tuple[int, Path]] = {}
        error = ""
        for pair, counts in zip(self.survey.pairs, self.survey.results, strict=True):
            if isinstance(counts, str) or counts.mode != PALETTE or len(set(counts.colours)) < len(counts.colours):
                continue
            for value, colour in zip(counts.values, counts.colours, strict=True):
                other, path = index.setdefault(colour, (value, pair.labels))
                if other != value and not error:
                    error = f"{pair.labels}: the colour {colour:06x} is {value} here and {other} in {path.name}"
        if not error:
            return None
        return (
            f"{error}, so the colours are the classes: name them{_colours(index)}; if the indices are the classes all "
            f"the same, give {OPTION} 0:0"
        )

    def blank(self) -> str | None:
        """Report label maps in which every pixel is ignored."""
        blank = [path.name for path, classes in self.tally.sets.items() if classes == {IGNORE}]
        if not blank:
            return None
        share = f"{len(blank)} of {self.number} label maps"
        return f"{self.folder}: {share} are {IGNORE} all over, which is ignored: {_few(blank)}"

    def absent(self) -> str | None:
        """Report classes that never occur, and labels that seem to count from 1."""
        absent = [label for label in range(len(self.names)) if not self.tally.pixels[label]]
        if not absent or not self.tally.sets:
            return None
        names = _few([_named(label, self.names) for label in absent])
        never = f"{self.folder}: never in the label maps to {self.use}: {names}"
        if self.use == TRAIN and len(self.tally.classes) == 1:
            only = _named(self.tally.classes[0], self.names)
            return f"{never}; the only class is {only}, and a network will learn to say nothing else"
        if 0 in absent and len(self.tally.classes) > 1 and not self.label_map.values and not self.label_map.colours:
            number = len(self.names)
            return f"{never}; if the labels count from 1, give {OPTION} 1-{number}:0-{number - 1}"
        return never

    def alone(self) -> str | None:
        """Report label maps whose image is missing or of an unsupported format."""
        alone = [path.name for path in without_image(self.survey.pairs)]
        if not alone:
            return None
        return f"{self.folder}: label maps without an image to {self.use}: {_few(alone)}"

    def _deliberate(self) -> bool:
        """Return True if the user has given 255 a class."""
        return IGNORE in self.label_map.values


def rows(result: Tally, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per class, in plain types: class, name, pixels, images."""
    return [
        {"class": label, "name": name, "pixels": result.pixels[label], "images": result.images[label]}
        for label, name in enumerate(names)
    ]


def table(tallies: dict[str, Tally], names: Sequence[str]) -> str:
    """Return a text table: pixels, their share of those that count, and images, per class and split."""
    width = max(14, *map(len, names))
    lines = [f"{'':{width}}" + "".join(f"{split:>32}" for split in tallies)] if len(tallies) > 1 else []
    lines.append(f"{'class':{width}}" + f"{'pixels':>15}{'share':>9}{'images':>8}" * len(tallies))
    for label, name in [*enumerate(names), (IGNORE, f"ignored ({IGNORE})")]:
        cells = "".join(_cells(result, label) for result in tallies.values())
        if label != IGNORE or any(result.pixels[IGNORE] for result in tallies.values()):
            lines.append(f"{name:{width}}{cells}")
    return "\n".join(lines)


def _cells(result: Tally, label: int) -> str:
    every = sum(result.pixels[:IGNORE]) + (result.pixels[IGNORE] if label == IGNORE else 0)
    share = f"{result.pixels[label] / every:.2%}" if every else "-"
    return f"{result.pixels[label]:15,}{share:>9}{result.images[label]:8}"


def _colours(colours: Collection[int]) -> str:
    """Return a remedy for colours without a class, for the end of an error."""
    if not colours:
        return ""
    for name, preset in PRESETS.items():
        if set(colours) <= set(preset.colours):
            return f", here {OPTION} {name}"
    if len(colours) <= MAX_NAMED:
        return f", for example {OPTION} {_example(colours)}"
    return f", for example {OPTION} {_example(sorted(colours)[:2])},... for {len(colours)} colours"


def _example(colours: Iterable[int]) -> str:
    return ",".join(f"{colour:06x}:{i}" for i, colour in enumerate(sorted(colours)))


def _named(label: int, names: Sequence[str]) -> str:
    return str(label) if names[label] == str(label) else f"{label} ({names[label]})"


def _few(words: Sequence[str]) -> str:
    more = len(words) - MAX_NAMED
    return ", ".join(words[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _and(numbers: Sequence[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
