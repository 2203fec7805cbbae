"""The kernels on a GPU: sizes as in use, graphs, streams, threads, memory that is not clean, torch.compile.

The op tests run there as well: `pytest -k "cuda or triton"`.
"""

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import lwrn_fast
import support.crp
import support.fusion
import support.segmenting
import support.small_model
import support.upsample_argmax
from lwrn_fast import reference
from lwrn_fast.profiling import cases, machine, shapes
from lwrn_fast.profiling.cases import CrpCase, FusionCase, UpsampleArgmaxCase
from support import bench_tools
from support.comparing import LAYOUTS, in_double

gpu = bench_tools.load("gpu/gpu")
REASONS = {backend: gpu.why_not(backend) for backend in gpu.BACKENDS}
BACKENDS = [
    pytest.param(backend, marks=pytest.mark.skipif(reason is not None, reason=f"{backend}: {reason}"))
    for backend, reason in REASONS.items()
]

# Kinds of arithmetic, to dtype and float32 precision.
KINDS = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "ieee"),
}
BATCHES = [(1, "channels_last"), (2, "contiguous"), (3, "channels_last")]
CRP = [*shapes.CRP, CrpCase(3, 1, 1), CrpCase(17, 5, 7), CrpCase(65, 33, 31), CrpCase(300, 9, 130)]
FUSION = [
    *shapes.FUSION,
    FusionCase(((5, 9, 13),), 19, "none"),
    FusionCase(((33, 31, 47), (65, 40, 20)), 100, "relu6"),
    FusionCase(((7, 45, 33), (130, 1, 1), (24, 45, 33)), 33, "relu"),
]
UPSAMPLE_ARGMAX = [
    *shapes.UPSAMPLE_ARGMAX,
    UpsampleArgmaxCase(150, 37, 41, (29, 200)),
    UpsampleArgmaxCase(1, 3, 2, (5, 9)),
]
OPS = ["crp", "crp_depthwise", "fusion", "upsample_argmax"]

Function = Callable[..., Tensor]


@pytest.fixture(autouse=True, params=BACKENDS)
def by(request) -> Iterator[str]:
    """Every test runs once with each backend."""
    with lwrn_fast.use_backend(request.param), torch.device("cuda"), machine.float32_precision("ieee"):
        yield request.param
        torch.cuda.synchronize()  # a test's errors are its own


@pytest.fixture(params=KINDS)
def kind(request) -> Iterator[str]:
    with machine.float32_precision(KINDS[request.param][1]):
        yield request.param


def assert_right_in_tf32(got: Tensor, exact: Tensor) -> None:
    """Eager is no measure here: for some sizes it takes float32."""
    wrong = got.double() - exact
    assert wrong.norm() <= 1e-3 * exact.norm()
    assert wrong.abs().max() <= 5e-3 * exact.abs().max()


