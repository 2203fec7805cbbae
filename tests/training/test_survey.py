"""The survey of label maps: cached counts, and several processes."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lwrn_fast.training import data, labels, processes, survey
from lwrn_fast.training.label_map import parse
from support.label_maps import MARK, TRAIN, classes, grey, pairs_folder

pytestmark = pytest.mark.usefixtures("cache")


class TestCache:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return pairs_folder(tmp_path / "d", grey(0, 1))

    @pytest.fixture
    def counted(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Return the label maps that were decoded."""
        decoded: list[Path] = []
        count = labels.count
        monkeypatch.setattr(labels, "count", lambda path: decoded.append(path) or count(path))
        monkeypatch.setattr(survey, "RECENT", -1.0)  # recent files are cached too
        return decoded

    def test_only_what_changed_is_read_again(self, folder, counted, cache):
        pairs = data.find(folder, "train")
        first = survey.look(pairs)
        assert len(counted) == 4
        assert len(list(cache.iterdir())) == 1
        assert survey.look(pairs).results == first.results
        assert len(counted) == 4
        Image.fromarray(classes(9, (0, 1, 5))).save(pairs[2].labels)
        again = survey.look(pairs)
        assert counted[4:] == [pairs[2].labels]
        assert 5 in again.results[2].values
        pairs[1].image.write_bytes(b"text")  # no image of this size any longer
        assert survey.look(pairs).results[1] == f"{pairs[1].image}: is not an image"

    def test_relative_paths_are_the_same_files(self, folder, counted, monkeypatch):
        survey.look(data.find(folder, "train"))
        monkeypatch.chdir(folder.parent)
        survey.look(data.find(Path("d"), "train"))
        assert len(counted) == 4

    def test_another_map_needs_no_other_counts(self, folder, counted):
        for text in ("0:0", "1:255"):
            survey.look(data.find(folder, "train", parse(text)))
        assert len(counted) == 4

    def test_same_size_and_time(self, folder, counted):
        """A new file with the old size and time is detected by the time at which its inode changed."""
        pairs = data.find(folder, "train")
        before = pairs[0].labels.stat()
        survey.look(pairs)
        content = bytearray(pairs[0].labels.read_bytes())
        pairs[0].labels.write_bytes(content)
        os.utime(pairs[0].labels, ns=(before.st_atime_ns, before.st_mtime_ns))
        survey.look(pairs)
        assert len(counted) == 5

    def test_what_changed_a_moment_ago_is_not_kept(self, folder, counted, cache, monkeypatch):
        monkeypatch.setattr(survey, "RECENT", 3600.0)
        for _ in range(2):
            survey.look(data.find(folder, "train"))
        assert len(counted) == 8
        assert not cache.exists()

    DAMAGE: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _: b"",
        "half": lambda content: content[: len(content) // 2],
        "text": lambda _: b"not a cache\nat all\n",
        "other_numbers": lambda content: content.replace(b'"grey"', b'"gray"'),
        "no_text": lambda _: b"\xff\xfe\n",
        "null": lambda _: b"null\nnull\n",
    }

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_damaged_is_none(self, damage, folder, counted, cache):
        pairs = data.find(folder, "train")
        first = survey.look(pairs)
        (file,) = cache.iterdir()
        file.write_bytes(self.DAMAGE[damage](file.read_bytes()))
        assert survey.look(pairs).results == first.results
        assert len(counted) == 8
        survey.look(pairs)
        assert len(counted) == 8  # written anew

    def test_nowhere_to_write(self, folder, counted, cache):
        cache.write_text("a file where the folder should be")
        for _ in range(2):
            survey.look(data.find(folder, "train"))
        assert len(counted) == 8

    def test_places(self, folder, monkeypatch, tmp_path):
        monkeypatch.setattr(survey, "RECENT", -1.0)
        monkeypatch.delenv(survey.CACHE)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        survey.look(data.find(folder, "train"))
        assert len(list((tmp_path / "xdg" / "lwrn_fast").iterdir())) == 1
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        survey.look(data.find(folder, "train"))
        assert len(list((tmp_path / "home" / ".cache" / "lwrn_fast").iterdir())) == 1

    @pytest.mark.slow
    def test_interrupted(self, folder, cache):
        """Ctrl-C ends the survey at once: nothing is kept, and no thread goes on."""

        def progress(pairs):
            yield pairs[0]
            raise KeyboardInterrupt

        before = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            survey.look(data.find(folder, "train"), progress)
        assert not cache.exists()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and thread.name.startswith("ThreadPool"):
                thread.join(10)
        assert threading.active_count() <= before


class TestSeveralProcesses:
    def torchrun(self, *arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        every = [*command, "-m", "lwrn_fast", *map(str, arguments)]
        return subprocess.run(every, capture_output=True, text=True, timeout=300, env=environment)

    @pytest.mark.slow
    @pytest.mark.parametrize("command", ["train", "eval"])
    def test_the_first_one_says_it(self, command, tmp_path, checkpoint):
        folder = pairs_folder(tmp_path / "d", grey(0, 255))
        options = ["--out", tmp_path / "r", *TRAIN] if command == "train" else ["--checkpoint", checkpoint(2)]
        done = self.torchrun(command, folder, *options)
        assert done.returncode != 0
        assert done.stderr.count(MARK) == 1
        assert "--map-labels 255:1" in done.stderr
        assert not (tmp_path / "r").exists()

    def test_waiting_is_told(self, monkeypatch):
        """The others hear from the first process while it works, and go on when it succeeds or fails."""
        told: list[int] = []
        monkeypatch.setattr(processes, "count", lambda: 2)
        monkeypatch.setattr(processes, "rank", lambda: 0)
        monkeypatch.setattr(processes, "_from_first", lambda value: told.append(value) or value)
        assert processes.by_first(lambda tick: [tick(), tick(), "done"][-1]) == "done"
        assert told == [0, 0, 1]

        def refuses(_):
            raise data.DataError("no")

        with pytest.raises(data.DataError, match="no"):
            processes.by_first(refuses)
        answers = iter(told)
        monkeypatch.setattr(processes, "rank", lambda: 1)
        monkeypatch.setattr(processes, "_from_first", lambda _: next(answers))
        assert processes.by_first(refuses) is None
        with pytest.raises(processes.ToldError):
            processes.by_first(refuses)
