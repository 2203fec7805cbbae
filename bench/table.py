"""Results to Markdown: `python bench/table.py FILE... [--save DIR] [--page docs/performance.md] [--readme README.md]`.

FILE is what `pytest bench --benchmark-json FILE` wrote, or a file that --save made of it: medians, ratios, machine,
versions and commit, without the single rounds. --page puts all tables between a page's two markers, --readme one short
table of all files between the README's.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lwrn_fast.profiling.text import markdown as markdown_table
from lwrn_fast.profiling.text import significant

# Lines between which a page's tables stand.
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TITLES = {
    "crp": "CRP",
    "fusion": "Fusion",
    "upsample_argmax": "upsample_argmax",
    "model": "Models",
    "training": "Training step of CRP and fusion",
}
OURS, EAGER = "ours", "eager, channels-last"
COMPARED = (
    "ours, from NCHW",
    "ours, eager",
    EAGER,
    "eager, NCHW",
    "torch.compile",
    "ONNX Runtime",
    "OpenVINO",
    "1x1 convolutions alone",
)
# Cases that the README shows, in float32, with as many threads as were measured.
SHORT = {
    "CRP, 256 channels, 128 x 128": ("crp", "256x128x128"),
    "fusion, 256 channels, 128 x 128 and 64 x 64": ("fusion", "256x128x128+256x64x64-256-relu"),
    "upsample_argmax, 21 classes to 512 x 512": ("upsample_argmax", "21x128x128-512x512"),
    "rf_lw_mbv2, image of 512 x 512 to labels": ("model", "rf_lw_mbv2-512x512-labels"),
    "rf_lw50, image of 512 x 512 to labels": ("model", "rf_lw50-512x512-labels"),
}
SHORT_COLUMNS = (EAGER, "eager, NCHW", "torch.compile", "ONNX Runtime", "OpenVINO")
KEPT = ("op", "case", "where", "dtype", "threads", "contestant", "times_ours", "percent_of_limit", "extra_bytes")

Row = dict[str, Any]


def reduced(raw: dict[str, Any]) -> dict[str, Any]:
    """Reduce pytest-benchmark's JSON to what the pages show; a reduced one comes back as it is."""
    if "results" in raw:
        return raw
    results = []
    for entry in raw["benchmarks"]:
        row: Row = {key: entry["extra_info"][key] for key in KEPT}
        row["median_ms"] = significant(1e3 * entry["stats"]["median"])
        row["rounds"] = entry["stats"]["rounds"]
        for key in ("times_ours", "percent_of_limit"):
            row[key] = None if row[key] is None else significant(row[key])
        results.append(row)
    commit = raw.get("commit_info", {})
    return {
        "date": raw["datetime"][:10],
        "commit": str(commit.get("id", "none")) + (" with changes" if commit.get("dirty") else ""),
        "machine": raw["machine_info"]["described"],
        "results": results,
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the section of one machine: its description, then a table per op."""
    parts = [heading(result)]
    for op, title in TITLES.items():
        rows = [row for row in result["results"] if row["op"] == op]
        if rows:
            parts.append(f"#### {title}\n\n" + table(rows))
    return "\n\n".join(parts) + "\n"


def heading(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(
        f"{name} {machine[name]}"
        for name in ("lwrn_fast", "torch", "onnxruntime", "openvino", "python")
        if machine.get(name)
    )
    return (
        f"### {machine['cpu']}, {machine['cores']} cores, {machine['isa']}\n\n"
        f"{result['date']}, commit {result['commit'][:12]}{result['commit'][40:]}; {versions}.\n"
        "Each column says how many times as long as ours it took: the median over rounds in which all took turns."
    )


def table(rows: list[Row]) -> str:
    """Return a line per case, dtype and number of threads, with a column per contestant that any line has."""
    lines = list(_lines(rows))
    columns = [name for name in COMPARED if any(name in line for line in lines)]
    limited = any(line[OURS]["percent_of_limit"] is not None for line in lines)
    weighed = any(line[OURS]["extra_bytes"] is not None for line in lines)
    head = ["case", "type", "threads", "ours, ms"]
    head += ["% of limit"] * limited + ["extra MB, ours / eager"] * weighed + columns
    body = []
    for line in lines:
        ours = line[OURS]
        cells = [ours["case"], ours["dtype"], str(ours["threads"]), f"{ours['median_ms']:.3g}"]
        if limited:
            cells.append(_number(ours["percent_of_limit"], "{:.0f}"))
        if weighed:
            eager = line.get(EAGER, {}).get("extra_bytes")
            cells.append(f"{_megabytes(ours['extra_bytes'])} / {_megabytes(eager)}")
        cells += [_number(line[name]["times_ours"], "{:.2f}") if name in line else "-" for name in columns]
        body.append(cells)
    return markdown_table([head, *body], left=2)


def short(results: Iterable[dict[str, Any]]) -> str:
    """Return one table of the cases of SHORT, of the first result that has each, and the machines they are of."""
    body = []
    machines: dict[str, str] = {}  # and the last date of each
    for title, (op, case) in SHORT.items():
        for result in results:
            rows = [row for row in result["results"] if (row["op"], row["case"], row["dtype"]) == (op, case, "float32")]
            if rows:
                line = max(_lines(rows), key=lambda line: line[OURS]["threads"])
                cells = [title, str(line[OURS]["threads"]), f"{line[OURS]['median_ms']:.3g}"]
                ratios = (line[name]["times_ours"] if name in line else None for name in SHORT_COLUMNS)
                cells += [_number(ratio, "{:.2f}") for ratio in ratios]
                body.append(cells)
                machine = result["machine"]
                where = f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}, torch {machine['torch']}"
                machines[where] = max(machines.get(where, ""), result["date"])
                break
    head = ["float32", "threads", "ours, ms", *SHORT_COLUMNS]
    where = "; ".join(map(", ".join, machines.items()))
    lines = markdown_table([head, *body])
    return f"{where}. The other columns say how many times as long as ours each takes.\n\n{lines}"


def put_into(text: str, tables: str) -> str:
    """Return a page's text with the tables between its markers; ValueError where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs a line {BEGIN} and, after it, a line {END}")
    return f"{before}{BEGIN}\n{tables.strip()}\n{END}{after}"


def _lines(rows: Iterable[Row]) -> Iterator[dict[str, Row]]:
    """Yield per case, dtype and threads the rows by contestant, for those groups that have ours."""
    groups: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["dtype"], row["threads"]), {})[row["contestant"]] = row
    return (group for group in groups.values() if OURS in group)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep the reduced results here, under the same names")
    parser.add_argument("--page", type=Path, help="rewrite the tables of this file instead of printing them")
    parser.add_argument("--readme", type=Path, help="rewrite the short table of this file")
    arguments = parser.parse_args()
    results = []
    try:
        for file in arguments.files:
            results.append(reduced(json.loads(file.read_text(encoding="utf-8"))))
            if arguments.save:
                (arguments.save / file.name).write_text(json.dumps(results[-1], indent=1) + "\n", encoding="utf-8")
        tables = "\n".join(map(markdown, results))
        for page, content in ((arguments.page, tables), (arguments.readme, short(results))):
            if page:
                page.write_text(put_into(page.read_text(encoding="utf-8"), content), encoding="utf-8")
        if not arguments.page and not arguments.readme:
            print(tables)
    except (OSError, ValueError, KeyError) as error:
        print(f"table.py: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
