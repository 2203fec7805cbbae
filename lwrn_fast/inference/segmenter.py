"""The class `Segmenter`: images to label maps in one call, uint8 in and uint8 out."""

import copy
import functools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import heap
from ..models import outputs
from ..models.preprocessing import pixels
from ..ops import checks
from ..ops.normalise import MEAN, STD, normalise
from ..ops.upsample_argmax import upsample_argmax
from ..optimize import optimize
from .cuda_graphs import OnGpu, Stages
from .timings import Timings

# Stages of a call, in order; only a GPU has copies.
STAGES = ("copy in", "pre", "network", "post", "copy out")


class Segmenter:
    """A model with all that goes before and after it: images of any size to label maps of the same size.

    model: from (N, 3, h, w), normalised, to logits (N, classes, h', w'), classes <= 256, or an output that holds them,
    as `lwrn_fast.models.outputs.logits` finds them; a single logit above 0 is class 1, else class 0. The model is
    copied, so that later changes of it change nothing. device, dtype: of the copy; None: the model's. size: of the
    model's input, (h, w) or one number for both; None: the image's own, times `scale`.
    how: "eager" begins at once and takes any size; "compile" takes half a minute at first, for the one `size` or for
    all of them, and is faster from then on (see `lwrn_fast.optimize`).
    scales, flip: average the probabilities over inputs of several scales, and over mirrored ones. mean, std: as
    `lwrn_fast.normalise` takes them. shapes: number of input shapes whose CUDA graphs are kept on a GPU.
    Several threads may call it: on a CPU they take turns with the model, which uses all cores; on a GPU, the copies of
    one overlap with the model of another. `timings` returns where the time goes.
    Raises TypeError or ValueError for wrong arguments, and the errors of the model.

    >>> import numpy as np, lwrn_fast
    >>> segmenter = lwrn_fast.Segmenter(lwrn_fast.models.rf_lw_mbv2(8).eval(), size=64)
    >>> segmenter(np.zeros((48, 80, 3), np.uint8)).shape
    (48, 80)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        size: int | Sequence[int] | None = None,
        scale: float = 1.0,
        how: str = "eager",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        shapes: int = 8,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Segmenter: model must be a torch.nn.Module, got {type(model).__name__}")
        if size is not None and scale != 1:
            raise ValueError(f"Segmenter: give size or scale, not both, got {size!r} and {scale!r}")
        if shapes < 1:
            raise ValueError(f"Segmenter: shapes must be at least 1, got {shapes!r}")
        if not scales:
            raise ValueError("Segmenter: scales must be at least one number, got none")
        for name, value in (("scale", scale), *(("scales", each) for each in scales)):
            if not 0 < value < math.inf:
                raise ValueError(f"Segmenter: {name} must be above 0, got {value!r}")
        like = next(model.parameters(), torch.empty(0))
        self.device = torch.device(like.device if device is None else device)
        self.dtype = like.dtype if dtype is None else dtype
        self.size = None if size is None else checks.height_and_width("Segmenter", size)
        self.scale, self.scales, self.flip = scale, tuple(scales), flip
        self.mean, self.std = tuple(mean), tuple(std)
        example = torch.zeros(1, 3, *(self.size or (64, 96)), device=self.device)
        moved = model if like.device == self.device else copy.deepcopy(model).to(self.device)
        self.network = optimize(moved, example, how=how, dynamic=self.size is None, dtype=self.dtype)
        self._turn = threading.Lock()
        self._shape, self._trimmer = torch.Size(), heap.Trimmer()
        self.times = Timings()
        self.shapes = shapes
        self._gpu = OnGpu(self.device, shapes) if self.device.type == "cuda" else None

    def __call__(self, images: Any) -> Any:
        """Return label maps of images, RGB, uint8.

        images: one as NumPy array or tensor (H, W, 3), PIL image, or path of an image file; several of a size
        (N, H, W, 3); or a list of these. Returns uint8 (H, W), or (N, H, W), as a tensor for a tensor, on its device,
        else as a NumPy array; a list for a list.
        """
        if isinstance(images, (list, tuple)):
            return list(self.map(images))
        return self._begin(images)()

    def map(self, images: Iterable[Any]) -> Iterator[Any]:
        """Yield the label maps of images, one after the other, as a call returns them.

        On a GPU, an image is copied there while the model computes the one before.
        """
        ahead: deque[Callable[[], Any]] = deque()
        for image in images:
            ahead.append(self._begin(image))
            if self._gpu is None or len(ahead) > 1:
                yield ahead.popleft()()
        while ahead:
            yield ahead.popleft()()

    def timings(self) -> dict[str, float]:
        """Return the median milliseconds of each stage over the last 1000 calls; 0 for a stage that did not happen.

        The stages are "copy in", "pre", "network", "post" and "copy out".
        """
        medians = self.times.medians()
        return {stage: medians.get(stage, 0) for stage in STAGES}

    # The stages, one by one.

    def input_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """Return (h, w) of the model's input for an image of this size."""
        h, w = self.size or (height * self.scale, width * self.scale)
        return max(1, round(h * scale)), max(1, round(w * scale))

    def input(self, image: Any, scale: float = 1.0) -> Tensor:
        """Turn one image or several into the model's input (N, 3, h, w), as `lwrn_fast.normalise` does."""
        with self.times.measure("pre", self.device), torch.inference_mode():
            x = pixels(image, "Segmenter: image").to(self.device)
            size = self.input_size(x.shape[-3], x.shape[-2], scale)
            return normalise(x, size, self.dtype, self.mean, self.std)

    def logits(self, x: Tensor) -> Tensor:
        """Run the model on the result of `input`; return (N, classes, h', w')."""
        with self._turn, torch.inference_mode():
            with self.times.measure("network", self.device):
                logits = outputs.logits(self.network(x), "Segmenter")
            if x.shape != self._shape:
                self._shape = x.shape
                self._trimmer.size_changed()
            return logits

    def labels(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Return label maps, uint8 (N, H, W)."""
        with self.times.measure("post", self.device), torch.inference_mode():
            return upsample_argmax(outputs.one_per_class(logits), size)

    def _begin(self, image: Any) -> Callable[[], Any]:
        """Start on one image or several; return a function that waits for the labels and returns them."""
        x = pixels(image, "Segmenter: image")
        size = (x.shape[-3], x.shape[-2])
        if self._gpu is not None and len(self.scales) == 1 and not self.flip:
            wait = self._gpu.begin(x, Stages(self.device, self.input, self.network, self.labels, self.times))
        else:
            inputs = [self.input(x, scale) for scale in self.scales]
            if len(inputs) == 1 and not self.flip:
                maps = self.labels(self.logits(inputs[0]), size)
            else:
                maps = averaged_labels(lambda x: outputs.one_per_class(self.logits(x)), inputs, self.flip, size)
            wait = functools.partial(torch.Tensor.to, maps, x.device)

        def finish() -> Any:
            labels = wait() if x.dim() == 4 else wait()[0]
            return labels if isinstance(image, Tensor) else labels.numpy()

        return finish

    def __getstate__(self) -> dict[str, Any]:
        """Return all but locks and CUDA graphs, which a copy makes anew. Raises TypeError for a compiled model."""
        return {name: value for name, value in vars(self).items() if name not in ("_turn", "_gpu")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._turn = threading.Lock()
        self._gpu = OnGpu(self.device, self.shapes) if self.device.type == "cuda" else None


def averaged_labels(logits: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], flip: bool, size: Any) -> Tensor:
    """Return the class of the largest sum of probabilities over several inputs of a model, and their mirror images.

    logits: the model. inputs: (N, 3, h, w) of any sizes. size: (H, W). Returns uint8 (N, H, W).
    """

    def probabilities(x: Tensor) -> Tensor:
        return F.interpolate(x.float(), size, mode="bilinear", align_corners=True).softmax(1)

    with torch.inference_mode():
        total = torch.zeros((), device=inputs[0].device)
        for x in inputs:
            total = total + probabilities(logits(x))
            if flip:
                total = total + probabilities(logits(x.flip(3)).flip(3))
        return total.argmax(1).to(torch.uint8)
