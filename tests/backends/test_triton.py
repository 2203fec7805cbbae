"""Test the Triton kernels beyond the op tests, which run on them too: small tiles, workspace, tracing, and warmup."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

import lwrn_fast
from lwrn_fast import backends, reference
from lwrn_fast.backends import selection, triton
from lwrn_fast.ops.crp import OP as CRP
from support.comparing import in_double, name
from support.compiling import TESTS

if triton.missing() is not None:
    pytest.skip(triton.missing(), allow_module_level=True)

from lwrn_fast.kernels import configs, crp, fusion, upsample_argmax

# The device of all tensors: where there is no GPU, the kernels run in the interpreter.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Every way in which a map can be divided into items: tiles that overhang, blocks of channels, several passes per item.
CRP_CONFIGS = {
    "square_tiles": configs.Crp(4, 4, 16, 1, 32, 16, 1, 4, 1),
    "flat_tiles": configs.Crp(2, 8, 16, 2, 32, 16, 1, 4, 1),
    "tall_tiles": configs.Crp(16, 2, 32, 1, 16, 32, 1, 4, 1),
    "one_tile": configs.Crp(16, 16, 64, 1, 64, 64, 1, 4, 1),
}


@pytest.fixture(autouse=True)
def _on_device():
    with torch.device(DEVICE):
        yield


def crp_problem(dtype=torch.float32, batch=2, channels=20, size=(6, 7), stages=2, groups=1):
    x = torch.randn(batch, channels, *size).to(dtype)
    weights = [torch.randn(channels, channels // groups, 1, 1).to(dtype) / 5 for _ in range(stages)]
    return [x, weights, [torch.randn(channels).to(dtype) for _ in range(stages)], groups]


@pytest.mark.parametrize("groups", [1, 20], ids=["dense", "depthwise"])
@pytest.mark.parametrize("config", CRP_CONFIGS)
def test_crp_in_tiles(config, groups):
    problem = crp_problem(groups=groups)
    launch = crp.prepare(*problem, config=CRP_CONFIGS[config])
    torch.testing.assert_close(launch.run(), reference.crp(*in_double(problem)).float())
    assert not launch.arguments["workspace"].any(), "the workspace is not zero again"


def test_crp_of_images_in_groups():
    """Run more images than are in one group of the schedule."""
    problem = crp_problem(batch=5, channels=16, size=(4, 5), stages=2)
    launch = crp.prepare(*problem)
    launch.arguments["group_size"] = 2
    torch.testing.assert_close(launch.run(), reference.crp(*problem))


@pytest.mark.parametrize("block_m", [16, 64])
def test_fusion_in_tiles(block_m):
    inputs = [torch.randn(2, 20, 7, 9), torch.randn(2, 40, 3, 5), torch.randn(2, 3, 7, 9)]
    weights, biases = [torch.randn(24, x.shape[1], 1, 1) for x in inputs], [torch.randn(24) for _ in inputs]
    problem = [inputs, weights, biases, "relu", True]
    (row, *_) = configs.rows(configs.Fusion, "fusion", configs.device_key(inputs[0].device), "ieee")
    config = dataclasses.replace(row, block_m=block_m, block_n=16, block_k=16)
    out = fusion.prepare(*problem, config=config).run()
    torch.testing.assert_close(out, reference.fusion(*in_double(problem)).float())


@pytest.mark.parametrize("block_classes", [2, 16])
@pytest.mark.parametrize("block", [(1, 16), (4, 8)], ids=name)
def test_upsample_argmax_in_tiles(block, block_classes):
    logits = torch.randn(2, 21, 4, 5)
    (row, *_) = configs.rows(configs.UpsampleArgmax, "upsample_argmax", configs.device_key(logits.device), "ieee")
    config = dataclasses.replace(row, block_h=block[0], block_w=block[1], block_classes=block_classes)
    labels = upsample_argmax.prepare(logits, 9, 19, True, config=config).run()
    assert torch.equal(labels, upsample_argmax.prepare(logits, 9, 19, True).run())
    assert torch.equal(labels, reference.upsample_argmax(logits, (9, 19)))


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter checks it")
def test_no_integer_overflows(monkeypatch):
    from triton.runtime.interpreter import interpreter_builder

    checked = dataclasses.replace(interpreter_builder.options, sanitize_overflow=True)
    monkeypatch.setattr(interpreter_builder, "options", checked)
    crp.prepare(*crp_problem(size=(5, 6), stages=2), config=CRP_CONFIGS["square_tiles"]).run()
    upsample_argmax.prepare(torch.randn(1, 5, 3, 4), 7, 9, False).run()
    inputs = [torch.randn(1, 8, 6, 5), torch.randn(1, 8, 3, 2)]
    fusion.prepare(inputs, [torch.randn(8, 8, 1, 1)] * 2, [], "relu", False).run()


class TestConfigs:
    def test_look_up_returns_the_first_row_that_is_small_enough(self):
        rows = configs.rows(configs.Crp, "crp", "90", "half")
        assert [row.pixels for row in rows] == sorted((row.pixels for row in rows), reverse=True)
        assert configs.look_up(configs.Crp, "crp", "90", "half", 1) == rows[-1]
        assert configs.look_up(configs.Crp, "crp", "90", "half", 10**7) == rows[0]

    @pytest.mark.parametrize(
        ("capability", "key"),
        [((8, 0), "80"), ((8, 6), "86"), ((8, 9), "86"), ((9, 0), "90"), ((10, 3), "100"), ((12, 0), "86")],
        ids=str,
    )
    def test_key_for(self, capability, key):
        assert configs.key_for(capability) == key

    def test_every_row_fits_its_class_and_the_last_takes_all(self):
        for key, ops in configs.table().items():
            for op, precisions in ops.items():
                for precision in precisions:
                    assert configs.rows(configs.CONFIG_CLASSES[op], op, key, precision)[-1].pixels == 0


class TestMissing:
    def run(self, code: str, **environment: str) -> str:
        """Run Python code in a process of its own, and return what it prints."""
        variables = {**os.environ, **environment}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def test_without_triton(self):
        code = "import sys; sys.modules['triton'] = None; import lwrn_fast as l; print(l.info()['backends']['triton'])"
        assert self.run(code) == "Triton is not installed"

    @pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
    def test_without_a_gpu(self):
        code = "import lwrn_fast; print(lwrn_fast.info()['backends']['triton'])"
        assert self.run(code, TRITON_INTERPRET="0") == "PyTorch finds no GPU"

    def test_more_stages_than_the_kernel_takes(self):
        x, weight = torch.zeros(1, 4, 3, 3), torch.zeros(4, 4, 1, 1)
        assert lwrn_fast.explain("crp", x, [weight] * 8)["triton"] == "ready"
        assert lwrn_fast.explain("crp", x, [weight] * 9)["triton"] == "it runs at most 8 stages, not 9"

    def test_more_inputs_than_the_kernel_takes(self):
        x, weight = torch.zeros(1, 4, 3, 3), torch.zeros(4, 4, 1, 1)
        biases = [torch.zeros(4)] * 4
        assert lwrn_fast.explain("fusion", [x] * 3, [weight] * 3, biases[:3])["triton"] == "ready"
        reason = lwrn_fast.explain("fusion", [x] * 4, [weight] * 4, biases)["triton"]
        assert reason == "it takes at most 3 inputs, not 4"


# A program that traces each op for sm_90, and prints the tensors that its kernels write and the sizes that may vary.
TRACED = """
import torch, triton
from torch._higher_order_ops.triton_kernel_wrap import identify_accessed_tensors, kernel_side_table
from torch import SymInt
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget
from lwrn_fast.kernels import configs, crp
from lwrn_fast.ops import registration

