"""The benchmarks: their shapes, set-up functions at tiny sizes, paired times, and the tables of the pages."""

import json
import subprocess
import sys

import pytest
import torch

import lwrn_fast
from lwrn_fast.profiling import memory, paired, peers, shapes, workloads
from lwrn_fast.profiling.cases import CrpCase, FusionCase, ModelCase, UpsampleArgmaxCase
from support import bench_tools

table = bench_tools.load("table")
many_models, overhead = (bench_tools.load(f"targets/{name}") for name in ("many_models", "overhead"))
NAMES = ("crp", "fusion", "upsample_argmax", "model", "training")
OPS = {name: bench_tools.load(f"ops/bench_{name}") for name in NAMES}
TINY = {
    "crp": (OPS["crp"], CrpCase(8, 6, 7)),
    "fusion": (OPS["fusion"], FusionCase(((8, 6, 7), (5, 3, 4)), 8, "relu6")),
    "upsample_argmax": (OPS["upsample_argmax"], UpsampleArgmaxCase(5, 6, 7, (11, 13))),
    "model": (OPS["model"], ModelCase("rf_lw_mbv2", 33, 40)),
    "model with labels": (OPS["model"], ModelCase("rf_lw_mbv2", 33, 40, labels=True)),
    "training of crp": (OPS["training"], CrpCase(8, 6, 7)),
    "training of fusion": (OPS["training"], FusionCase(((8, 6, 7), (5, 3, 4)), 8, "relu6")),
}
TORCH_ONLY = (peers.OURS, peers.OURS_NCHW, peers.OURS_EAGER, peers.EAGER_NCHW, peers.EAGER, peers.FLOOR)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    monkeypatch.setattr(workloads.model, "HOW", "eager")  # a model takes a minute to compile


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TINY)
def test_everybody_is_right_before_being_timed(name, dtype):
    bench, case = TINY[name]
    contest = bench.set_up(case, dtype)
    times = paired.race(contest, threads=1, seconds=0.0, only=TORCH_ONLY)
    assert set(times.rounds) == set(peers.taking_part(dtype, bench.CONTESTANTS)) & set(TORCH_ONLY)
    assert times.ratio(peers.OURS, peers.OURS) == 1


@pytest.mark.slow
def test_peers_where_installed():
    for bench, case in (TINY["crp"], TINY["fusion"], TINY["upsample_argmax"]):
        present = [n for n in (peers.ONNX_RUNTIME, peers.OPENVINO) if peers.why_absent(n) is None]
        times = paired.race(bench.set_up(case, torch.float32), 1, 0.0, only=(peers.OURS, *present))
        assert set(times.rounds) == {peers.OURS, *present}


@pytest.mark.parametrize("name", ["crp", "fusion", "upsample_argmax", "model"])
def test_a_wrong_result_has_no_number(name, monkeypatch):
    bench, case = TINY[name]
    contest = bench.set_up(case, torch.float32)
    right = contest.contestants[peers.OURS]()()
    wrong = right.roll(1, -1) if name == "upsample_argmax" else right + 0.01 * right.abs().max()
    contest.contestants[peers.OURS] = lambda: lambda: wrong
    with pytest.raises(ArithmeticError, match="ours: error"):
        paired.race(contest, 1, 0.0, only=(peers.OURS,))


def test_slow_ones_sit_rounds_out_and_ratios_use_shared_rounds():
    times = paired.Times({"a": [1.0, 2.0, 4.0, 2.0], "b": [3.0, None, 8.0, None]})
    assert times.median("b") == 5.5
    assert times.ratio("b", to="a") == 2.5
    assert [paired._every(once, 1.0, 24, 3) for once in (0.01, 0.1, 1.0, 3.0, 60.0)] == [1, 4, 8, 8, 24]


def test_level_shapes_are_the_encoders():
    channels = {4: 512, 3: 256, 2: 256, 1: 256}
    sides = {
        (512, 512): [(16, 16), (32, 32), (64, 64), (128, 128)],
        (625, 468): [(20, 15), (40, 30), (79, 59), (157, 117)],
    }
    for image, expected in sides.items():
        for level, (h, w) in zip((4, 3, 2, 1), expected, strict=True):
            assert shapes.level_shapes("rf_lw50", level, image)[0] == CrpCase(channels[level], h, w)
            assert shapes.level_shapes("rf_lw_mbv2", level, image)[0] == CrpCase(256, h, w)


@pytest.mark.parametrize("network", shapes.LEVELS)
def test_level_shapes_are_what_the_model_runs(network):
    seen, image = [], (65, 90)
    model = getattr(lwrn_fast.models, network)().eval()
    for module in model.modules():
        if isinstance(module, lwrn_fast.CRP):
            module.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[1:])))
    with lwrn_fast.use_backend("reference"), torch.inference_mode():
        model(torch.randn(1, 3, *image))
    cases = [shapes.level_shapes(network, level, image)[0] for level in (4, 3, 2, 1)]
    assert seen == [(c.channels, c.height, c.width) for c in cases]


def test_targets_are_among_the_cases():
    assert shapes.CRP_TARGET in shapes.CRP
    assert shapes.FUSION_TARGET in shapes.FUSION
    assert shapes.UPSAMPLE_ARGMAX_TARGET in shapes.UPSAMPLE_ARGMAX
    assert shapes.MODEL_TARGET in shapes.MODELS
    assert shapes.CRP_TARGET.operations == 8_589_934_592


