"""Videos: frames equal to `segment`'s, times and sound kept, and a file that is whole however the work ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import lwrn_fast
from lwrn_fast import cli, models
from lwrn_fast.cli import video as cli_video
from lwrn_fast.io import images
from support.commands import forget
from support.compiling import missing
from support.fake_devices import camera, screen

av = pytest.importorskip("av")
from lwrn_fast.inference import video  # noqa: E402  needs av
from lwrn_fast.io import video_files  # noqa: E402  needs av

COMMAND = [sys.executable, "-m", "lwrn_fast", "video"]
MARK = "lwrn-fast: error: "
FRAMES = 300
SIZE = ["--size", "32", "48"]
LOSSLESS = ["--codec", "h264rgb"]
FASTSTART = {"movflags": "faststart"}


def scene(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A disc and a bar that move over a slope of colours."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 2, y * 3, x + y], axis=2).astype(np.uint8)
    image[:, (number * 2) % width : (number * 2) % width + 6] = (40, 90, 220)
    centre = width / 2 + width / 3 * np.cos(number / 20), height / 2 + height / 3 * np.sin(number / 20)
    image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (height / 5) ** 2] = (230, 40, 40)
    return image


def make(
    path: Path,
    frames: int = 12,
    size: tuple[int, int] = (64, 96),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    time_base: Fraction = Fraction(1, 25),
    pts: Callable[[int], int] = int,
    sound: str | None = None,
    sound_from: int = 0,
    change: Callable[[object], object] = lambda stream: None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """A video of `scene`, where asked for with a sine of 440 Hz from the time of this frame."""
    with av.open(f"file:{path}", "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = time_base
        change(stream)
        audio = sound and container.add_stream(sound, rate=48_000, layout="mono")
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(scene(number, *size))
            frame.pts, frame.time_base = pts(number), time_base
            container.mux(stream.encode(frame))
            if audio:
                wave = np.sin(2 * np.pi * 440 / 48_000 * np.arange(number * 1920, (number + 1) * 1920))
                heard = av.AudioFrame.from_ndarray((8000 * wave).astype(np.int16)[None], format="s16", layout="mono")
                heard.sample_rate, heard.time_base = 48_000, Fraction(1, 48_000)
                heard.pts = (number + sound_from) * 1920
                container.mux(audio.encode(heard))
        container.mux(stream.encode(None))
        if audio:
            container.mux(audio.encode(None))
    return path


def damaged(path: Path, packets: Iterable[int]) -> Path:
    """The same file with zeros in the place of these packets of a video of whole frames."""
    with av.open(str(path)) as container:
        contents = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    whole = path.read_bytes()
    for number in packets:
        whole = whole.replace(contents[number], bytes(len(contents[number])))
    path.write_bytes(whole)
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def playable(path: Path) -> list[np.ndarray]:
    """Return the frames that a player shows of a file that may be missing, or end in the middle of a packet."""
    shown = []
    # just begun: not there, without a header, with half of one, without a stream
    unreadable = FileNotFoundError, av.error.InvalidDataError, av.error.EOFError, IndexError
    with suppress(*unreadable), av.open(str(path)) as container:
        try:
            for packet in container.demux(video=0):
                shown.extend(packet.decode())
        except av.error.InvalidDataError:  # the frames that the decoder's threads still hold are whole
            shown.extend(container.streams.video[0].decode(None))
    return [frame.to_ndarray(format="rgb24") for frame in shown]


def times_of(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def expected(checkpoint: Path, frames: list[np.ndarray], folder: Path) -> list[np.ndarray]:
    """Return the overlays that `segment` writes for the same frames as PNGs."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        images.write(folder / f"{number:03}.png", frame)
    out = folder / "out"
    arguments = ["segment", str(folder), "--out", str(out), "--overlay", "--checkpoint", str(checkpoint), *SIZE]
    assert cli.main(arguments) == 0
    return [images.read(out / f"{number:03}_overlay.png") for number in range(len(frames))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mobile network with 7 classes, several of which appear."""
    torch.manual_seed(0)
    model = models.rf_lw_mbv2(num_classes=7)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    path = tmp_path_factory.mktemp("weights") / "seven.pth.tar"
    torch.save({"segmenter": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames with sound."""
    return make(tmp_path_factory.mktemp("clip") / "clip.mp4", sound="aac")


@pytest.fixture
def call(checkpoint: Path) -> Callable[..., int]:
    """The command, in this process."""
    return lambda *arguments: cli.main(["video", *map(str, arguments), "--checkpoint", str(checkpoint), *SIZE])


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("lwrn-fast")] == []


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of TestWhole, whose tests follow one another."""
    folder = tmp_path_factory.mktemp("whole")
    clip = make(folder / "clip.mp4", FRAMES, sound="aac")
    return {"clip": clip, "out": folder / "out.mp4", "unfinished": folder / ".out.mp4.unfinished.mp4"}


@pytest.fixture(scope="module")
def right(checkpoint: Path, paths: dict[str, Path]) -> list[np.ndarray]:
    """Its overlays, by `segment`."""
    return expected(checkpoint, frames_of(paths["clip"]), paths["clip"].with_name("frames"))


class TestWhole:
    """300 frames with sound: interrupted, killed, and at last to the end."""

    def run_until(self, sent: int, paths: dict[str, Path], checkpoint: Path) -> subprocess.CompletedProcess:
        """Sends the signal when a second of the video is on the disk."""
        arguments = [str(paths["clip"]), str(paths["out"]), "--checkpoint", str(checkpoint), *SIZE, *LOSSLESS]
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 120
        while len(playable(paths["unfinished"])) < 25 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(sent)
        output, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    @pytest.mark.slow
    def test_ctrl_c_leaves_a_shorter_video(self, paths, checkpoint, right):
        outcome = self.run_until(signal.SIGINT, paths, checkpoint)
        assert outcome.returncode == 130
        frames = frames_of(paths["out"])
        assert 25 <= len(frames) < FRAMES
        text = f"{MARK}interrupted: {paths['out']} has the {len(frames)} frames done until then\n"
        assert outcome.stderr == text
        assert f"{len(frames)} frames in " in outcome.stdout
        assert not paths["unfinished"].exists()
        np.testing.assert_array_equal(frames, right[: len(frames)])
        assert times_of(paths["out"]) == times_of(paths["clip"])[: len(frames)]
        sound = sound_of(paths["out"])
        assert sound == sound_of(paths["clip"])[: len(sound)]
        assert abs(len(sound) * 1024 / 48_000 - len(frames) / 25) < 0.1

    def test_a_killed_run_leaves_the_old_video_and_what_plays(self, paths, checkpoint, right):
        paths["out"].write_bytes(b"from before")
        outcome = self.run_until(signal.SIGKILL, paths, checkpoint)
        assert outcome.returncode == -signal.SIGKILL
        assert paths["out"].read_bytes() == b"from before"
        if not video_files._MP4:
            pytest.skip("this FFmpeg cannot join the fragments of an MP4")
        found = playable(paths["unfinished"])
        assert len(found) >= 25
        np.testing.assert_array_equal(found, right[: len(found)])

    @pytest.mark.slow
    def test_to_the_end(self, paths, right, call, capsys):
        paths["unfinished"].write_bytes(b"of a killed run")
        assert call(paths["clip"], paths["out"], *LOSSLESS) == 0
        assert not paths["unfinished"].exists()
        frames = frames_of(paths["out"])
        assert len(frames) == FRAMES
        np.testing.assert_array_equal(frames, right)
        assert sound_of(paths["out"]) == sound_of(paths["clip"])
        with av.open(str(paths["out"])) as got, av.open(str(paths["clip"])) as want:
            assert got.streams.video[0].average_rate == want.streams.video[0].average_rate == 25
            assert got.streams.video[0].time_base == want.streams.video[0].time_base
            assert got.streams.video[0].duration == want.streams.video[0].duration
            assert got.streams.audio[0].duration == want.streams.audio[0].duration
        assert times_of(paths["out"]) == times_of(paths["clip"])
        text = capsys.readouterr().out
        assert text.startswith("rf_lw_mbv2, 7 classes, trained weights\n")
        last = text.splitlines()[-1]
        assert last.startswith("300 frames in ")
        for part in (" frames/s; median ms: ", "decode ", "pre ", "network ", "post ", "draw ", "encode "):
            assert part in last


class TestContainers:
    @pytest.mark.parametrize(
        ("name", "options", "codec"),
        [
            ("a.mp4", [], "h264"),
            ("a.mov", ["--codec", "hevc"], "hevc"),
            ("A.MKV", ["--codec", "ffv1"], "ffv1"),
            ("a.webm", ["--quality", "20"], "vp9"),
        ],
    )
    def test_plays_and_looks_alike(self, name, options, codec, clip, checkpoint, call, tmp_path, capfd):
        out = tmp_path / name
        assert call(clip, out, *options) == 0
        with av.open(str(out)) as container:
            assert container.streams.video[0].codec_context.name in (codec, f"lib{codec}", f"libvpx-{codec}")
        frames, want = frames_of(out), expected(checkpoint, frames_of(clip), tmp_path / "frames")
        assert len(frames) == 12
        worst = 0 if codec == "ffv1" else 8  # of a mean; colours of another standard are further off
        assert np.abs(np.subtract(frames, want, dtype=float)).mean() <= worst
        times = times_of(out)
        # Matroska begins at 0 with the sound, which begins before the frames
        assert 0 <= times[0] <= (Fraction(22, 1000) if codec in ("ffv1", "vp9") else 0)
        assert [time - times[0] for time in times] == times_of(clip)
        output = capfd.readouterr()
        assert output.err == ""
        if name == "a.webm":
            assert "sound in aac is encoded anew, as libopus" in output.out
            with av.open(str(out)) as container:
                heard = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
            assert abs(len(heard) / 48_000 - 12 / 25) < 0.05
            strongest = np.abs(np.fft.rfft(heard[4800:19200])).argmax() * 48_000 / 14_400
            assert abs(strongest - 440) < 5
        else:
            assert sound_of(out) == sound_of(clip)

    def test_variable_frame_rate(self, call, tmp_path):
        source = make(tmp_path / "in.mp4", time_base=Fraction(1, 90_000), pts=lambda i: i * 3600 + (i % 3) * 711)
        assert call(source, tmp_path / "out.mp4", *LOSSLESS) == 0
        times = times_of(tmp_path / "out.mp4")
        assert times == times_of(source)
        assert len({b - a for a, b in zip(times, times[1:], strict=False)}) == 2

    def test_frames_that_begin_later(self, call, tmp_path):
        source = make(tmp_path / "in.mp4", time_base=Fraction(1, 12_800), pts=lambda i: 331 + 512 * i, sound="aac")
        assert times_of(source)[0] > 0
        assert call(source, tmp_path / "out.mp4") == 0
        assert times_of(tmp_path / "out.mp4") == times_of(source)
        assert sound_of(tmp_path / "out.mp4") == sound_of(source)

    def test_frames_without_times(self, call, tmp_path):
        source = make(tmp_path / "in.h264")
        with av.open(str(source)) as container:
            assert next(container.decode(video=0)).pts is None
        assert call(source, tmp_path / "out.mp4") == 0
        assert times_of(tmp_path / "out.mp4") == [Fraction(i, 25) for i in range(12)]

    def test_a_clock_that_began_before(self, call, tmp_path):
        source = make(tmp_path / "in.ts", sound="aac", sound_from=250, pts=lambda i: 250 + i)
        assert times_of(source)[0] > 9
        assert call(source, tmp_path / "out.mp4") == 0
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert container.start_time == 0
        times = times_of(tmp_path / "out.mp4")
        assert times[0] < 0.03
        assert np.diff(times).tolist() == [Fraction(1, 25)] * 11
        assert len(sound_of(tmp_path / "out.mp4")) == len(sound_of(source))

    @pytest.mark.parametrize("lossless", [True, False])
    def test_odd_sizes(self, lossless, checkpoint, call, tmp_path, capsys):
        source = make(tmp_path / "in.mp4", 3, (63, 97), pixels="yuv444p")
        assert call(source, tmp_path / "out.mp4", *(LOSSLESS if lossless else ["--quality", "1"])) == 0
        frames, want = frames_of(tmp_path / "out.mp4"), expected(checkpoint, frames_of(source), tmp_path / "frames")
        assert ("97 x 63 is odd: the file has 98 x 64, its edge twice" in capsys.readouterr().out) != lossless
        if lossless:
            np.testing.assert_array_equal(frames, want)
        else:
            assert frames[0].shape == (64, 98, 3)
            assert np.abs(np.subtract([frame[:63, :97] for frame in frames], want, dtype=float)).mean() < 8

    @pytest.mark.parametrize("turn", [(90, False), (-90, False), (180, False), (90, True), (0, True)])
    def test_a_turned_telephone(self, turn, checkpoint, call, tmp_path):
        if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
            pytest.skip("this PyAV writes no display matrix")
        angle, mirrored = turn
        source = make(tmp_path / "in.mp4", 3, change=lambda stream: stream.set_display_rotation(angle, mirrored))
        seen = [np.rot90(frame, angle // 90) for frame in frames_of(source)]  # both count counter-clockwise
        seen = [frame[:, ::-1] if mirrored else frame for frame in seen]
        assert call(source, tmp_path / "out.mp4", *LOSSLESS) == 0
        np.testing.assert_array_equal(frames_of(tmp_path / "out.mp4"), expected(checkpoint, seen, tmp_path / "frames"))

    def test_pixels_that_are_no_squares(self, call, tmp_path):
        def squeeze(stream: object) -> None:
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

        source = make(tmp_path / "in.mp4", 3, change=squeeze)
        assert call(source, tmp_path / "out.mp4") == 0
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)

    def test_the_standard_of_colours(self, call, tmp_path):
        def tag(stream: object) -> None:
            stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
            stream.codec_context.color_range = 1

        source = make(tmp_path / "in.mp4", 3, change=tag)
        assert call(source, tmp_path / "out.mp4", "--view", "beside", "--quality", "1") == 0
        with av.open(str(tmp_path / "out.mp4")) as container:
            context = container.streams.video[0].codec_context
            assert [context.colorspace, context.color_range, context.color_primaries, context.color_trc] == [1] * 4
        got, want = (np.array(frames_of(path), dtype=float) for path in (tmp_path / "out.mp4", source))
        assert np.abs(got[:, :, :96] - want).mean() < 3

    def test_frames_that_change_their_size(self, call, tmp_path):
        streams = [make(tmp_path / f"{height}.h264", 4, (height, 96)).read_bytes() for height in (64, 48)]
        (tmp_path / "in.h264").write_bytes(b"".join(streams))
        assert call(tmp_path / "in.h264", tmp_path / "out.mp4", *LOSSLESS) == 0
        assert [frame.shape for frame in frames_of(tmp_path / "out.mp4")] == [(64, 96, 3)] * 8


class TestOptions:
    @pytest.mark.parametrize("view", ["labels", "beside"])
    def test_views(self, view, clip, checkpoint, call, tmp_path):
        assert call(clip, tmp_path / "out.mp4", "--view", view, "--frames", "2", *LOSSLESS) == 0
        frame, got = frames_of(clip)[1], frames_of(tmp_path / "out.mp4")
        assert len(got) == 2
        colours = models.PALETTE[lwrn_fast.Segmenter(models.load(checkpoint), size=(32, 48))(frame)]
        np.testing.assert_array_equal(got[1], colours if view == "labels" else np.hstack([frame, colours]))

    def test_frames_and_their_sound(self, clip, call, tmp_path):
        assert call(clip, tmp_path / "out.mp4", "--frames", "5") == 0
        assert times_of(tmp_path / "out.mp4") == times_of(clip)[:5]
        sound = sound_of(tmp_path / "out.mp4")
        assert sound == sound_of(clip)[: len(sound)]
        assert abs(len(sound) * 1024 / 48_000 - 0.2) < 0.05

    def test_tables_agree(self):
        assert tuple(video.VIEWS) == cli_video.VIEWS
        assert tuple(video_files.CODECS) == cli_video.CODECS

    def test_progress(self, monkeypatch):
        assert list(cli_video._bar([1, 2], 2)) == [1, 2]
        monkeypatch.setitem(sys.modules, "tqdm", None)
        assert list(cli_video._bar([1, 2], 2)) == [1, 2]


class TestWindow:
    def test_closing_it_ends_the_work(self, call, tmp_path, monkeypatch):
        source = make(tmp_path / "in.mp4", 40)

        class Window:
            shown: list[np.ndarray] = []

            def __init__(self, title: str) -> None:
                assert str(source) in title

            def __enter__(self) -> "Window":
                return self

            def __exit__(self, *_: object) -> None:
                self.shown.append(None)

            def show(self, image: np.ndarray) -> bool:
                self.shown.append(image)
                return len(self.shown) < 3

        monkeypatch.setattr("lwrn_fast.io.window.Window", Window)
        assert call(source, tmp_path / "out.mp4", "--live", *LOSSLESS) == 0
        frames = frames_of(tmp_path / "out.mp4")
        assert 3 <= len(frames) < 40
        assert Window.shown.pop() is None
        assert len(Window.shown) == 3
        assert all((image == frames).all(axis=(1, 2, 3)).any() for image in Window.shown)

    def test_on_a_screen(self, clip, call, monkeypatch, capsys):
        pytest.importorskip("tkinter")
        if missing("Xvfb"):
            pytest.skip(missing("Xvfb"))
        with screen() as environment:
            monkeypatch.setenv("DISPLAY", environment["DISPLAY"])
            assert call(clip, "--live", "--frames", "4") == 0
        assert "4 frames in " in capsys.readouterr().out


class TestCamera:
    @pytest.fixture(autouse=True)
    def _camera_of_a_test(self, monkeypatch):
        """FFmpeg's test frames in a camera's place, 100 frames a second as a camera gives them."""
        source = "testsrc=size=64x48:rate=100,setpts=N+9999,realtime{:.0}"
        monkeypatch.setattr(video_files, "CAMERAS", ("lavfi", source))

    def test_frames(self, call, tmp_path):
        assert call("0", tmp_path / "out.mp4", "--frames", "5") == 0
        times = times_of(tmp_path / "out.mp4")
        assert len(times) == 5
        assert times[0] == 0

    def test_does_not_fall_behind(self, tmp_path):
        class Slow:
            def map(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
                for frame in frames:
                    time.sleep(0.1)
                    yield frame[:, :, 0]

            def timings(self) -> dict[str, float]:
                return {}

        video.run("0", tmp_path / "out.mp4", Slow(), video.Options(frames=4))
        assert times_of(tmp_path / "out.mp4")[3] > 0.2  # the fourth frame of the file is not the camera's

    @pytest.mark.skipif(missing("g++") is not None, reason=str(missing("g++")))
    def test_unplugged(self, tmp_path):
        """Read through the interface of cameras itself: four bars of colour, which move to the left."""
        out = tmp_path / "out.mkv"
        command = [*COMMAND, "0", str(out), *SIZE, "--view", "beside", "--codec", "ffv1"]
        environment = {**os.environ, **camera(tmp_path, 12)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert "/dev/video0: ends early, the rest cannot be read (no such device)\n" in done.stdout
        frames, times = frames_of(out), times_of(out)
        assert 1 <= len(frames) <= 12
        assert f"{len(frames)} frame" in done.stdout
        assert all(30 * (b - a) > 0.9 for a, b in pairwise(times))
        bars = np.array([(128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)])
        for frame in frames:
            assert frame.shape == (64, 128, 3)
            column = frame[:, :64].astype(int)
            assert (column == column[:1]).all()
            seen = abs(column[0, :, None] - bars).max(axis=2)
            assert seen.min(axis=1).max() < 6
            assert np.bincount(seen.argmin(axis=1)).tolist() == [16] * 4


class TestEnds:
    """Whatever ends the work: one line, an old OUT as it was, nothing beside, and no thread left."""

    @pytest.fixture
    def out(self, tmp_path: Path) -> Iterator[Path]:
        path = tmp_path / "out" / "out.mp4"
        path.parent.mkdir()
        path.write_bytes(b"from before")
        yield path
        assert [found.name for found in path.parent.iterdir()] == ["out.mp4"]

    @pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal(self, sent, code, clip, call, out, monkeypatch, capsys):
        def until_the_fourth(frames, length):
            for number, frame in enumerate(frames):
                if number == 4:
                    signal.raise_signal(sent)
                yield frame

        monkeypatch.setattr(cli_video, "_bar", until_the_fourth)
        before = signal.getsignal(sent)
        assert call(clip, out) == code
        assert capsys.readouterr().err == f"{MARK}interrupted: {out} has the 4 frames done until then\n"
        assert len(frames_of(out)) == 4
        assert signal.getsignal(sent) == before

    @pytest.mark.parametrize("twice", [False, True])
    def test_a_signal_before_the_first_frame(self, twice, clip, call, out, monkeypatch, capsys):
        def at_once(frames, length):
            for _ in range(1 + twice):
                signal.raise_signal(signal.SIGINT)
            yield from frames

        monkeypatch.setattr(cli_video, "_bar", at_once)
        assert call(clip, out) == 130
        text = "interrupted" if twice else f"{clip}: stopped before the first frame"
        assert capsys.readouterr().err == f"{MARK}{text}\n"
        assert out.read_bytes() == b"from before"

    @pytest.mark.parametrize("where", ["network", "drawing", "reading"])
    def test_an_error_in_any_thread(self, where, clip, call, out, monkeypatch, capsys):
        calls = []

        def breaks(*arguments: object, **_: object) -> np.ndarray:
            calls.append(arguments)
            if len(calls) > 3:
                raise RuntimeError("out of memory\nand more")
            return np.zeros((64, 96) if where == "network" else (64, 96, 3), np.uint8)

        if where == "network":
            monkeypatch.setattr("lwrn_fast.inference.segmenter.Segmenter.map", lambda self, frames: map(breaks, frames))
        elif where == "drawing":
            monkeypatch.setitem(video.VIEWS, "overlay", breaks)
        else:
            monkeypatch.setattr(video_files, "upright", lambda image, matrix: (breaks(), False))
        assert call(clip, out) == 2
        assert capsys.readouterr().err == f"{MARK}{clip}: out of memory\n"
        assert out.read_bytes() == b"from before"

    def test_a_full_disk(self, call, out, tmp_path, capsys):
        resource = pytest.importorskip("resource")
        source = make(tmp_path / "in.mp4", 60)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
        try:
            assert call(source, out, *LOSSLESS) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert capsys.readouterr().err == f"{MARK}{out}: cannot be written (file too large)\n"
        assert out.read_bytes() == b"from before"

    def test_damaged_packets_are_skipped(self, call, out, tmp_path, capsys):
        source = damaged(make(tmp_path / "in.mp4", 60, codec="mjpeg", pixels="yuvj420p"), (10, 30))
        assert call(source, out) == 0
        assert f"{source}: skipped 2 damaged packets\n" in capsys.readouterr().out
        assert times_of(out) == [Fraction(i, 25) for i in range(60) if i not in (10, 30)]

    @pytest.mark.slow
    @pytest.mark.parametrize("share", [0.35, 0.95])
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("in.mkv", {}),
            ("in.ts", {}),
            ("in.flv", {}),
            ("in.avi", {"codec": "mjpeg", "pixels": "yuvj420p"}),
            ("in.webm", {"codec": "libvpx-vp9"}),
            ("faststart.mp4", {}),
            ("sound.mp4", {"sound": "aac"}),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_cut_video(self, name, options, share, call, out, tmp_path, capsys):
        """All frames before the cut are done, one line says where it is, and the exit code is 2."""
        source = make(tmp_path / name, 60, muxer=FASTSTART if name.endswith(".mp4") else {}, **options)
        if share < 0.5:
            assert call(source, out) == 0
            assert capsys.readouterr().err == ""
        source.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
        before = playable(source)
        assert call(source, out) == 2
        assert 0 < len(before) <= len(frames_of(out)) <= 60
        frames = f"{len(frames_of(out))} frame{'s' * (len(frames_of(out)) != 1)}"
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{MARK}{source}: breaks off after {frames}, at ")
        assert line.endswith(f", the file is cut off; {out} has what comes before")

    def test_a_cut_that_is_not_reached(self, call, out, tmp_path, capsys):
        source = make(tmp_path / "in.mkv", 60)
        source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
        assert call(source, out, "--frames", "5") == 0
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("share", [0.3, 0.97])
    def test_an_mp4_without_its_index(self, share, call, out, tmp_path, capsys):
        source = make(tmp_path / "in.mp4", 60)
        source.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
        assert call(source, out) == 2
        assert f"{source}: is cut off: the index that an MP4 has at its end is missing" in capsys.readouterr().err
        assert out.read_bytes() == b"from before"

    def test_what_a_killed_run_left_is_not_overwritten_by_itself(self, clip, call, out, capsys):
        left = out.with_name(".out.mp4.unfinished.mp4")
        left.write_bytes(clip.read_bytes())
        assert call(left, out) == 2
        assert capsys.readouterr().err == f"{MARK}{left}: is the video itself, OUT must be another file\n"
        assert left.read_bytes() == clip.read_bytes()
        left.unlink()


ODD_NAMES = {
    "colon": "10:30.mp4",
    "protocol": "http:x.mp4",
    "pattern": "%03d.mp4",
    "spaces": " a b .mp4",
    "control": "a\n\x1b[31m.mp4",
    "latin1": os.fsdecode(b"Stra\xdfe.mp4"),
    "long": "a" * 251 + ".mp4",
}


class TestNames:
    """A file may be called anything, as source and as OUT, absolute and in the current folder."""

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
    def test_reads_and_writes(self, name, clip, call, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / name).write_bytes(clip.read_bytes())
        assert call(Path(name), Path("out.mp4"), "--frames", "3") == 0
        (tmp_path / "to").mkdir()
        monkeypatch.chdir(tmp_path / "to")
        assert call(clip, Path(name), "--frames", "3") == 0
        assert os.listdir() == [name]
        assert len(frames_of(Path(f"file:{name}"))) == len(frames_of(tmp_path / "out.mp4")) == 3

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["a\nb\x1b[31m.mp4", os.fsdecode(b"\xff.mp4"), "10:30.mp4"], ids=ascii)
    def test_one_line_about_each(self, name, call, tmp_path):
        (tmp_path / name).write_text("no video")
        command = [*COMMAND, str(tmp_path / name), str(tmp_path / "out.mp4")]
        environment = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(MARK.encode())
        assert line.endswith(b"is not a video, or is damaged from the start")
        assert b"\x1b" not in line

    def test_addresses_stay(self):
        assert video_files.address("rtsp://camera:554/stream?x=1") == "rtsp://camera:554/stream?x=1"
        assert video_files.address("10:30.mp4") == "file:10:30.mp4"


BAD = {
    "no_such_file": (["{dir}/nope.mp4", "{out}"], "{dir}/nope.mp4: cannot be read (no such file or folder)"),
    "no_such_camera": (["4711", "{out}"], "/dev/video4711: cannot be read (no such file or folder)"),
    "no_video": (["{text}", "{out}"], "{text}: is not a video, or is damaged from the start"),
    "a_folder": (["{dir}", "{out}"], "{dir}: cannot be read (is a directory)"),
    "sound_alone": (["{song}", "{out}"], "{song}: has no video that can be decoded"),
    "no_frames": (["{damaged}", "{out}"], "{damaged}: has no frames that can be decoded"),
    "cut_at_its_head": (["{empty}", "{out}"], "{empty}: cannot be read (end of file)"),
    "no_out": (["{clip}"], "the following arguments are required: OUT, or --live"),
    "itself": (["{clip}", "{clip}"], "{clip}: is the video itself, OUT must be another file"),
    "itself_by_another_name": (["{clip}", "{link}"], "{link}: is the video itself, OUT must be another file"),
    "out_is_a_folder": (["{clip}", "{dir}/folder.mp4"], "{dir}/folder.mp4: cannot be written (is a directory)"),
    "out_under_a_file": (["{clip}", "{text}/a.mp4"], "{text}/a.mp4: cannot be written (not a directory)"),
    "unknown_ending": (
        ["{clip}", "{dir}/a.avi"],
        "OUT must end in one of .mp4, .m4v, .mov, .mkv, .webm, got '{dir}/a.avi'",
    ),
    "codec_that_does_not_fit": (
        ["{clip}", "{dir}/a.webm", "--codec", "h264"],
        "--codec h264 does not go into .webm; .mkv takes any",
    ),
    "quality_too_high": (["{clip}", "{out}", "--quality", "52"], "--quality of h264 must be 0 to 51, got 52"),
    "quality_of_lossless": (
        ["{clip}", "{out}", "--codec", "h264rgb", "--quality", "9"],
        "--quality of h264rgb is not for it, it loses nothing, got 9",
    ),
    "too_many_classes": (["{clip}", "{out}", "--num-classes", "300"], "--num-classes must be 1 to 256, got 300"),
    "no_checkpoint": (["{clip}", "{out}", "--checkpoint", "{text}"], "{text}: is neither a PyTorch nor a safetensors"),
    "no_gpu": (["{clip}", "{out}", "--device", "cuda"], "--device cuda: PyTorch finds no GPU here"),
    "no_display": (["{clip}", "--live"], "--live needs "),
}


class TestBadInput:
    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("bad")
        paths = {"dir": folder, "clip": clip, "out": folder / "out.mp4", "text": folder / "text.mp4"}
        paths |= {name: folder / f"{name}.mkv" for name in ("empty", "damaged", "song")}
        paths |= {"link": clip.with_name("link.mp4")}
        paths["text"].write_text("this is text " * 100)
        (folder / "folder.mp4").mkdir()
        paths["link"].symlink_to(clip)
        with av.open(str(paths["song"]), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        whole = damaged(make(folder / "damaged.mkv", 3, codec="mjpeg", pixels="yuvj420p"), range(3)).read_bytes()
        paths["empty"].write_bytes(whole[: whole.index(bytes.fromhex("1f43b675"))])  # up to the first cluster
        return paths

    @pytest.mark.parametrize("case", BAD)
    def test_one_line(self, case, places, monkeypatch, capsys):
        if case == "no_gpu" and torch.cuda.is_available():
            pytest.skip("there is a GPU")
        monkeypatch.delenv("DISPLAY", raising=False)
        arguments = [argument.format(**places) for argument in BAD[case][0]]
        assert cli.main(["video", *arguments, *SIZE]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(MARK + BAD[case][1].format(**places))
        assert sorted(path.name for path in places["dir"].iterdir()) == [
            *("damaged.mkv", "empty.mkv", "folder.mp4", "song.mkv", "text.mp4"),
        ]

    @pytest.mark.parametrize(
        ("option", "text"),
        [
            (["--codec", "theora"], "argument --codec: invalid choice: 'theora'"),
            (["--frames", "0"], "argument --frames: must be a whole number of at least 1, got '0'"),
            (["--view", "side"], "argument --view: invalid choice: 'side'"),
        ],
        ids=["codec", "frames", "view"],
    )
    def test_on_parsing(self, option, text, clip, tmp_path, capsys):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["video", str(clip), str(tmp_path / "out.mp4"), *option])
        assert stopped.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(MARK + text)

    def test_without_pyav(self, clip, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "av", None)
        forget(monkeypatch, "inference.video", "io.video_files")
        assert cli.main(["video", str(clip), str(tmp_path / "out.mp4")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "this command needs PyAV and Pillow: pip install 'lwrn-fast[video]'" in lines[0]
