"""The pages of the documentation and the blocks of code in them."""

import importlib.util
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "sh")
# Languages of blocks that are output or excerpts, nothing to run.
SHOWN = ("text", "cpp")


@dataclass
class Block:
    page: Path
    line: int
    language: str
    text: str
    marks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def why_skipped(self) -> str | None:
        if "long" in self.marks and torch.cuda.is_available():
            return "takes too long for a test"
        absent = [n for n in self._named("needs") if not shutil.which(n) and not importlib.util.find_spec(n)]
        return f"{', '.join(absent)} not there" if absent else None

    def is_refused(self) -> bool:
        return "refused without GPU" in self.marks and not torch.cuda.is_available()

    def installs(self) -> bool:
        return "installs" in self.marks

    def setups(self) -> list[str]:
        return self._named("setup")

    def _named(self, word: str) -> list[str]:
        return [name for mark in self.marks if mark.split()[0] == word for name in mark.split()[1:]]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page with the marks before them; a mark that no block follows is an error."""
    found, marks, current = [], [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if current is not None:
            if line.strip() == "```":
                found.append(current)
                current = None
            else:
                current.text += line + "\n"
        elif line.lstrip().startswith("```"):
            current = Block(page, number + 1, line.strip("` "), "", marks)
            marks = []
        elif mark := re.fullmatch(r"<!-- test: (.+) -->", line.strip()):
            marks.append(mark[1])
        elif line.strip() and marks:
            raise ValueError(f"{page}:{number}: a mark of a test must stand right before a block")
    assert current is None
    assert not marks
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
