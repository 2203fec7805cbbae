"""CONTRIBUTING.md's rules for docstrings, comments and constants, as far as a program can hold them."""

import ast
import re
import tokenize
from collections.abc import Iterator

import pytest

from support import glossary
from support.glossary import CPP, ROOT

# First words that make a docstring or a comment a riddle.
BEGINNINGS = re.compile(r"(Of|What|Which|Whether|By)\b")
FILES = [path for path in glossary.tracked() if path.endswith((".py", *CPP))]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
pytestmark = pytest.mark.skipif(not FILES, reason="not a git checkout: there is no list of the sources")


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            yield node.body[0].lineno, ast.get_docstring(node) or ""


def comments(path: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each comment; of lines that follow one another, the first."""
    if path.endswith(".py"):
        with (ROOT / path).open("rb") as file:
            tokens = list(tokenize.tokenize(file.readline))
        lines = [(token.start[0], token.string.lstrip("#")) for token in tokens if token.type == tokenize.COMMENT]
    else:
        source = enumerate((ROOT / path).read_text("utf-8").splitlines(), start=1)
        lines = [(number, match[1]) for number, line in source if (match := re.search(r"(?<!:)//+(.*)", line))]
    numbers = {number for number, _ in lines}
    yield from ((number, text.strip()) for number, text in lines if number - 1 not in numbers)


def constants_described_below(tree: ast.Module) -> Iterator[int]:
    """Yield the line of each string under an assignment."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef)):
            for before, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(before, (ast.Assign, ast.AnnAssign)) and is_text(after):
                    yield after.lineno


def test_no_docstring_or_comment_begins_with_a_riddle():
    bad = []
    for path in FILES:
        texts = list(comments(path))
        if path.endswith(".py"):
            texts += docstrings(ast.parse((ROOT / path).read_text("utf-8")))
        bad += [f"{path}:{line}: {text[:60]}" for line, text in texts if BEGINNINGS.match(text)]
    assert not bad, f"{len(bad)}\n" + "\n".join(bad)


def test_constants_have_their_comment_above_them():
    bad = []
    for path in (path for path in FILES if path.endswith(".py")):
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        bad += [f"{path}:{line}" for line in constants_described_below(tree)]
    assert not bad, f"{len(bad)}\n" + "\n".join(bad)
