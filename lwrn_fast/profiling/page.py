"""Page with all figures: one HTML file with its data in it, which loads nothing from anywhere."""

import html
import json
from importlib.resources import files
from typing import Any


def page(data: dict[str, Any]) -> str:
    """Return the HTML of a result of `profile` or `bench`, by its "kind"; the element `data` holds the figures as JSON.

    >>> page({"kind": "bench", "title": "Side by side"})[:15]
    '<!doctype html>'
    """
    parts = {
        "TITLE": html.escape(data["title"]),
        "STYLE": _text("style.css"),
        "DATA": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "SCRIPT": _text("common.js") + _text(f"{data['kind']}.js"),
    }
    pieces = _text("page.html").split("@")  # every second one is the name of a part
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _text(name: str) -> str:
    return files(__package__).joinpath("html").joinpath(name).read_text(encoding="utf-8")
