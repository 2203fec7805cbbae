"""The report of a rewrite: the patterns in a model, those that were replaced, and the reasons why others were not."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """A part of a model that resembles an op of ours, replaced or not."""

    # The module whose forward it is in, "" for the model itself.
    where: str
    # "crp", "fusion", "labels" (upsampling and argmax), "pool" (5x5, stride 1), or "module".
    kind: str
    # Its size, in words.
    what: str
    # The reason why it was left alone, None where it was replaced.
    reason: str | None = None

    @property
    def replaced(self) -> bool:
        return self.reason is None


@dataclass
class Report:
    """All findings, in the model's order; printed, it is a table.

    >>> report = Report([Finding("crp1", "crp", "4 stages of 256 channels")])
    >>> report.count("crp"), bool(report)
    (1, True)
    """

    findings: list[Finding] = field(default_factory=list)
    # True while nothing has been captured, so that the findings are only to be expected.
    expected: bool = False
    _captured: dict[Hashable, list[Finding]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.expected:
            self._captured[0] = list(self.findings)

    def count(self, kind: str) -> int:
        """Return the number of replaced findings of a kind."""
        return sum(finding.replaced and finding.kind == kind for finding in self.findings)

    @property
    def replaced(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.replaced]

    @property
    def refused(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.replaced]

    def add(self, findings: Iterable[Finding], part: Hashable = None) -> None:
        """Add the findings of a part of the model; they replace those of the same part."""
        self.expected = False
        self._captured[len(self._captured) if part is None else ("part", part)] = list(findings)
        self.findings[:] = [finding for findings in self._captured.values() for finding in findings]

    def __bool__(self) -> bool:
        """Return whether anything was replaced."""
        return bool(self.replaced)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __str__(self) -> str:
        if not self.findings:
            return "nothing of ours was found: no chained residual pooling, no fusion, no 5x5 pool"
        done = "to be replaced" if self.expected else "replaced"
        rows = [("module", "found", "size", "")]
        for finding in self.findings:
            where = finding.where or "(the network)"
            rows.append((where, finding.kind, finding.what, finding.reason or done))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows]
        kinds = dict.fromkeys(finding.kind for finding in self.replaced)
        counts = ", ".join(f"{self.count(kind)} {kind}" for kind in kinds) or "nothing"
        when = " at the first call" if self.expected else ""
        return "\n".join([*lines, f"{done}{when}: {counts}"])
