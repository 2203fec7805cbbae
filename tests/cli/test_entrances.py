"""Every public entrance, whatever must not matter: a cell per entrance of entrances.py and condition that applies."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lwrn_fast
from lwrn_fast import cli, models
from support.compiling import TESTS
from support.entrances import BY_NAME, ENTRANCES, NO_ROWS, cells, why_not_here
from support.entrances.cells import CONDITIONS, Cell
from support.entrances.commands import tiny_model

CELLS = [
    pytest.param(entrance.name, name, id=f"{entrance.name}-{name}")
    for entrance in ENTRANCES
    for name in CONDITIONS
    if name not in entrance.leaves_out
]
ELSEWHERE = "another_environment"


class Rows:
    """The cells of the rows, of which one at a time keeps its instances and compiled code."""

    def __init__(self, folder: Path) -> None:
        self.cells = cells(folder)
        self.current = ""

    def of(self, name: str) -> Cell:
        if name != self.current:
            self.forget()
        self.current = name
        return self.cells[name]

    def forget(self) -> None:
        """Drop the instances, and what this row or another file has compiled of the same classes."""
        for cell in self.cells.values():
            cell.forget()
        torch.compiler.reset()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    with tiny_model():
        made = Rows(tmp_path_factory.mktemp("entrances"))
        yield made
        made.forget()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what went wrong where every entrance was called in a process without home, locale, or files around it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LC_")},
        "PYTHONPATH": os.pathsep.join(path for path in [str(TESTS), *sys.path] if path),
        **{"HOME": "/dev/null/home", "LANG": "C", "LC_ALL": "C", "TERM": "dumb"},
    }
    command = [sys.executable, "-m", "support.entrances", "--first-calls", folder / "failed.json"]
    (folder / "empty").mkdir()
    done = subprocess.run(command, cwd=folder / "empty", env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "failed.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A cell that fails leaves nothing of its condition to the next."""
    threads, folder, dtype = torch.get_num_threads(), os.getcwd(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)
    os.chdir(folder)


@pytest.mark.parametrize(("name", "condition"), CELLS)
def test_cell(name: str, condition: str, rows: Rows, request: pytest.FixtureRequest) -> None:
    reason = why_not_here(BY_NAME[name].needs)
    if reason is not None:
        pytest.skip(reason)
    if condition == ELSEWHERE:
        assert name not in (failed := request.getfixturevalue("elsewhere")), failed[name]
    else:
        CONDITIONS[condition](rows.of(name))


def test_what_does_not_apply_says_why():
    names = [entrance.name for entrance in ENTRANCES]
    assert len(set(names)) == len(names)
    for entrance in ENTRANCES:
        assert set(entrance.leaves_out) <= set(CONDITIONS), entrance.name
        assert all(len(reason) > 10 for reason in entrance.leaves_out.values()), entrance.name
        assert set(entrance.beside) <= set(names), entrance.name
        assert "first_call" not in entrance.leaves_out
    left_out = sum(len(entrance.leaves_out) for entrance in ENTRANCES)
    assert len(CELLS) + left_out == len(ENTRANCES) * len(CONDITIONS)


def test_everything_public_is_in_the_table():
    """A name that is new in the package is a row, or says why it is none."""
    rows = {entrance.name.split("_compile")[0].split("_eager")[0] for entrance in ENTRANCES} | {"optimize", "load"}
    public = {*lwrn_fast.__all__, *models.__all__, *(n for n in vars(lwrn_fast.export) if n.startswith("to_"))}
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    public |= {f"{name}" for name in commands.choices}
    unknown = public - {name for row in rows for name in (row, row.rsplit("_", 1)[0])} - set(NO_ROWS)
    assert not unknown, f"neither in ENTRANCES nor in NO_ROWS of entrances.py: {sorted(unknown)}"
