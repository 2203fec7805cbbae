"""The subjects of the table of entrances that are commands: `lwrn-fast NAME`, in this process, on files."""

import csv
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import lwrn_fast
from lwrn_fast import backends, cli, models, receptive
from lwrn_fast.training import generate
from support.entrances.cells import Args, Change, Subject, Weights, maps_are_right, upsampled
from support.entrances.subjects import (
    OfImages,
    OfNetwork,
    Tiny,
    called,
    image,
    new_path,
    normalised,
    plain_decoder,
    tiny,
)

# Learning rate of the one step that `train` takes.
RATE = 0.1


@contextmanager
def tiny_model() -> Iterator[None]:
    """List "tiny" among the package's models within this context, so that commands and checkpoints know it."""
    models.NETWORKS["tiny"] = Tiny
    try:
        yield
    finally:
        del models.NETWORKS["tiny"]


def command(*arguments: object) -> None:
    """Run the command here; it must succeed."""
    code = cli.main([str(argument) for argument in arguments])
    assert code == 0, f"lwrn-fast {arguments[0]} ended with {code}"


def checkpoint(weights: Weights, folder: Path) -> Path:
    path = new_path(folder, ".pth.tar")
    torch.save({"segmenter": weights}, path)
    return path


def written(images: np.ndarray, folder: Path) -> list[Path]:
    """Write images, uint8 (H, W, 3) or (N, H, W, 3), to files; return their paths."""
    paths = []
    for each in images if images.ndim == 4 else images[None]:
        paths.append(new_path(folder, ".png"))
        Image.fromarray(each).save(paths[-1])
    return paths


class OfCommand(OfImages):
    """A command from image files to label maps. work: takes the checkpoint, a folder and the files."""

    def __init__(self, work: Callable[[Path, Path, Sequence[Path]], list[np.ndarray]]) -> None:
        super().__init__(lambda model, *_: model, tiny)  # the command gets its file
        self.work = work

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        path = checkpoint(weights, folder)

        def run(images: Any) -> Any:
            if isinstance(images, Path):
                return self.work(path, folder, [images])[0]
            results = self.work(path, folder, written(images, folder))
            return np.stack(results) if images.ndim == 4 else results[0]

        return run

    def of_file(self, run: Callable[..., Any], path: Path) -> Any:
        return run(path)


def segment(*options: str) -> OfCommand:
    def work(weights: Path, folder: Path, paths: Sequence[Path]) -> list[np.ndarray]:
        out, said = new_path(folder, ""), StringIO()
        with redirect_stdout(said):
            command("segment", *paths, "--checkpoint", weights, "--out", out, *options)
        if "--verify" in options:
            line = next(line for line in said.getvalue().splitlines() if line.startswith("difference"))
            assert float(line.split("logits ")[1].split()[0]) < 1e-4, line
        return [np.array(Image.open(out / f"{path.stem}.png")) for path in paths]

    return OfCommand(work)