def problem(op: str, dtype: torch.dtype = torch.bfloat16, channels: int = 96, size=(61, 67), batch: int = 2):
    """A function of the inputs, and a function that makes inputs."""
    low = (size[0] // 2 + 1, size[1] // 2 + 1)

    def maps(*size: int) -> Tensor:
        return LAYOUTS["channels_last"](torch.randn(batch, channels, *size).to(dtype))

    if op.startswith("crp"):
        groups = channels if op == "crp_depthwise" else 1
        weights, biases = support.crp.parameters(channels, 4, dtype, groups, bias=True)
        return lambda x: lwrn_fast.crp(x, weights, biases, groups), lambda: [maps(*size)]
    if op == "fusion":
        weights, biases = support.fusion.parameters([channels, channels], channels, dtype, bias=True)
        return lambda *xs: lwrn_fast.fusion(xs, weights, biases), lambda: [maps(*size), maps(*low)]
    return lambda x: lwrn_fast.upsample_argmax(x, (3 * size[0], 3 * size[1])), lambda: [maps(*size)]


def garbage() -> None:
    """The memory that torch.empty hands out next is full of it: NaN, then ones in bfloat16, large numbers in int32."""
    for value in (-1, 0x3F803F80):
        blocks = [torch.full((2**k,), value, dtype=torch.int32) for k in range(7, 24)]
        del blocks


def captured(function: Function, inputs: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of one call, and its result."""
    function(*inputs)  # compiled before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*inputs)
    return graph, result


@pytest.mark.usefixtures("poisoned")
class TestSizes:
    @pytest.mark.parametrize("case", CRP, ids=str)
    def test_crp(self, case, kind):
        dtype = KINDS[kind][0]
        for batch, layout in BATCHES:
            x = LAYOUTS[layout](torch.randn(batch, case.channels, case.height, case.width).to(dtype))
            weights, _ = support.crp.parameters(case.channels, cases.STAGES, dtype)
            if kind == "tf32":
                assert_right_in_tf32(lwrn_fast.crp(x, weights), reference.crp(x.double(), in_double(weights)))
            else:
                support.crp.check(x, weights)

    @pytest.mark.parametrize("case", CRP[:2], ids=str)
    def test_crp_depthwise(self, case, kind):
        x = torch.randn(2, case.channels, case.height, case.width).to(KINDS[kind][0])
        parameters = support.crp.parameters(case.channels, 4, x.dtype, case.channels, bias=True)
        support.crp.check(x, *parameters, case.channels)

    @pytest.mark.parametrize("case", FUSION, ids=str)
    def test_fusion(self, case, kind):
        dtype = KINDS[kind][0]
        channels = [c for c, _, _ in case.inputs]
        for batch, layout in BATCHES:
            inputs = [LAYOUTS[layout](torch.randn(batch, *shape).to(dtype)) for shape in case.inputs]
            weights, _ = support.fusion.parameters(channels, case.out_channels, dtype)
            for align_corners in (True, False):
                arguments = [inputs, weights, None, case.activation, align_corners]
                if kind == "tf32":
                    assert_right_in_tf32(lwrn_fast.fusion(*arguments), reference.fusion(*in_double(arguments)))
                else:
                    support.fusion.check(*arguments)

    @pytest.mark.parametrize("case", UPSAMPLE_ARGMAX, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_upsample_argmax(self, case, dtype):
        for batch, layout in BATCHES:
            logits = LAYOUTS[layout](torch.randn(batch, case.classes, case.height, case.width).to(dtype))
            for align_corners in (True, False):
                support.upsample_argmax.check(logits, case.to, align_corners)


class TestEachCudaKernel:
    """Where it can run, whether or not it would be chosen."""

    SMALL = [CrpCase(72, 19, 27), CrpCase(33, 19, 27), CrpCase(256, 64, 64)]

    @staticmethod
    def check(by: str, kernel: str, checks: list[Callable[[], bool]]) -> None:
        if by != "cuda":
            pytest.skip("of CUDA only")
        if not [run for check in checks if (run := gpu.if_it_can(gpu.on(by, check, kernel)))]:
            pytest.skip("not for this kind of number or this GPU")

    @pytest.mark.parametrize("kernel", gpu.CUDA_KERNELS["crp"])
    def test_crp(self, by, kernel, kind):
        def check(case: CrpCase) -> bool:
            x = LAYOUTS["channels_last"](torch.randn(2, case.channels, case.height, case.width).to(KINDS[kind][0]))
            weights, biases = support.crp.parameters(case.channels, 4, x.dtype, bias=True)
            if kind == "tf32":
                exact = reference.crp(*in_double([x, weights, biases]))
                assert_right_in_tf32(lwrn_fast.crp(x, weights, biases), exact)
            else:
                support.crp.check(x, weights, biases)
            return True

        self.check(by, kernel, [lambda case=case: check(case) for case in self.SMALL])

    @pytest.mark.parametrize("kernel", gpu.CUDA_KERNELS["fusion"])
    def test_fusion(self, by, kernel, kind):
        def check(case: FusionCase) -> bool:
            inputs = [torch.randn(2, *shape).to(KINDS[kind][0]) for shape in case.inputs]
            channels = [c for c, _, _ in case.inputs]
            weights, biases = support.fusion.parameters(channels, case.out_channels, inputs[0].dtype, True)
            arguments = [inputs, weights, biases, case.activation, True]
            if kind == "tf32":
                assert_right_in_tf32(lwrn_fast.fusion(*arguments), reference.fusion(*in_double(arguments)))
            else:
                support.fusion.check(*arguments)
            return True

        self.check(by, kernel, [lambda case=case: check(case) for case in FUSION[-4:]])


@pytest.mark.parametrize("op", OPS)
def test_fifty_runs_in_memory_that_is_not_clean_give_the_same_bits(op, kind):
    function, inputs_of = problem(op, KINDS[kind][0])
    inputs = inputs_of()
    expected = function(*inputs)
    for _ in range(50):
        garbage()
        assert torch.equal(function(*inputs), expected)


@pytest.mark.parametrize("op", ["crp", "crp_depthwise"])
def test_workspaces_are_left_as_zeros(op, by):
    """Or the next launch, of another size, would be wrong or never end."""
    for size in [(16, 16), (120, 130), (5, 3), (61, 67), (200, 200), (16, 16)]:
        function, inputs_of = problem(op, size=size)
        inputs = inputs_of()
        expected = function(*inputs)
        garbage()
        assert torch.equal(function(*inputs), expected)
        if by == "triton":
            workspaces = importlib.import_module("lwrn_fast.kernels.launch")._workspaces
            assert not any(workspace.any() for workspace in workspaces.values())


class TestGraphs:
    @pytest.mark.parametrize("op", OPS)
    def test_a_thousand_replays(self, op):
        function, inputs_of = problem(op)
        inputs = [inputs_of() for _ in range(5)]
        expected = [function(*given) for given in inputs]
        static = inputs_of()
        graph, result = captured(function, static)
        for i in range(1000):
            torch._foreach_copy_(static, inputs[i % 5])
            graph.replay()
            assert torch.equal(result, expected[i % 5]), f"replay {i}"

    @pytest.mark.parametrize("op", OPS)
    def test_replays_beside_eager_calls(self, op):
        function, inputs_of = problem(op)
        recorded, given = inputs_of(), inputs_of()
        expected, expected_eager = function(*recorded), function(*given)
        graph, result = captured(function, recorded)
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        eager = []
        for _ in range(100):
            with torch.cuda.stream(stream):
                graph.replay()
            eager.append(function(*given))
        torch.cuda.synchronize()
        assert torch.equal(result, expected)
        assert all(torch.equal(got, expected_eager) for got in eager)

    def test_two_graphs_at_once(self):
        function, inputs_of = problem("crp")
        inputs = [inputs_of() for _ in range(2)]
        expected = [function(*given) for given in inputs]
        graphs = [captured(function, given) for given in inputs]
        streams = [torch.cuda.Stream() for _ in graphs]
        torch.cuda.synchronize()
        for _ in range(100):
            for stream, (graph, _) in zip(streams, graphs, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(result, right) for (_, result), right in zip(graphs, expected, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_two_streams_at_once(op):
    jobs = [problem(op), problem(op, size=(40, 90))]
    inputs = [inputs_of() for _, inputs_of in jobs]
    expected = [function(*given) for (function, _), given in zip(jobs, inputs, strict=True)]
    streams = [torch.cuda.Stream() for _ in jobs]
    torch.cuda.synchronize()
    results: list[list[Tensor]] = [[], []]
    for _ in range(100):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(jobs[i][0](*inputs[i]))
    torch.cuda.synchronize()
    for got, right in zip(results, expected, strict=True):
        assert all(torch.equal(result, right) for result in got)


@pytest.mark.parametrize("own_streams", [False, True], ids=["one_stream", "own_streams"])
@pytest.mark.parametrize("op", OPS)
def test_several_python_threads(op, own_streams):
    jobs = [problem(op, size=size) for size in [(16, 16), (61, 67), (120, 40), (33, 90)]]
    inputs = [inputs_of() for _, inputs_of in jobs]
    expected = [function(*given) for (function, _), given in zip(jobs, inputs, strict=True)]
    torch.cuda.synchronize()

    def run(i: int) -> bool:
        stream = torch.cuda.Stream() if own_streams else torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            return all(torch.equal(jobs[i][0](*inputs[i]), expected[i]) for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("op", OPS)
def test_the_second_gpu(op):
    with torch.device("cuda:1"):
        function, inputs_of = problem(op)
        inputs = inputs_of()
    assert torch.cuda.current_device() == 0
    got = function(*inputs)
    assert got.device == torch.device("cuda:1")
    with torch.cuda.device(1):
        assert torch.equal(function(*inputs), got)


class TestCompile:
    @pytest.fixture(autouse=True)
    def _fresh(self):
        torch._dynamo.reset()

    @staticmethod
    def compare(network, compiled, given):
        with torch.no_grad():
            expected, expected_labels = network(*given)
            logits, labels = compiled(*given)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
            assert (labels == expected_labels).float().mean() > 0.999  # near-ties may be decided either way
            assert logits.stride() == expected.stride()

    def test_with_inductor(self):
        network = support.small_model.Model().eval()
        self.compare(network, torch.compile(network, fullgraph=True), support.small_model.inputs(40, 56))

    def test_dynamic_shapes(self):
        network = support.small_model.Model().eval()
        compiled = torch.compile(network, fullgraph=True, dynamic=True)
        for size in [(40, 56), (64, 30), (90, 94)]:
            self.compare(network, compiled, support.small_model.inputs(*size))

    def test_reduce_overhead(self):
        network = support.small_model.Model().eval()
        compiled = torch.compile(network, fullgraph=True, mode="reduce-overhead")
        for _ in range(8):
            torch.compiler.cudagraph_mark_step_begin()
            self.compare(network, compiled, support.small_model.inputs(40, 56))

    def test_training(self):
        network = support.small_model.Model()
        given = support.small_model.inputs(40, 56)
        network(*given)[0].square().mean().backward()
        expected = [p.grad.clone() for p in network.parameters()]
        network.zero_grad()
        torch.compile(network, fullgraph=True)(*given)[0].square().mean().backward()
        for parameter, grad in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-4)


class TestGradients:
    def test_crp(self):
        x = LAYOUTS["channels_last"](torch.randn(2, 64, 40, 33)).requires_grad_()
        weights = [w.requires_grad_() for w in support.crp.parameters(64, 4, torch.float32)[0]]
        got = torch.autograd.grad(lwrn_fast.crp(x, weights).square().mean(), [x, *weights])
        expected = torch.autograd.grad(reference.crp(x, weights).square().mean(), [x, *weights])
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)

    def test_fusion(self):
        inputs = [x.requires_grad_() for x in support.fusion.maps(2, [48, 64], [(40, 33), (20, 17)], torch.float32)]
        weights = [w.requires_grad_() for w in support.fusion.parameters([48, 64], 64, torch.float32)[0]]
        got = torch.autograd.grad(lwrn_fast.fusion(inputs, weights).square().mean(), [*inputs, *weights])
        expected = torch.autograd.grad(reference.fusion(inputs, weights).square().mean(), [*inputs, *weights])
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)

    def test_autocast(self):
        block, x = lwrn_fast.CRP(64, 64), torch.randn(1, 64, 40, 33, requires_grad=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = block(x)
        assert out.dtype == torch.bfloat16
        out.float().square().mean().backward()
        assert {t.grad.dtype for t in [x, *block.parameters()]} == {torch.float32}


class TestMoreThanTwoBillionElements:
    """Elements beyond index 2**31 are compared, and elements before."""

    HEIGHT, WIDTH = 3000, 2900  # with 256 channels, 2.2e9 values

    @pytest.fixture(autouse=True)
    def _room(self):
        torch.cuda.empty_cache()
        if torch.cuda.mem_get_info()[0] < 25e9:
            pytest.skip("needs 25 GB of free GPU memory")
        yield
        torch.cuda.empty_cache()

    def large(self, channels: int) -> Tensor:
        return torch.randn(1, self.HEIGHT, self.WIDTH, channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)

    def test_crp(self):
        x = self.large(256)
        weights, _ = support.crp.parameters(256, 2, x.dtype)
        got = lwrn_fast.crp(x, weights)
        for corner in (slice(None, 64), slice(-64, None)):  # two stages see four pixels far
            inner = slice(None, -8) if corner.start is None else slice(8, None)
            part = reference.crp(x[:, :, corner, corner].double(), in_double(weights))
            assert_right_in_bfloat16(got[:, :, corner, corner][:, :, inner, inner], part[:, :, inner, inner])

    def test_fusion_of_a_large_input(self):
        x = self.large(256)
        weights, _ = support.fusion.parameters([256], 16, x.dtype)
        got = lwrn_fast.fusion([x], weights, activation="none")
        for rows in (slice(None, 8), slice(-8, None)):
            part = reference.fusion([x[:, :, rows].double()], in_double(weights), activation="none")
            assert_right_in_bfloat16(got[:, :, rows], part)

    def test_fusion_with_a_large_result(self):
        inputs = [self.large(16), torch.randn(1, 16, 750, 725).to(torch.bfloat16)]
        weights, _ = support.fusion.parameters([16, 16], 256, torch.bfloat16)
        got = lwrn_fast.fusion(inputs, weights)
        last = reference.fusion(in_double(inputs), [w[-1:].double() for w in weights])
        assert_right_in_bfloat16(got[:, -1:], last)

    def test_labels_of_large_logits(self):
        logits = self.large(256)
        got = lwrn_fast.upsample_argmax(logits, (self.HEIGHT, self.WIDTH))
        assert torch.equal(got[:, -8:], logits[:, :, -8:].argmax(1).to(torch.uint8))

    def test_labels(self):
        """Class 1 wins in the lower half."""
        logits = torch.tensor([[[[1.0], [0.0]], [[0.0], [1.0]]]])
        height, width = 2**16, 2**15 + 8
        labels = lwrn_fast.upsample_argmax(logits, (height, width))[0]
        assert not labels[: height // 2].any()
        assert labels[height // 2 :].all()


def assert_right_in_bfloat16(got: Tensor, exact: Tensor) -> None:
    assert (got.double() - exact).abs().max() <= 2e-2 * exact.abs().max()


@pytest.mark.parametrize("op", OPS)
def test_the_time_python_takes_for_a_call(op, by, record_property, capsys):
    """Reported, for it depends on the machine; see bench/gpu/gpu_bench.py."""
    function, inputs_of = problem(op, channels=32, size=(8, 8), batch=1)
    inputs = inputs_of()
    microseconds = 1e6 * gpu.host_seconds(lambda: function(*inputs))
    record_property("python_us_per_call", microseconds)
    with capsys.disabled():
        print(f"{op}, {by}: {microseconds:.1f} us of Python per call")


class TestSegmenter:
    """Whatever runs the ops: pinned copies, two streams, and a graph of the network per shape."""

    @pytest.fixture
    def segmenters(self) -> tuple[lwrn_fast.Segmenter, lwrn_fast.Segmenter]:
        """On the GPU with room for two graphs, and on the CPU by plain PyTorch."""
        with torch.device("cpu"):
            torch.manual_seed(1)
            model = support.segmenting.network()
            on_cpu = lwrn_fast.Segmenter(model)
        return lwrn_fast.Segmenter(model, device="cuda", shapes=2), on_cpu

    def check(self, got, segmenter: lwrn_fast.Segmenter, image) -> None:
        with lwrn_fast.use_backend("reference"), torch.device("cpu"):
            support.segmenting.assert_same_labels(got, segmenter(image))

    def test_changing_sizes(self, segmenters):
        ours, theirs = segmenters
        for size in [(40, 64), (33, 57), (40, 64), (7, 200), (90, 31), (40, 64)]:
            image = support.segmenting.random_image(*size)
            self.check(ours(image), theirs, image)

    def test_one_after_the_other(self, segmenters):
        ours, theirs = segmenters
        images = [support.segmenting.random_image(40 + i % 3, 64, i) for i in range(20)]
        for image, labels in zip(images, ours.map(images), strict=True):
            self.check(labels, theirs, image)
        assert all(ours.timings().values())

    def test_tensors_stay_on_their_device(self, segmenters):
        image = torch.from_numpy(support.segmenting.random_image(40, 64))
        assert segmenters[0](image).device.type == "cpu"
        labels = segmenters[0](image.cuda())
        assert labels.is_cuda
        self.check(labels.cpu().numpy(), segmenters[1], image.numpy())

    def test_from_several_threads(self, segmenters, by):
        ours, _ = segmenters
        images = [support.segmenting.random_image(24 + 8 * i, 64, i) for i in range(4)]
        wanted = [ours(image) for image in images]

        def work(i: int) -> bool:
            with lwrn_fast.use_backend(by):
                return all((ours(images[(i + k) % 4]) == wanted[(i + k) % 4]).all() for k in range(50))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))

    def test_scales_and_flip(self, segmenters):
        image = support.segmenting.random_image(40, 64)
        model = segmenters[1].network.network
        both = [lwrn_fast.Segmenter(model, device=d, scales=(0.5, 1.0), flip=True) for d in ("cuda", "cpu")]
        self.check(both[0](image), both[1], image)