class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

triton.runtime.driver.set_active(Driver())
configs.device_key = lambda device: "90"
crp.num_sms = lambda device: 132
ops = {d.name: registration._launch(d) for d in registration.DEFINITIONS if d.kernel}
x, small, w = torch.empty(1, 64, 48, 40), torch.empty(1, 64, 24, 20), torch.empty(64, 64, 1, 1)
def backward(x, small):
    stages = ops["crp_training"](x, [w] * 2, [], 1)[1]
    ops["crp_backward"](x, x, stages, [w] * 2, [], 1, [True] * 3)
    return ops["fusion_backward"](x, x, [x, small], [w, w], [], "relu", True, [True] * 4)

calls = {
    "crp": lambda x, small: ops["crp"](x, [w] * 4, [], 1),
    "fusion": lambda x, small: ops["fusion"]([x, small], [w, w], [], "relu", True),
    "upsample_argmax": lambda x, small: ops["upsample_argmax"](x, 4 * x.shape[2], 4 * x.shape[3], True),
    "backward": backward,
}
for op, call in calls.items():
    graph = make_fx(call, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x, small).graph
    for node in [node for node in graph.nodes if "triton_kernel_wrapper" in str(node.target)]:
        kernel = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
        arguments = dict(node.kwargs["kwargs"])
        values = {key: value.meta["val"] for key, value in arguments.items() if hasattr(value, "meta")}
        symbols = sorted(key for key, value in values.items() if isinstance(value, SymInt))
        arguments.update(kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"]))
        arguments.update({k: int(v) if k in symbols else torch.empty(1, dtype=v.dtype) for k, v in values.items()})
        accesses = identify_accessed_tensors(kernel, arguments, {})
        name = f"backward {kernel.fn.__name__}" if op == "backward" else op
        print(name, "writes", *sorted(dep.name for dep in accesses.read_writes.writes))
        if op != "backward":
            print(name, "symbols", *symbols)
"""


@pytest.mark.slow
def test_torch_compile_sees_what_the_kernels_write():
    """Show that a graph holds the launch itself, that no input counts as written, which would cost a copy, and that
    sizes may vary."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {line for line in lines if line.startswith("backward")} == {
        "backward crp_kernel writes out panels stage_outputs workspace",
        "backward crp_backward_kernel writes argmax pooled",
        "backward crp_backward_kernel writes argmax pooled stage_grad",
        "backward crp_backward_kernel writes stage_grad",
        "backward input_gradient_kernel writes out",
        "backward weight_gradient_kernel writes partials",
        "backward reduce_partials_kernel writes out",
        "backward activation_backward_kernel writes pre_activation_grad",
        "backward upsample_backward_kernel writes out",
    }
    assert [line for line in lines if not line.startswith("backward")] == [
        "crp writes out panels stage_outputs workspace",
        "crp symbols height tiles_x tiles_y width",
        "fusion writes out",
        "fusion symbols height height1 pixels width width1",
        "upsample_argmax writes labels",
        "upsample_argmax symbols height items source_height source_width tiles_x tiles_y width",
    ]