def video() -> OfCommand:
    def work(weights: Path, folder: Path, paths: Sequence[Path]) -> list[np.ndarray]:
        import av

        film, out = new_path(folder, ".mkv"), new_path(folder, ".mkv")
        frames = [np.array(Image.open(path).convert("RGB")) for path in paths]
        with av.open(str(film), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "bgr0"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            container.mux(stream.encode(None))
        command("video", film, out, "--view", "labels", "--codec", "ffv1", "--checkpoint", weights)
        with av.open(str(out)) as container:
            coloured = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return [labels_of(each) for each in coloured]

    return OfCommand(work)


def labels_of(coloured: np.ndarray) -> np.ndarray:
    """Return the classes of an image in the palette's colours."""
    same = (coloured[:, :, None] == models.PALETTE[:32]).all(3)
    assert same.any(2).all(), "a colour is no class's"
    return same.argmax(2).astype(np.uint8)


def export(to: str, read: Callable[[Path], Callable[..., Any]], *options: str) -> OfNetwork:
    """Return the subject of `lwrn-fast export`: the file that it writes. read: makes a function of the file."""

    def enter(model: nn.Module, example: Tensor, path: Path) -> Callable[..., Any]:
        out = path.with_suffix({"onnx": ".onnx", "safetensors": ".safetensors"}[to])
        weights = checkpoint(model.state_dict(), path.parent)
        command("export", "--to", to, "--out", out, "--checkpoint", weights, *options)
        return read(out)

    return OfNetwork(enter, tiny)


class OfTraining(OfCommand):
    """A command on images with labels: (N, H, W, 3) and (N, H, W), uint8, all squares."""

    names = ("images", "labels")

    def __init__(self) -> None:
        super().__init__(lambda *_: [])

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        side, classes = size[0], 7 if wide else 5
        images = np.stack([image(seed + i, side, side) for i in range(2)])
        labels = np.stack([image(seed + 50 + i, side, side)[:, :, 0] % classes for i in range(2)])
        return images, labels

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        path = checkpoint(weights, folder)
        return lambda images, labels: self.answer(path, folder, self.data(images, labels, folder), images.shape[1])

    def answer(self, weights: Path, folder: Path, data: Path, side: int) -> Any:
        raise NotImplementedError

    @staticmethod
    def data(images: np.ndarray, labels: np.ndarray, folder: Path) -> Path:
        data = new_path(folder, "")
        for folder_name, arrays in (("images", images), ("labels", labels)):
            (data / folder_name).mkdir(parents=True)
            for i, array in enumerate(arrays):
                Image.fromarray(array).save(data / folder_name / f"{i}.png")
        return data


class Evaluation(OfTraining):
    """The confusion matrix that `lwrn-fast eval` writes."""

    def answer(self, weights: Path, folder: Path, data: Path, side: int) -> Any:
        out = new_path(folder, ".json")
        command("eval", data, "--checkpoint", weights, "--out", out)
        return json.loads(out.read_text())

    def check(self, got: Any, weights: Weights, args: Args) -> None:
        images, labels = args
        exact = OfImages.plain(self, {name: value.double() for name, value in weights.items()}, images)
        classes, true = exact.shape[1], torch.from_numpy(labels).flatten().long()
        expected = torch.bincount(true * classes + exact.argmax(1).flatten(), minlength=classes**2)
        best = exact.topk(2, 1).values
        near = int((best[:, 0] - best[:, 1] < 1e-4 * float(exact.abs().max())).sum())
        confusion = torch.tensor(got["confusion"])
        assert int((confusion.flatten() - expected).abs().sum()) <= 2 * near
        hits, union = confusion.diagonal().double(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        occurs = union > 0
        assert got["mean_iou"] == pytest.approx(float((hits / union)[occurs].mean()))
        assert got["pixel_accuracy"] == pytest.approx(float(hits.sum() / confusion.sum()))


class Training(OfTraining):
    """The loss of one step of `lwrn-fast train`, and the weights after it, by hand."""

    def answer(self, weights: Path, folder: Path, data: Path, side: int) -> Any:
        from safetensors.torch import load_file

        out = new_path(folder, "")
        once = ("--epochs", 1, "--batch", 2, "--crop", side, "--scales", 1, 1, "--no-flip")
        plain = ("--encoder-lr", RATE, "--decoder-lr", RATE, "--momentum", 0, "--weight-decay", 0, "--power", 0)
        command("train", data, "--out", out, "--checkpoint", weights, *once, *plain)
        with (out / "losses.csv").open(encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        return float(row["loss"]), load_file(out / "last.safetensors")

    def plain(self, weights: Weights, *args: Any) -> Any:
        """Return the loss, and every parameter after the step."""
        images, labels = args
        parameters = {name: value.clone().requires_grad_() for name, value in weights.items() if _learns(name)}
        buffers = {name: value.clone() for name, value in weights.items() if not _learns(name)}
        x = normalised(torch.from_numpy(images), None, next(iter(weights.values())).dtype)
        model = Tiny(len(weights["classifier.bias"]), torch.contiguous_format).train()
        with torch.inference_mode(False), torch.enable_grad():
            logits = called(model, {**parameters, **buffers}, x.clone())
            loss = F.cross_entropy(upsampled(logits, x.shape[2:]), torch.from_numpy(labels).long())
            gradients = torch.autograd.grad(loss, list(parameters.values()))
        stepped = {
            name: (value - RATE * gradient).detach()
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
        }
        return loss.detach(), stepped

    def check(self, got: Any, weights: Weights, args: Args) -> None:
        loss, stepped = got
        with torch.inference_mode(False):
            weights = {name: value.clone() for name, value in weights.items()}
            exact = self.plain({name: value.double() for name, value in weights.items()}, *args)
            eager = self.plain(weights, *args)
        maps_are_right(torch.tensor(loss, dtype=torch.float32), exact[0], eager[0].float())
        for name, value in exact[1].items():
            maps_are_right(stepped[name], value, eager[1][name])


def _learns(name: str) -> bool:
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


class ReceptiveField(OfCommand):
    """The figures of `lwrn-fast receptive-field` for an image, compared with the gradient of plain PyTorch."""

    def __init__(self) -> None:
        super().__init__(lambda *_: [])

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        path = checkpoint(weights, folder)

        def run(images: Any) -> Any:
            paths = [images] if isinstance(images, Path) else written(images, folder)
            with Image.open(paths[0]) as opened:
                turned = opened.getexif().get(0x0112) == 6
                size = opened.size if turned else opened.size[::-1]
            out = new_path(folder, "")
            command("receptive-field", "--out", out, "--checkpoint", path, "--images", *paths, "--size", *size)
            return json.loads((out / "erf.json").read_text())["levels"]

        return run

    def check(self, got: Any, weights: Weights, args: Args) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            double = {name: value.double().clone() for name, value in weights.items()}
            expected = self._expected(double, args[0] if args[0].ndim == 4 else args[0][None])
        assert sorted(got) == sorted({name for name, _ in expected})
        for (name, side), field in expected.items():
            ours = got[name][side]
            assert ours["centre"] == pytest.approx(field.centre, abs=0.05)
            assert ours["area_95"] == pytest.approx(field.area[95], abs=3, rel=0.02)
            assert ours["radius_50"] == pytest.approx(field.radius[50], abs=1.1)

    def _expected(self, weights: Weights, images: np.ndarray) -> dict[tuple[str, str], Any]:
        sums: dict[tuple[str, str], Tensor] = {}
        for each in images:
            x = normalised(torch.from_numpy(each.copy()), None, torch.float64).requires_grad_()
            for key, map in _levels(weights, x).items():
                unit = map[0, :, map.shape[2] // 2, map.shape[3] // 2].sum()
                (gradient,) = torch.autograd.grad(unit, x, retain_graph=True)
                magnitude = gradient[0].abs().sum(0)
                sums[key] = sums.get(key, torch.zeros(())) + magnitude / magnitude.sum()
        everything = receptive.Box(0, 0, *images.shape[1:3])
        return {key: receptive.field(total, everything) for key, total in sums.items()}


def _levels(weights: Weights, x: Tensor) -> dict[tuple[str, str], Tensor]:
    """Return Tiny's maps before and after each chained residual pooling."""
    names = ("norm.running_mean", "norm.running_var", "norm.weight", "norm.bias")
    fine = F.conv2d(x, weights["stem.weight"], weights["stem.bias"], 4, 1)
    fine = F.relu(F.batch_norm(fine, *(weights[name] for name in names)))
    deep = F.relu(F.conv2d(fine, weights["deep.weight"], weights["deep.bias"], 2, 1))
    seen: list[Tensor] = []
    plain_decoder(weights, [fine, deep], seen)
    keys = [(name, side) for name in ("crp2", "crp1") for side in ("before", "after")]
    return dict(zip(keys, seen, strict=True))


class Generation(Subject):
    """The images of `lwrn-fast generate`, compared with the function that draws one image."""

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        def run(seed: int, size: tuple[int, int]) -> Any:
            out = new_path(folder, "")
            command("generate", out, "--images", 3, "--seed", seed, "--size", *size)
            return [np.array(Image.open(out / "train" / name / "00000.png")) for name in ("images", "labels")]

        return run

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        return seed, (size[0] + 16, size[1] + (40 if wide else 16))

    def check(self, got: Any, weights: Weights, args: Args) -> None:
        seed, size = args
        for ours, expected in zip(got, generate.draw_image(seed, "train", 0, size), strict=True):
            np.testing.assert_array_equal(ours, expected)


class Information(Subject):
    """The lines of `lwrn-fast info`, by name."""

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        def run() -> dict[str, str]:
            said = StringIO()
            with redirect_stdout(said):
                command("info")
            lines = (line.split(None, 1) for line in said.getvalue().splitlines())
            return {name: text.strip() for name, text in lines}

        return run

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        return ()

    def check(self, got: Any, weights: Weights, args: Args) -> None:
        assert got["version"] == lwrn_fast.__version__
        assert got["torch"] == torch.__version__
        assert got["python"] == platform.python_version()
        assert got["backend"] == backends.requested()
        assert got["backends.reference"] == "ready"
        assert f"{torch.get_num_threads()} threads" in got["machine"]


class Measurement(Subject):
    """The figures of `lwrn-fast profile` or `bench`: every time is above zero, and nothing is missing."""

    def __init__(self, *arguments: str, complete: Callable[[dict[str, Any]], list[float]]) -> None:
        self.arguments, self.complete = arguments, complete

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        def run(size: tuple[int, int]) -> Any:
            out = new_path(folder, "")
            with pytest.MonkeyPatch.context() as patch:
                from lwrn_fast.profiling import machine, memory, paired, workloads

                patch.setattr(workloads.model, "HOW", "eager")  # compiling takes a minute
                patch.setattr(machine, "rates", lambda *_: (1e11, 1e10))
                patch.setattr(memory, "of_model", lambda *_, **__: None)
                patch.setattr(paired, "SETTLE", 0)
                command(*self.arguments, "--size", *size, "--seconds", 0, "--out", out)
            return json.loads((out / f"{self.arguments[0]}.json").read_text())

        return run

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        return ((32, 32),)

    def check(self, got: Any, weights: Weights, args: Args) -> None:
        assert got["kind"] == self.arguments[0]
        times = self.complete(got)
        assert times
        assert all(0 < time < 60 for time in times)


def loaded(ending: str) -> OfNetwork:
    """Return the subject of `models.load` for checkpoints of this ending."""

    def enter(model: nn.Module, example: Tensor, path: Path) -> Callable[..., Any]:
        file = path.with_suffix(ending)
        if ending == ".safetensors":
            lwrn_fast.export.to_safetensors(model, file)
        else:
            torch.save({"state_dict": model.state_dict(), "epoch": 3}, file)
        return models.load(file)

    return OfNetwork(enter, tiny)

