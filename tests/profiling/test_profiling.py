"""`lwrn-fast profile` and `bench`: figures that agree with each other and with torch's, and the page in a browser."""

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lwrn_fast import backends, cli, normalise
from lwrn_fast.backends import native as _native
from lwrn_fast.profiling import (
    bench,
    cases,
    layers,
    machine,
    memory,
    page,
    paired,
    peers,
    profile,
    shapes,
    workloads,
)
from lwrn_fast.profiling.workloads.model import random_model

MARK = "lwrn-fast: error: "
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COSTS = ("flops", "others", "bytes")
SMALL = ("--seconds", "0", "--threads", "1")


class Output:
    """Files and output of one run of the command."""

    def __init__(self, folder: Path, kind: str, said: str = "") -> None:
        self.data = json.loads((folder / f"{kind}.json").read_text())
        self.page, self.said, self.folder = folder / f"{kind}.html", said, folder


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile") / "out"
    command = [sys.executable, "-m", "lwrn_fast", "profile", "rf_lw_mbv2", "--out", str(folder), *SMALL]
    done = subprocess.run([*command, "--size", "64", "64"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return Output(folder, "profile", done.stdout)


@pytest.fixture(scope="module")
def benched(tmp_path_factory):
    """Small, without the minute that compiling takes, and with a contestant that fails."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workloads.model, "HOW", "eager")
        patch.setattr(peers, "compiled", failing)
        patch.setattr(peers, "frozen", lambda _: failing)
        arguments = ["--size", "32", "48", "--peers", "nchw", "eager", "compile", "--out", str(folder), *SMALL]
        assert cli.main(["bench", *arguments]) == (0 if _native.missing() is None else 2)
    if _native.missing() is not None:
        pytest.skip(_native.missing())
    return Output(folder, "bench")


@pytest.fixture
def quick(monkeypatch):
    """Limits and memory are of no interest here, and take seconds."""
    monkeypatch.setattr(machine, "rates", lambda *_: (1e11, 1e10))
    monkeypatch.setattr(memory, "of_model", lambda *_, **__: None)


def failing(*_):
    raise RuntimeError("not today\nnor tomorrow")


def here() -> list[str]:
    return [name for name in ("reference", "cpu") if backends.missing(name) is None]


def model_and_images(name, batch=1):
    torch.manual_seed(0)
    return random_model(name), torch.randint(0, 256, (batch, 33, 40, 3), dtype=torch.uint8)


class TestFigures:
    @pytest.mark.slow
    def test_sums(self, profiled):
        data = profiled.data
        assert data["backends"] == here()
        rows = data["layers"]
        assert len({row["name"] for row in rows}) == len(rows) > 100
        for whole, parts in [
            (data["total"], rows),
            (data["total"], data["groups"]),
            *((g, [row for row in rows if row["group"] == g["name"]]) for g in data["groups"]),
            *((g, g["parts"]) for g in data["groups"] if g["parts"]),
        ]:
            for cost in COSTS:
                assert whole[cost] == sum(part[cost] for part in parts)
            for name in data["backends"]:
                assert whole["ms"][name] == pytest.approx(sum(part["ms"][name] for part in parts), abs=1e-3)
        for name in data["backends"]:
            total = data["totals"][name]
            assert total["layers_ms"] == pytest.approx(data["total"]["ms"][name], abs=1e-3)
            assert total["layers_ms"] > 0
            assert 0 < total["between_ms"] < total["hooked_ms"]

    def test_groups(self, profiled):
        names = [group["name"] for group in profiled.data["groups"]]
        stages = [f"layer{number}" for number in range(1, 9)]
        assert names == ["input", *stages, "level 4", "level 3", "level 2", "level 1", "classifier", "labels"]
        for group in profiled.data["groups"]:
            parts = [part["name"] for part in group["parts"]]
            assert parts == (["fusion", "crp"] if group["kind"] == "level" else [])

    def test_percent_of_the_limit(self, profiled):
        limits = profiled.data["limits"]
        for row in profiled.data["layers"]:
            operations, moved = row["flops"] + row["others"], row["bytes"]
            limit = 1e3 * max(operations / limits["operations_per_s"], moved / limits["bytes_per_s"])
            assert row["limit_ms"] == pytest.approx(limit, abs=1e-6)
            for name, took in row["ms"].items():
                assert row["percent"][name] == pytest.approx(100 * limit / took, rel=0.01, abs=0.02)

    def test_hooks_leave_our_ops_running(self, profiled):
        calls = {name: {op["name"]: op["calls"] for op in ops} for name, ops in profiled.data["ops"].items()}
        ours = {"lwrn_fast::crp": 4, "lwrn_fast::fusion": 4, "lwrn_fast::upsample_argmax": 1, "lwrn_fast::normalise": 1}
        assert not set(calls["reference"]) & set(ours)
        if "cpu" in calls:
            assert {op: calls["cpu"].get(op) for op in ours} == ours

    def test_trace(self, profiled):
        events = json.loads((profiled.folder / "trace.json").read_text())["traceEvents"]
        names = {event.get("name") for event in events}
        assert {f"backend {name}" for name in profiled.data["backends"]} <= names
        assert {row["name"] for row in profiled.data["layers"]} <= names
        assert "aten::convolution" in names

    def test_memory(self, profiled):
        if not os.access(memory.RESET, os.W_OK):
            pytest.skip("this system keeps no high-water mark that can be reset")
        for total in profiled.data["totals"].values():
            assert total["peak_bytes"] > 4 * 256 * 16 * 16  # the finest level's result

    def test_said(self, profiled):
        data, said = profiled.data, profiled.said
        assert f"the 12 longest of {len(data['layers'])} layers" in said
        for row in data["groups"]:
            assert f"\n{row['name']} " in said
        assert all(f"{name}: {data['totals'][name]['ms']:.1f} ms, with hooks" in said for name in data["backends"])
        assert all(f"without {name}: {reason}" in said for name, reason in data["absent"].items())

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["rf_lw_mbv2", "rf_lw50", "rf_lw_nasnet_mobile", "rf50"])
    def test_flops_are_torchs(self, name):
        batch = 1 if name == "rf50" else 2
        model, images = model_and_images(name, batch)
        measured = layers.layers(model, images)
        with torch.no_grad(), backends.use_backend("reference"), FlopCounterMode(display=False) as counter:
            model(normalise(images))
        assert sum(layer.cost.flops for layer in measured) == counter.get_total_flops()
        levels = {layer.group for layer in measured if layer.part in ("fusion", "crp")}
        assert levels == {f"level {number}" for number in (1, 2, 3, 4)}
        if name != "rf50":  # whose pools have 3x3 convolutions
            for layer in measured:
                if layer.part == "crp":
                    case = cases.CrpCase(*layer.shape[1:])
                    assert layer.cost.flops == 2 * case.operations
                    assert layer.cost.bytes == 2 * case.bytes(torch.float32) - 4 * cases.STAGES * case.channels**2

    @pytest.mark.parametrize("name", shapes.LEVELS)
    def test_ops_of_a_network(self, name):
        op_cases = bench.op_cases(name, (65, 90))
        levels = [case for level in (4, 3, 2, 1) for case in shapes.level_shapes(name, level, (65, 90))[::-1]]
        assert list(op_cases) == [*levels, cases.UpsampleArgmaxCase(21, 17, 23, (65, 90))]


class TestWatching:
    @pytest.mark.parametrize("name", ["rf_lw50", "rf_lw_mbv2"])
    def test_every_moment_belongs_to_one_layer(self, name, monkeypatch):
        model, images = model_and_images(name)
        clock = iter(range(10**6))
        monkeypatch.setattr(layers.time, "perf_counter", lambda: next(clock))
        watch = layers.Stopwatch(images.device)
        with torch.no_grad(), backends.use_backend("reference"), layers.watched(model, watch.switch):
            layers.run(model, images, watch.switch)
        seconds = watch.seconds()
        assert sum(seconds.values()) == next(clock) - 1
        assert seconds[model.head] == seconds[f"{model.levels[-1].crp}.0"] == 1  # never divided
        assert {layer.name for layer in layers.layers(model, images)} <= set(seconds)

    def test_nothing_is_left_behind(self):
        model, images = model_and_images("rf_lw_mbv2")
        before = dict(model.__dict__)
        with torch.no_grad():
            expected = layers.run(model, images)
            with pytest.raises(RuntimeError, match="not today"), layers.watched(model, failing):
                model(normalise(images))
            with layers.watched(model, lambda _: None):
                assert torch.equal(layers.run(model, images), expected)
        assert model.__dict__.keys() == before.keys()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class TestErrors:
    def test_one_that_fails_does_not_lose_the_rest(self, quick, monkeypatch, native):
        monkeypatch.setattr(torch.ops.lwrn_fast, "crp", failing)
        data = profile.profile(profile.Options("rf_lw_mbv2", size=(32, 32), seconds=0.0))
        assert data["backends"] == ["reference"]
        assert data["absent"]["cpu"] == "failed: not today"

    def test_all_fail(self, quick, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(profile, "_on", lambda name, once: failing)
        assert cli.main(["profile", "rf_lw_mbv2", "--size", "32", "32", "--out", str(tmp_path)]) == 2
        assert [MARK in line for line in capsys.readouterr().err.splitlines()] == [True]
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ("--backend cuda", "the backend 'cuda' cannot run here"),
            ("--device cuda", "--device cuda cannot run here"),
            ("--backend triton --device cpu", "the backend 'triton' does not run on cpu: reference, cpu do"),
            ("--checkpoint nowhere.safetensors", "nowhere.safetensors"),
            ("--out {file}", "cannot be written to (file exists)"),
            ("--out {file}/below", "cannot be written to (not a directory)"),
        ],
    )
    def test_wrong_arguments(self, arguments, expected, tmp_path, capsys):
        if torch.cuda.is_available() and "cuda" in arguments.split():
            pytest.skip("there is a GPU")
        file = tmp_path / "file"
        file.write_text("")
        assert cli.main(["profile", "rf_lw_mbv2", *arguments.format(file=file).split()]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.startswith(MARK)
        assert expected in err

    def test_interrupted(self, quick, monkeypatch, tmp_path, capsys):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(layers, "layers", interrupt)
        assert cli.main(["profile", "rf_lw_mbv2", "--size", "32", "32", "--out", str(tmp_path)]) == 130
        assert list(tmp_path.iterdir()) == []

    def test_in_a_race(self):
        contest = paired.Contest(
            contestants={"right": lambda: lambda: 1.0, "wrong": lambda: lambda: 9.0, "broken": failing},
            error=lambda got: abs(got - 1.0),
            tolerance=0.1,
        )
        failed = {}
        assert list(paired.race(contest, 1, 0.0, failed=failed).rounds) == ["right"]
        assert failed == {"wrong": "wrong: error 8, at most 0.1 is right", "broken": "not today"}
        with pytest.raises(ArithmeticError, match="wrong: error 8"):
            paired.race(contest, 1, 0.0)


class TestBench:
    @pytest.mark.slow
    def test_figures(self, benched):
        rows = benched.data["cases"]
        kinds = [row["kind"] for row in rows]
        assert kinds == ["network", "image to labels", *["crp"] * 4, *["fusion"] * 4, "upsample_argmax"]
        for row in rows:
            assert {peers.OURS, peers.EAGER, peers.EAGER_NCHW} <= set(row["ms"])
            assert row["failed"] == {peers.COMPILE: "not today"}
            assert set(row["ratio"]) == set(row["ms"])
            assert row["ratio"][peers.OURS] == 1
            assert min(row["ms"].values()) > 0
        assert peers.OURS_EAGER in rows[0]["ms"]

    def test_absent(self, benched):
        assert benched.data["absent"] == {peers.ONNX_RUNTIME: "not asked for", peers.OPENVINO: "not asked for"}


class Elements(HTMLParser):
    """Every start tag with its attributes, the table that it is in, and whether it is in its body."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict, str, bool]] = []
        self.table, self.body, self.text, self.data = "", False, "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "table":
            self.table, self.body = attributes["id"], False
        self.body |= tag == "tbody"
        self.text = attributes.get("id", "") if tag == "script" else ""
        self.tags.append((tag, attributes, self.table, self.body))

    def handle_data(self, data):
        if self.text == "data":
            self.data += data

    def named(self, kind, **wanted):
        return [a for tag, a, _, _ in self.tags if tag == kind and wanted.items() <= a.items()]

    def rows(self, table):
        """The values of each row."""
        rows = []
        for tag, attributes, inside, body in self.tags:
            if body and inside == table and tag == "tr":
                rows.append([])
            elif body and inside == table and tag == "td":
                rows[-1].append(attributes.get("data-value"))
        return rows


class TestPage:
    def test_asks_nothing_of_the_network(self, profiled, benched):
        for output in (profiled, benched):
            text = output.page.read_text()
            assert json.loads(Elements(text).data) == output.data
            for forbidden in ("src=", "@import", "url(", "https:", "fetch(", "XMLHttpRequest"):
                assert forbidden not in text
            assert text.replace("http://www.w3.org/2000/svg", "").count("http:") == 0

    def test_text_cannot_become_code(self):
        text = page.page({"kind": "bench", "title": "<b>", "reason": "</script><script>alert(1)</script>"})
        assert text.count("<script") == 2
        assert "<title>&lt;b&gt;</title>" in text

    def test_profile_in_a_browser(self, profiled, tmp_path):
        data, seen = profiled.data, in_browser(profiled.page, tmp_path)
        assert [row[0] for row in seen.rows("layers")] == [row["name"] for row in data["layers"]]
        for shown, row in zip(seen.rows("layers"), data["layers"], strict=True):
            figures = [row[cost] for cost in COSTS]
            figures += [value for name in data["backends"] for value in (row["ms"][name], row["percent"][name])]
            assert [float(value) for value in shown[4:]] == figures
        parts = sum(len(group["parts"]) for group in data["groups"])
        assert len(seen.rows("stages")) == len(data["groups"]) + parts + 1
        assert [float(v) for v in seen.rows("stages")[-1][1:4]] == [data["total"][cost] for cost in COSTS]
        dots = {(dot["data-layer"], dot["data-backend"]): dot for dot in seen.named("circle")}
        working = [row for row in data["layers"] if row["flops"] + row["others"]]
        assert len(dots) == len(seen.named("circle")) == len(working) * len(data["backends"])
        for row in working:
            for name in data["backends"]:
                dot, operations = dots[row["name"], name], row["flops"] + row["others"]
                assert float(dot["data-x"]) == pytest.approx(operations / row["bytes"])
                assert float(dot["data-y"]) == pytest.approx(operations / row["ms"][name] / 1e6)
        bars = [(bar["data-group"], bar["data-backend"], float(bar["data-value"])) for bar in seen.named("rect")]
        expected = []
        for group in data["groups"]:
            for name in data["backends"]:
                below = [(f"{group['name']} {part['name']}", name, part["ms"][name]) for part in group["parts"]]
                expected += below or [(group["name"], name, group["ms"][name])]
        assert bars == expected

    def test_bench_in_a_browser(self, benched, tmp_path):
        data, seen = benched.data, in_browser(benched.page, tmp_path)
        figures = [(row["name"], name, took) for row in data["cases"] for name, took in row["ms"].items()]
        assert [(row[1], row[2], float(row[3])) for row in seen.rows("cases")] == figures
        assert [(b["data-case"], b["data-name"], float(b["data-value"])) for b in seen.named("rect")] == figures


def in_browser(file: Path, folder: Path) -> Elements:
    """The page as a browser has built it, without an error in its console."""
    if BROWSER is None:
        pytest.skip("Chromium is not installed")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'browser'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    return Elements(done.stdout)