class TestWarmup:
    @pytest.fixture(autouse=True)
    def _triton(self):
        with lwrn_fast.use_backend("triton"):
            yield

    def test_a_model_and_calls(self, monkeypatch):
        calls_run = []
        run = triton.run

        def record(op, tensors, *arguments):
            calls_run.append((op, tuple(tensors[0].shape), tensors[0].dtype))
            return run(op, tensors, *arguments)

        monkeypatch.setattr(triton, "run", record)
        lwrn_fast.warmup(lwrn_fast.CRP(4, 4).bfloat16(), (1, 4, 3, 5))
        calls = [("fusion", [(1, 4, 4, 4), (1, 3, 2, 2)], 5), ("upsample_argmax", (1, 3, 4, 4), 8)]
        lwrn_fast.warmup(calls, dtype=torch.float16)
        expected = [("crp", (1, 4, 3, 5), torch.bfloat16), ("fusion", (1, 4, 4, 4), torch.float16)]
        assert calls_run == [*expected, ("upsample_argmax", (1, 3, 4, 4), torch.float16)]

    @pytest.mark.parametrize("call", [("pool", (1, 2, 3, 4)), ("crp",), ("fusion", [(1, 2, 3, 4)])], ids=str)
    def test_invalid_calls(self, call):
        with pytest.raises(ValueError, match=r'warmup: a call must be \("crp", x\), .* got \('):
            lwrn_fast.warmup([call])

    def test_shapes_without_a_model(self):
        with pytest.raises(ValueError, match="warmup: shapes belong into the calls where no model is given"):
            lwrn_fast.warmup([("crp", (1, 2, 3, 4))], (1, 2, 3, 4))


def test_auto_leaves_it_alone_until_it_has_run_on_a_gpu(monkeypatch):
    """Delete this test, with `Triton.unproven`, once bench/gpu/gpu_check.sh has passed."""
    x, weight = torch.zeros(1, 4, 3, 3), torch.zeros(4, 4, 1, 1)
    monkeypatch.setitem(selection._ORDER, "cpu", (triton.Triton(),))
    assert backends.select(backends.Call(CRP, [x, weight])) is backends.REFERENCE


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made by mprotect of Linux")
def test_nothing_is_read_beyond_a_tensor():
    """Run rows of the table, on sizes whose last item is not full, in a process that such a read would end."""
    program = str(TESTS / "support" / "guard_pages.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]}: {done.returncode}\n{done.stderr}"
    assert int(done.stderr.split()[-2]) > 150
