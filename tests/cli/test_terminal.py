"""Error lines, exit codes and progress bars, the same for every command."""

import sys
from typing import NoReturn

import pytest

from lwrn_fast import cli, errors
from lwrn_fast.cli import terminal
from support.commands import MARK


def ends_with(error: BaseException, capsys: pytest.CaptureFixture, hint: str = "") -> tuple[int, str]:
    """Return the exit code and the lines on stderr of a command that raises this error."""

    def command() -> NoReturn:
        raise error

    return terminal.exit_code(command, hint), capsys.readouterr().err


class TestExitCode:
    @pytest.mark.parametrize(
        ("error", "code", "text"),
        [
            pytest.param(errors.UserError("a.png: is not an image"), 2, "a.png: is not an image", id="user"),
            pytest.param(errors.SignalError("interrupted: a.mp4", 15), 143, "interrupted: a.mp4", id="sigterm"),
            pytest.param(KeyboardInterrupt(), 130, "interrupted", id="ctrl_c"),
            pytest.param(RuntimeError("no kernel\nmore"), 2, "no kernel", id="runtime"),
            pytest.param(MemoryError(), 2, "not enough memory", id="memory"),
            pytest.param(OSError(28, "No space left on device"), 2, "no space left on device", id="disk"),
            pytest.param(PermissionError(13, "Permission denied", "a"), 2, "a: permission denied", id="file"),
        ],
    )
    def test_one_line(self, error, code, text, capsys):
        assert ends_with(error, capsys) == (code, f"{MARK}{text}\n")

    def test_a_process_whose_error_another_one_tells(self, capsys):
        assert ends_with(errors.ToldError("told"), capsys) == (0, "")

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried 2 GiB")])
    def test_hint_at_memory(self, error, capsys):
        code, line = ends_with(error, capsys, "a smaller --batch needs less")
        assert code == 2
        assert line.startswith(f"{MARK}not enough memory; a smaller --batch needs less (")

    def test_errors_of_other_modules_are_for_the_user(self):
        """And stay what they were for a caller in Python."""
        from lwrn_fast.io.images import ImageError
        from lwrn_fast.models import CheckpointError
        from lwrn_fast.training.labels import DataError
        from lwrn_fast.training.processes import ToldError

        assert all(issubclass(c, errors.UserError) for c in (ImageError, CheckpointError, DataError, ToldError))
        assert issubclass(ImageError, OSError)
        assert issubclass(CheckpointError, ValueError)
        assert str(ImageError("a: b")) == "a: b"

    def test_what_is_for_the_user_already_stays(self):
        with pytest.raises(errors.SignalError), errors.as_user_error(lambda _: "another", Exception):
            raise errors.SignalError("interrupted", 2)


class TestUnexpected:
    """An error that nobody thought of: one line and 2, and the traceback for who asks for it."""

    @pytest.fixture(autouse=True)
    def _breaks(self, monkeypatch):
        def breaks() -> str:
            raise ZeroDivisionError("division\x1b[2J by\nzero")

        monkeypatch.setattr("lwrn_fast.cli.info.info", breaks)

    def test_one_line(self, capsys):
        assert cli.main(["info"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{MARK}ZeroDivisionError: division\\x1b[2J by (unexpected; LWRN_FAST_TRACEBACK=1 ")

    def test_traceback(self, monkeypatch):
        monkeypatch.setenv("LWRN_FAST_TRACEBACK", "1")
        with pytest.raises(ZeroDivisionError):
            cli.main(["info"])


def test_progress_bar_for_more_than_one(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = terminal.progress_bar()
    assert not bar([1, 2]).disable
    assert bar([1]).disable
