"""Count the words of CONTRIBUTING.md's glossary in the tree: `python tests/support/glossary.py [--places]`."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
CPP = (".h", ".cpp", ".cu", ".cuh")
# Files whose words are counted.
TEXT = (*CPP, ".py", ".md", ".sh", ".toml", ".html", ".js", ".css", ".yaml", ".yml", ".cff", ".in", ".json", "")


@dataclass(frozen=True)
class Word:
    """One word of the left column.

    scope: "text" counts everywhere, "names" in identifiers, "files" in names of files. folders: () for the whole tree.
    """

    text: str
    scope: str
    folders: tuple[str, ...]

    def __str__(self) -> str:
        folders = f" in {' '.join(self.folders)}" if self.folders else ""
        return self.text if self.scope == "text" else f"{self.text} ({self.scope}{folders})"

    def counts_in(self, path: str) -> bool:
        return not self.folders or path.startswith(self.folders)

    def count(self, name: str) -> int:
        """Return how often the word is a part of `name`; a word with capitals or "_" must be the whole name."""
        if self.text.islower() and "_" not in self.text:
            return parts(name).count(self.text)
        return int(name == self.text)


@dataclass(frozen=True)
class Exemption:
    """A text that is not counted in the files that match a pattern, or in all; None for everything in them."""

    text: str | None
    patterns: tuple[str, ...]

    def covers(self, path: str) -> bool:
        return not self.patterns or any(fnmatch(path, pattern) for pattern in self.patterns)


# The occurrences of a word as "path:line", or "path" for the name of a file.
Hits = dict[Word, list[str]]


@cache
def parts(name: str) -> list[str]:
    """Return the words of an identifier in lower case: `kMaxStages` has k, max and stages."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def table(header: list[str]) -> Iterator[list[str]]:
    """Yield the rows of the page's table that has this header."""
    in_table = False
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if in_table and cells and not set(line) <= set("|- "):
            yield cells
        in_table = cells == header or (in_table and bool(cells))


def spans(cell: str) -> tuple[str, ...]:
    """Return the `code` of a cell."""
    return tuple(re.findall(r"`([^`]+)`", cell))


def words() -> list[Word]:
    listed = []
    for left, _ in table(["not", "but"]):
        terms, _, note = left.partition("(")
        scope = next((name for name in ("names", "files") if note.startswith(name)), "text")
        listed += [Word(term, scope, spans(note)) for term in spans(terms)]
    return listed


def exemptions() -> list[Exemption]:
    listed = []
    for text, where, _ in table(["text", "where", "reason"]):
        listed += [Exemption(one, spans(where)) for one in (spans(text) or [None])]
    return listed


def identifiers(path: str, text: str) -> Iterator[tuple[str, int]]:
    """Yield the identifiers of Python and C++ with their lines, without comments, strings and names of tests."""
    if path.endswith(".py"):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and not token.string.startswith("test_"):
                yield token.string, token.start[0]
    elif path.endswith(CPP):
        skipped = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
        code = re.sub(skipped, lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
        for number, line in enumerate(code.splitlines(), start=1):
            for name in re.findall(r"[A-Za-z_]\w*", line):
                yield name, number


def without_messages(path: str, text: str) -> str:
    """Return the text of a Python file with its strings blanked, but for docstrings: messages are what users have."""
    if not path.endswith(".py"):
        return text
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    kept = {node.body[0].value for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)}
    lines = [line.encode() for line in text.splitlines()]
    for node in ast.walk(tree):
        string = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        if string and node not in kept:
            for number in range(node.lineno, node.end_lineno + 1):
                line = lines[number - 1]
                start = node.col_offset if number == node.lineno else 0
                end = node.end_col_offset if number == node.end_lineno else len(line)
                lines[number - 1] = line[:start] + b" " * (end - start) + line[end:]
    return "\n".join(line.decode(errors="ignore") for line in lines)


def tracked() -> list[str]:
    """Return the files that git tracks; none outside a checkout."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def count_text(path: str, text: str, words: list[Word], exempt: set[str], hits: Hits) -> None:
    """Add the words of scope "text" in a file and its name, as whole words between anything but letters."""
    by_text = {word.text: word for word in words if word.scope == "text" and word.counts_in(path)}
    between = r"(?<![A-Za-z])(?:{})(?![A-Za-z])"
    allowed = "|".join(re.escape(one) for one in sorted(exempt, key=len, reverse=True)) or "(?!)"
    dropped = re.compile(rf"(?<![A-Za-z])(?:{allowed})(?!(?<=[A-Za-z])[A-Za-z])")
    pattern = re.compile(between.format("|".join(by_text) or "(?!)"), re.IGNORECASE)
    for number, line in enumerate([path, *text.splitlines()]):
        for match in pattern.findall(dropped.sub(" ", line)):
            hits[by_text[match.lower()]].append(f"{path}:{number}" if number else path)


def count() -> Hits:
    """Return where each word of the glossary stands in the tree, an entry per occurrence."""
    listed, exempt = words(), exemptions()
    hits: Hits = {word: [] for word in listed}
    for path in tracked():
        covering = [one.text for one in exempt if one.covers(path)]
        if None in covering:
            continue
        allowed = {text for text in covering if text is not None}
        here = [word for word in listed if word.counts_in(path)]
        for word in here:
            if word.scope == "files" and Path(path).stem == word.text:
                hits[word].append(path)
        text = (ROOT / path).read_text("utf-8") if Path(path).suffix in TEXT else ""
        count_text(path, without_messages(path, text), here, allowed, hits)
        for name, number in identifiers(path, text):
            for word in here:
                if word.scope == "names" and name not in allowed:
                    hits[word] += [f"{path}:{number}"] * word.count(name)
    return hits


def report(hits: Hits, limit: int) -> str:
    """Return a line per word that stands somewhere: its number and its first `limit` places."""
    lines = []
    for word, where in hits.items():
        distinct = list(dict.fromkeys(where))
        more = f" and {len(distinct) - limit} more lines" if len(distinct) > limit else ""
        lines += [f"{len(where):6} {word}: {', '.join(distinct[:limit])}{more}"] if where else []
    return "\n".join([*lines, f"{sum(map(len, hits.values())):6} in all"])


if __name__ == "__main__":
    print(report(count(), sys.maxsize if "--places" in sys.argv else 3))