@pytest.mark.slow
def test_memory_of_eager_is_at_least_one_map():
    map_bytes = 4 * 256 * 32 * 32
    extra = memory.of_case("crp", "256x32x32", "float32", peers.EAGER, 1)
    if extra is None:
        pytest.skip("this system keeps no high-water mark that can be reset")
    assert map_bytes <= extra <= 20 * map_bytes


def entry(contestant, median, ratio, **more):
    info = {
        "op": "crp",
        "case": "256x128x128",
        "where": "rf_lw50 level 1 of 512x512",
        "dtype": "float32",
        "threads": 2,
        "contestant": contestant,
        "times_ours": ratio,
        "percent_of_limit": None,
        "extra_bytes": None,
    }
    return {"stats": {"median": median, "rounds": 24}, "extra_info": info | more}


RECORDED = {
    "datetime": "2026-11-21T03:00:00",
    "commit_info": {"id": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
    "machine_info": {
        "described": {
            "cpu": "A CPU",
            "cores": "2",
            "isa": "avx512_bf16",
            "lwrn_fast": "0.1.0",
            "torch": "2.13.0",
            "onnxruntime": "",
            "openvino": "2026.4",
            "python": "3.11.7",
        }
    },
    "benchmarks": [
        entry("ours", 0.025, 1.0, percent_of_limit=80.4, extra_bytes=2_500_000),
        entry("eager, channels-last", 0.125, 5.01234, extra_bytes=67_000_000),
        entry("OpenVINO", 0.05, 2.0),
        entry("ours", 0.05, 1.0, threads=1),
    ],
}
EXPECTED = """\
### A CPU, 2 cores, avx512_bf16

2026-11-21, commit 0123456789ab with changes; lwrn_fast 0.1.0, torch 2.13.0, openvino 2026.4, python 3.11.7.
Each column says how many times as long as ours it took: the median over rounds in which all took turns.

#### CRP

| case | type | threads | ours, ms | % of limit | extra MB, ours / eager | eager, channels-last | OpenVINO |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| 256x128x128 | float32 | 2 | 25 | 80 | 2.5 / 67.0 | 5.01 | 2.00 |
| 256x128x128 | float32 | 1 | 50 | - | - / - | - | - |
"""

EXPECTED_SHORT = """\
A CPU, 2 cores, avx512_bf16, torch 2.13.0, 2026-11-21. The other columns say how many times as long as ours each takes.

| float32 | threads | ours, ms | eager, channels-last | eager, NCHW | torch.compile | ONNX Runtime | OpenVINO |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| CRP, 256 channels, 128 x 128 | 2 | 25 | 5.01 | - | - | - | 2.00 |
"""


def test_table_makes_markdown_and_rewrites_pages(tmp_path):
    raw, page, readme, kept = (tmp_path / name for name in ("run.json", "page.md", "README.md", "results"))
    raw.write_text(json.dumps(RECORDED))
    for path in (page, readme):
        path.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    kept.mkdir()
    command = [sys.executable, str(bench_tools.BENCH / "table.py"), str(raw), "--save", str(kept)]
    subprocess.run([*command, "--page", str(page), "--readme", str(readme)], check=True)
    assert page.read_text() == f"before\n{table.BEGIN}\n{EXPECTED}{table.END}\nafter\n"
    assert readme.read_text() == f"before\n{table.BEGIN}\n{EXPECTED_SHORT}{table.END}\nafter\n"
    reduced = json.loads((kept / "run.json").read_text())
    assert table.markdown(reduced) == EXPECTED
    assert "stats" not in str(reduced)


def test_table_says_what_is_missing(tmp_path):
    raw, readme = tmp_path / "run.json", tmp_path / "README.md"
    raw.write_text(json.dumps(RECORDED))
    readme.write_text("no markers\n")
    command = [sys.executable, str(bench_tools.BENCH / "table.py"), str(raw), "--readme", str(readme)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert table.BEGIN in done.stderr
    assert readme.read_text() == "no markers\n"


class TestManyModels:
    """The stress test of many models, without compiling, which takes minutes."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(many_models, "WAYS", ("optimize eager", "Segmenter"))

    @pytest.mark.slow
    def test_right_ones(self):
        figures = many_models.try_all(calls=60, models_in_use=4, threads=2, replaced=2, seed=0, cpp=False)
        assert (figures["calls"], figures["wrong"], figures["messages"]) == (60, 0, [])
        assert sum(figures["calls by way"].values()) == 60

    def test_wrong_ones_are_counted(self, monkeypatch, capsys):
        """A model that answers with another's weights, and one that raises."""
        made = many_models.make

        def confused(number, seed, cpp):
            tried = made(number, seed, cpp)
            if number == 0:
                tried.run = made(2, seed, cpp).run
                tried.expected = [torch.full_like(exact, 9.0) for exact in tried.expected]
            if number == 1:
                tried.run = lambda _: 1 / 0
            return tried

        monkeypatch.setattr(many_models, "make", confused)
        monkeypatch.setattr("sys.argv", ["many_models.py", "--calls", "30", "--models", "2", "--replaced", "0"])
        assert many_models.main() == 1
        said = capsys.readouterr().out.splitlines()
        assert said[-1] == "30 calls, 30 wrong"
        assert any("ZeroDivisionError" in line for line in said)


def test_overhead_of_one_crp():
    with torch.no_grad():
        figures = overhead.race(overhead.crp_calls(), rounds=8, seconds=0)
    assert figures["plain"]["ratio"] == 1
    assert {"plain", "accelerate", "lwrn_fast.CRP", "lwrn_fast.crp"} <= set(figures)
    assert all(0 < row["least ms"] <= row["ms"] for row in figures.values())
