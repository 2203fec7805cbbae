"""The tables of `lwrn-fast profile` and `bench` in the terminal."""

from collections.abc import Sequence
from typing import Any

# Rows of the table of layers.
LONGEST_LAYERS = 12
# Cases in one table, side by side.
CASES_PER_TABLE = 4
# Packages whose versions stand in the heading.
VERSIONS = ("lwrn_fast", "torch", "onnxruntime", "openvino")


def of_profile(data: dict[str, Any]) -> str:
    """Return the longest layers, the stages, and the total of a profile as text."""
    names = data["backends"]
    heads = ["", "GFLOP", "MB", *(text for name in names for text in (f"{name} ms", "% limit"))]
    longest = sorted(data["layers"], key=lambda row: -max(row["ms"].values()))[:LONGEST_LAYERS]
    layers = [_costs(f"{row['name']} ({row['what']})", row, names) for row in longest]
    stages = []
    for group in data["groups"]:
        stages.append(_costs(group["name"], group, names))
        stages += [_costs(f"  {part['name']}", part, names) for part in group["parts"]]
    stages.append(_costs("all layers", data["total"], names))
    limits = data["limits"]
    lines = [
        _head(data),
        f"limits: {limits['operations_per_s'] / 1e9:.1f} GFLOP/s in matrix products, "
        f"{limits['bytes_per_s'] / 1e9:.1f} GB/s in copies",
        "",
        f"the {len(longest)} longest of {len(data['layers'])} layers",
        table([heads, *layers]),
        "",
        "stages",
        table([heads, *stages]),
        "",
    ]
    for name in names:
        total = data["totals"][name]
        peak = "unknown" if total["peak_bytes"] is None else f"{total['peak_bytes'] / 1e6:.1f} MB"
        lines.append(
            f"{name}: {total['ms']:.1f} ms, with hooks {total['hooked_ms']:.1f} ms, of which between layers "
            f"{total['between_ms']:.1f} ms; peak memory {peak}"
        )
    return "\n".join(lines + _absent(data))


def of_bench(data: dict[str, Any]) -> str:
    """Return a table per kind of case: milliseconds of each contestant, and how many times as long as ours it took."""
    lines = [_head(data)]
    for kind in dict.fromkeys(case["kind"] for case in data["cases"]):
        cases = [case for case in data["cases"] if case["kind"] == kind]
        lines += ["", f"{kind}, ms (and how many times as long as ours)"]
        for i in range(0, len(cases), CASES_PER_TABLE):
            group = cases[i : i + CASES_PER_TABLE]
            rows = [["", *(case["name"] for case in group)]]
            for name in dict.fromkeys(name for case in group for name in case["ms"]):
                rows.append([name, *(_against(case, name) for case in group)])
            lines.append(table(rows))
        for case in cases:
            lines += [f"{case['name']}: {name} failed: {reason}" for name, reason in case["failed"].items()]
    return "\n".join(lines + _absent(data))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with columns as wide as they need to be, the first one aligned to the left.

    >>> print(table([["", "ms"], ["crp", "1.5"]]))
         ms
    crp  1.5
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def left_aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with columns as wide as they need to be, all aligned to the left.

    >>> print(left_aligned([["op", "arch"], ["fusion", "90"]]))
    op      arch
    fusion  90
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table in Markdown, the first row its head. left: the number of columns aligned to the left.

    >>> print(markdown([["", "ms"], ["crp", "1.5"]]))
    |  | ms |
    | --- | ---: |
    | crp | 1.5 |
    """
    rule = ["---"] * left + ["---:"] * (len(rows[0]) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def significant(value: float) -> float:
    """Round to four significant digits: more than the noise of a measurement allows."""
    return float(f"{value:.4g}")


def _head(data: dict[str, Any]) -> str:
    machine = data["machine"]
    versions = [f"{name} {machine[name]}" for name in VERSIONS if machine[name]]
    where = machine.get("gpu") or f"{machine['cpu']}, {data['options']['threads']} of {machine['cores']} cores"
    return f"{data['title']}; {where}; {', '.join(versions)}"


def _costs(name: str, row: dict[str, Any], names: Sequence[str]) -> list[str]:
    cells = [name, f"{row['flops'] / 1e9:.3f}", f"{row['bytes'] / 1e6:.2f}"]
    for backend in names:
        percent = row["percent"][backend]
        cells += [f"{row['ms'][backend]:.3f}", "-" if percent is None else f"{percent:.0f}"]
    return cells


def _against(case: dict[str, Any], name: str) -> str:
    if name not in case["ms"]:
        return "-"
    ratio = case["ratio"].get(name)
    return f"{case['ms'][name]:.3f}" + ("" if ratio is None else f" ({ratio:.2f})")


def _absent(data: dict[str, Any]) -> list[str]:
    return [f"without {name}: {reason}" for name, reason in data["absent"].items()]
