"""Files that are whole or not there."""

import pytest

from lwrn_fast.errors import UserError
from lwrn_fast.io import atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("write", [atomic.write, atomic.write_together, atomic.write_shared])
class TestEveryWrite:
    def test_leaves_the_file_alone(self, write, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("before")
        write(path, lambda unfinished: unfinished.write_text("whole"))
        assert path.read_text() == "whole"
        assert names(tmp_path) == ["a.txt"]

    def test_an_error_leaves_what_was_there(self, write, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("before")

        def save(unfinished):
            unfinished.write_text("half")
            assert path.read_text() == "before"
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write(path, save)
        assert path.read_text() == "before"
        assert names(tmp_path) == ["a.txt"]

    def test_permissions_of_a_new_file(self, write, tmp_path):
        write(tmp_path / "a", lambda unfinished: unfinished.write_text(""))
        assert (tmp_path / "a").stat().st_mode & 0o777 == atomic.permissions()


class TestShared:
    def test_two_at_a_time(self, tmp_path):
        path = tmp_path / "below" / "a.png"

        def save(unfinished):
            unfinished.write_text("first")
            atomic.write_shared(path, lambda other: other.write_text("second"))
            assert unfinished.read_text() == "first"

        atomic.write_shared(path, save)
        assert path.read_text() == "first"
        assert names(path.parent) == ["a.png"]

    def test_remove_unfinished(self, tmp_path):
        path, other = tmp_path / "a[1].png", tmp_path / "a1.png"
        left = []

        def killed(unfinished):
            unfinished.write_text("half")
            left.append(unfinished.rename(unfinished.with_suffix(".00000000")))

        for each in (path, other):
            atomic.write_shared(each, lambda unfinished: [killed(unfinished), unfinished.touch()])
        assert len(names(tmp_path)) == 4
        atomic.remove_unfinished(path)
        assert [file.exists() for file in left] == [False, True]
        assert path.exists()


def test_writing_names_the_path(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"a: cannot be written \(is a directory\)$"), atomic.writing(tmp_path / "a"):
        atomic.check_place(tmp_path / "a")
    with pytest.raises(UserError, match="^already one$"), atomic.writing(tmp_path / "a"):
        raise UserError("already one")


def test_text_that_utf8_does_not_have(tmp_path):
    atomic.write_text(tmp_path / "a", "\udce9\u00e9", errors="backslashreplace")
    assert (tmp_path / "a").read_text("utf-8") == "\\udce9\u00e9"
