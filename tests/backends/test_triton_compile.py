"""Compile rows of kernels/configs.json by bench/gpu/aot.py, which reports their resources."""

import json
import os
import subprocess
import sys

import pytest

from lwrn_fast.kernels import configs
from support.bench_tools import BENCH

pytest.importorskip("triton", reason="Triton is not installed")

# Device keys of the table, except the interpreter's.
KEYS = ["90", "80", "86", "100"]


def run_aot(folder, *options):
    """Run bench/gpu/aot.py, and return its exit status, its output, and its results."""
    report = folder / "report.json"
    command = [sys.executable, str(BENCH / "gpu" / "aot.py"), "--json", str(report), *options]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=BENCH.parent / "tests", env=environment, capture_output=True, text=True)
    assert report.exists(), done.stdout[-5000:] + done.stderr[-5000:]
    return done.returncode, done.stdout, json.loads(report.read_text())["results"]


@pytest.mark.slow
def test_rows_compile_within_the_rules(tmp_path, everything):
    """Compile all rows of the first architecture; of the others, which take as long, the first row of each op."""
    table = {key: configs.table()[key] for key in KEYS}
    assert {key for key in configs.table() if key.isdigit()} == set(KEYS)
    if not everything:
        for key in KEYS[1:]:
            table[key] = {op: {"half": precisions["half"][:1]} for op, precisions in table[key].items()}
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    # --brief leaves float16 out, but for one row of each op: it compiles as bfloat16 does.
    status, printed, results = run_aot(tmp_path, "--brief", "--arch", *KEYS, "--table", str(path))
    assert status == 0, printed
    rows = {
        (op, key, precision, row["pixels"])
        for key in KEYS
        for op, precisions in table[key].items()
        for precision, rows in precisions.items()
        for row in rows
    }
    assert {(r["op"], r["key"], r["kind"], r["row"]["pixels"]) for r in results} == rows
    assert set(table["90"]) == set(configs.CONFIG_CLASSES)
    assert {r["dtype"] for r in results} == {"bfloat16", "float16", "float32"}
    assert any(r["depthwise"] for r in results)
    assert {name for r in results for name in r["tensor_core"]} == {"mma", "wgmma", "tcgen05"}
    assert all(r["shared"] <= 1024 * r["limit_kb"] for r in results)
    assert all(r["registers"] > 0 and r["spills"] == r["stack"] == 0 for r in results)


@pytest.mark.slow
def test_broken_rules_are_reported(tmp_path):
    row = configs.table()["86"]["crp"]["half"][0]
    not_a_power_of_two = {**row, "pixels": 8192, "block_w": 7}
    one_warp = {**row, "pixels": 2048, "block_h": 8, "block_n": 64, "num_warps": 1}
    five_stages = {**row, "pixels": 0, "num_stages": 5}
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"86": {"crp": {"half": [not_a_power_of_two, one_warp, five_stages]}}}))
    status, printed, _ = run_aot(tmp_path, "--brief", "--arch", "86", "--op", "crp", "--table", str(table))
    assert status == 1
    assert "crp sm_86 half row 8192 bfloat16: does not compile: " in printed
    assert "crp sm_86 half row 2048 bfloat16: spills: " in printed
    assert "crp sm_86 half row 0 bfloat16: 128 KB of shared memory, over the limit of 99 KB" in printed


def test_missing_rows_are_reported(tmp_path):
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"90": {}}))
    command = [sys.executable, str(BENCH / "gpu" / "aot.py"), "--table", str(table), "--arch", "90", "--op", "fusion"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no rows for 90 fusion" in done.stderr


@pytest.mark.slow
def test_amd(tmp_path):
    """Compile one row, of a GPU with little shared memory: the table has none for AMD, and no speed is known there."""
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"86": {"crp": {"half": configs.table()["86"]["crp"]["half"][:1]}}}))
    status, printed, results = run_aot(tmp_path, "--amd", "--op", "crp", "--table", str(table))
    assert status == 0, printed
    assert [(r["dtype"], r["depthwise"], "mfma" in r["tensor_core"]) for r in results] == [
        ("bfloat16", False, True),
        ("bfloat16", True, False),
        ("float16", False, True),
    ]
