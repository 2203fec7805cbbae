"""The Triton kernels beyond the op tests, which run on them too: small tiles, their workspace, tracing, and warmup."""

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

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Every way in which a map can be cut into items: tiles that overhang, blocks of planes, several passes per item.
CRP_CONFIGS = {
    "square_tiles": configs.Crp(4, 4, 16, 1, 32, 16, 1, 4, 1),
    "flat_tiles": configs.Crp(2, 8, 16, 2, 32, 16, 1, 4, 1),
    "tall_tiles": configs.Crp(16, 2, 32, 1, 16, 32, 1, 4, 1),
    "one_tile": configs.Crp(16, 16, 64, 1, 64, 64, 1, 4, 1),
}


@pytest.fixture(autouse=True)
def _on_the_device():
    with torch.device(DEVICE):
        yield


def crp_problem(dtype=torch.float32, batch=2, planes=20, size=(6, 7), stages=2, groups=1):
    x = torch.randn(batch, planes, *size).to(dtype)
    weights = [torch.randn(planes, planes // groups, 1, 1).to(dtype) / 5 for _ in range(stages)]
    return [x, weights, [torch.randn(planes).to(dtype) for _ in range(stages)], groups]


@pytest.mark.parametrize("groups", [1, 20], ids=["dense", "depthwise"])
@pytest.mark.parametrize("config", CRP_CONFIGS)
def test_crp_in_tiles(config, groups):
    problem = crp_problem(groups=groups)
    prepared = crp.prepare(*problem, config=CRP_CONFIGS[config])
    got = prepared.run()
    torch.testing.assert_close(got, reference.crp(*in_double(problem)).float())
    assert not prepared.arguments["workspace"].any(), "the workspace is not as it was found"


def test_crp_of_images_in_groups():
    """More images than are worked on together."""
    problem = crp_problem(batch=5, planes=16, size=(4, 5), stages=2)
    prepared = crp.prepare(*problem)
    prepared.arguments["group"] = 2
    torch.testing.assert_close(prepared.run(), reference.crp(*problem))


@pytest.mark.parametrize("block_pixels", [16, 64])
def test_fusion_in_tiles(block_pixels):
    inputs = [torch.randn(2, 20, 7, 9), torch.randn(2, 40, 3, 5), torch.randn(2, 3, 7, 9)]
    weights, biases = [torch.randn(24, x.shape[1], 1, 1) for x in inputs], [torch.randn(24) for _ in inputs]
    problem = [inputs, weights, biases, "relu", True]
    (row, *_) = configs.rows(configs.Fusion, "fusion", configs.device_key(inputs[0].device), "ieee")
    config = dataclasses.replace(row, block_pixels=block_pixels, block_planes=16, block_depth=16)
    got = fusion.prepare(*problem, config=config).run()
    torch.testing.assert_close(got, reference.fusion(*in_double(problem)).float())


@pytest.mark.parametrize("block_classes", [2, 16])
@pytest.mark.parametrize("block", [(1, 16), (4, 8)], ids=name)
def test_upsample_argmax_in_tiles(block, block_classes):
    logits = torch.randn(2, 21, 4, 5)
    (row, *_) = configs.rows(configs.UpsampleArgmax, "upsample_argmax", configs.device_key(logits.device), "ieee")
    config = dataclasses.replace(row, block_h=block[0], block_w=block[1], block_classes=block_classes)
    got = upsample_argmax.prepare(logits, 9, 19, True, config=config).run()
    assert torch.equal(got, upsample_argmax.prepare(logits, 9, 19, True).run())
    assert torch.equal(got, reference.upsample_argmax(logits, (9, 19)))


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter does the checking")
def test_no_whole_number_overflows(monkeypatch):
    from triton.runtime.interpreter import interpreter_builder

    checked = dataclasses.replace(interpreter_builder.options, sanitize_overflow=True)
    monkeypatch.setattr(interpreter_builder, "options", checked)
    crp.prepare(*crp_problem(size=(5, 6), stages=2), config=CRP_CONFIGS["square_tiles"]).run()
    upsample_argmax.prepare(torch.randn(1, 5, 3, 4), 7, 9, False).run()
    inputs = [torch.randn(1, 8, 6, 5), torch.randn(1, 8, 3, 2)]
    fusion.prepare(inputs, [torch.randn(8, 8, 1, 1)] * 2, [], "relu", False).run()


class TestConfigs:
    def test_the_first_row_that_is_small_enough(self):
        rows = configs.rows(configs.Crp, "crp", "90", "half")
        assert [row.pixels for row in rows] == sorted((row.pixels for row in rows), reverse=True)
        assert configs.look_up(configs.Crp, "crp", "90", "half", 1) == rows[-1]
        assert configs.look_up(configs.Crp, "crp", "90", "half", 10**7) == rows[0]

    @pytest.mark.parametrize(
        ("capability", "key"),
        [((8, 0), "80"), ((8, 6), "86"), ((8, 9), "86"), ((9, 0), "90"), ((10, 3), "100"), ((12, 0), "86")],
        ids=str,
    )
    def test_of_a_device(self, capability, key):
        assert configs.key_for(capability) == key

    def test_every_row_fits_its_type_and_the_last_takes_all(self):
        for key, ops in configs.table().items():
            for op, kinds in ops.items():
                for kind in kinds:
                    assert configs.rows(configs.KINDS[op], op, key, kind)[-1].pixels == 0


class TestMissing:
    def run(self, code: str, **environment: str) -> str:
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
        answer = lwrn_fast.explain("fusion", [x] * 4, [weight] * 4, biases)["triton"]
        assert answer == "it takes at most 3 inputs, not 4"


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
crp.multiprocessors = lambda device: 132
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
        given = dict(node.kwargs["kwargs"])
        values = {key: value.meta["val"] for key, value in given.items() if hasattr(value, "meta")}
        symbols = sorted(key for key, value in values.items() if isinstance(value, SymInt))
        given.update(kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"]))
        given.update({k: int(v) if k in symbols else torch.empty(1, dtype=v.dtype) for k, v in values.items()})
        accesses = identify_accessed_tensors(kernel, given, {})
        what = op + kernel.fn.__name__ if op == "backward" else op
        print(what, "writes", *sorted(dep.name for dep in accesses.read_writes.writes))
        if op != "backward":
            print(what, "symbols", *symbols)
"""


def test_torch_compile_sees_what_the_kernels_write():
    """A graph holds the launch itself, no input counts as written, which would cost a copy, and sizes may vary."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {line for line in lines if line.startswith("backward")} == {
        "backward_crp writes kept out panels workspace",
        "backward_stage writes pooled winners",
        "backward_stage writes grads pooled winners",
        "backward_stage writes grads",
        "backward_input_gradient writes out",
        "backward_weight_gradient writes sums",
        "backward_add_up writes out",
        "backward_stop writes stopped",
        "backward_shrink writes out",
    }
    assert [line for line in lines if not line.startswith("backward")] == [
        "crp writes kept out panels workspace",
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
        ran = []
        run = triton.run

        def recorded(op, tensors, *arguments):
            ran.append((op, tuple(tensors[0].shape), tensors[0].dtype))
            return run(op, tensors, *arguments)

        monkeypatch.setattr(triton, "run", recorded)
        lwrn_fast.warmup(lwrn_fast.CRP(4, 4).bfloat16(), (1, 4, 3, 5))
        calls = [("fusion", [(1, 4, 4, 4), (1, 3, 2, 2)], 5), ("upsample_argmax", (1, 3, 4, 4), 8)]
        lwrn_fast.warmup(calls, dtype=torch.float16)
        expected = [("crp", (1, 4, 3, 5), torch.bfloat16), ("fusion", (1, 4, 4, 4), torch.float16)]
        assert ran == [*expected, ("upsample_argmax", (1, 3, 4, 4), torch.float16)]

    @pytest.mark.parametrize("call", [("pool", (1, 2, 3, 4)), ("crp",), ("fusion", [(1, 2, 3, 4)])], ids=str)
    def test_what_is_no_call(self, call):
        with pytest.raises(ValueError, match=r'warmup: a call must be \("crp", x\), .* got \('):
            lwrn_fast.warmup([call])

    def test_shapes_without_a_model(self):
        with pytest.raises(ValueError, match="warmup: shapes belong into the calls where no model is given"):
            lwrn_fast.warmup([("crp", (1, 2, 3, 4))], (1, 2, 3, 4))


def test_auto_leaves_it_alone_until_it_has_run_on_a_gpu(monkeypatch):
    """A test to delete, with `Triton.unproven`, once bench/gpu/gpu_check.sh has passed."""
    x, weight = torch.zeros(1, 4, 3, 3), torch.zeros(4, 4, 1, 1)
    monkeypatch.setitem(selection._ORDER, "cpu", (triton.Triton(),))
    assert backends.select(backends.Call(CRP, [x, weight])) is backends.REFERENCE


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made by mprotect of Linux")
def test_nothing_is_read_beyond_a_tensor():
    """Rows of the table, and sizes whose last item is not full, in a process that such a read would end."""
    program = str(TESTS / "support" / "guard_pages.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]}: {done.returncode}\n{done.stderr}"
    assert int(done.stderr.split()[-2]) > 150
