"""The Segmenter on a GPU: copies from pinned memory overlap with the work on other images, and each shape of input has
a CUDA graph of the model. Written for PyTorch's documented behaviour; it has not yet run on a GPU."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..log import log
from ..models import outputs
from .timings import Timings

# Streams that take turns.
LANES = 2
# Runs before a graph is captured: libraries choose algorithms and allocate in them.
WARM_UP = 2


class Graph:
    """The model for one shape of input; it runs without a CUDA graph where capturing one fails."""

    def __init__(self, model: Callable[[Tensor], Tensor], example: Tensor) -> None:
        self.x = example.clone(memory_format=torch.preserve_format)
        self.model = model
        self.logits: Tensor | None = None
        self.recording = torch.cuda.CUDAGraph()
        for _ in range(WARM_UP):
            model(self.x)
        try:
            with torch.cuda.graph(self.recording, capture_error_mode="thread_local"):
                self.logits = model(self.x)
        except RuntimeError as error:
            log.warning("Segmenter runs the network without CUDA graphs: %s", str(error).strip().splitlines()[0])
            self.logits = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits, which the next call overwrites."""
        if self.logits is None:
            return self.model(x)
        self.x.copy_(x)
        self.recording.replay()
        return self.logits


class Stages(NamedTuple):
    """The stages of a Segmenter, from images to labels."""

    device: torch.device
    # From uint8 (N, H, W, 3) or (H, W, 3) to the model's input (N, 3, h, w).
    input: Callable[[Tensor], Tensor]
    model: Callable[[Tensor], Any]
    # From logits and (H, W) to uint8 (N, H, W).
    labels: Callable[[Tensor, tuple[int, int]], Tensor]
    times: Timings


class OnGpu:
    """Two streams: while one copies, the other computes. shapes: number of graphs that are kept."""

    def __init__(self, device: torch.device, shapes: int) -> None:
        self.shapes = shapes
        self.graphs: OrderedDict[tuple[int, ...], Graph] = OrderedDict()
        self.turn = threading.Lock()
        self.lanes = [torch.cuda.Stream(device) for _ in range(LANES)]
        self.free = torch.cuda.Event()  # recorded when the graphs' memory has been read
        self.count = 0

    def begin(self, images: Tensor, stages: Stages) -> Callable[[], Tensor]:
        """Start on images, uint8 (N, H, W, 3) or (H, W, 3), on the CPU or the GPU.

        Return a function that waits for their labels and returns them, uint8 (N, H, W), on the same device.
        """
        on_cpu = images.device.type == "cpu"
        size = (images.shape[-3], images.shape[-2])
        if on_cpu:
            pinned = torch.empty(images.shape, dtype=torch.uint8, pin_memory=True)
            pinned.copy_(images)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(6)]
        caller = torch.cuda.current_stream(stages.device)
        with self.turn, torch.inference_mode():
            lane = self.lanes[self.count % LANES]
            self.count += 1
            lane.wait_stream(caller)
            with torch.cuda.stream(lane):
                marks[0].record(lane)
                here = pinned.to(stages.device, non_blocking=True) if on_cpu else images
                marks[1].record(lane)
                x = stages.input(here)
                lane.wait_event(self.free)
                marks[2].record(lane)
                logits = self._graph(x, lambda x: outputs.logits(stages.model(x), "Segmenter"))(x)
                marks[3].record(lane)
                labels = stages.labels(logits, size)
                self.free.record(lane)
                marks[4].record(lane)
                if on_cpu:
                    result = torch.empty(labels.shape, dtype=torch.uint8, pin_memory=True)
                    result.copy_(labels, non_blocking=True)
                else:
                    result = labels
                    result.record_stream(caller)
                marks[5].record(lane)
                here.record_stream(lane)

        def wait() -> Tensor:
            marks[5].synchronize()
            names = ("copy in", "pre", "network", "post", "copy out")
            for stage, start, end in zip(names, marks, marks[1:], strict=False):
                stages.times.add(stage, start.elapsed_time(end) / 1000)
            return result

        return wait

    def _graph(self, x: Tensor, model: Callable[[Tensor], Tensor]) -> Graph:
        key = tuple(x.shape)
        if key not in self.graphs:
            torch.cuda.current_stream(x.device).synchronize()  # others may use memory that capturing reuses
            self.graphs[key] = Graph(model, x)
        self.graphs.move_to_end(key)
        while len(self.graphs) > self.shapes:
            torch.cuda.synchronize(x.device)
            self.graphs.popitem(last=False)
        return self.graphs[key]
