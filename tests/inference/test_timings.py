"""The record of where time goes."""

import pickle

import pytest
import torch

import lwrn_fast
from lwrn_fast.inference import segment, timings
from lwrn_fast.inference.timings import Timings
from support.commands import random_image, save
from support.segmenting import network


def test_keeps_the_last_calls():
    record = Timings(calls=2)
    for seconds in (9.0, 1.0, 3.0):
        record.add("network", seconds)
    assert record.milliseconds("network") == [1000, 3000]
    assert record.medians() == {"network": 2000}
    assert (record.count("network"), record.count("pre"), record.last("network")) == (2, 0, 3.0)


def test_an_error_is_no_time():
    record = Timings()
    with pytest.raises(ZeroDivisionError), record.measure("read"):
        raise ZeroDivisionError
    assert record.count("read") == 0


@pytest.mark.parametrize("synchronise", [False, True])
def test_on_a_gpu(synchronise, monkeypatch):
    """Its work goes on after the call: the time is only known where the record waits."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    record, device = Timings(synchronise=synchronise), torch.device("cuda", 1)
    with record.measure("network", device):
        pass
    assert waited == [device] * synchronise
    assert record.count("network") == synchronise


def test_goes_along_with_a_segmenter():
    segmenter = lwrn_fast.Segmenter(network())
    segmenter(random_image(32, 32, 0))
    copied = pickle.loads(pickle.dumps(segmenter.times))
    assert copied.milliseconds("network") == segmenter.times.milliseconds("network")
    copied.add("network", 1.0)
    assert segmenter.times.count("network") == 1


def test_the_command_times_each_stage_once(tmp_path, monkeypatch):
    """The rows of the table are the Segmenter's own stages with reading and writing, of images that succeed alone."""
    clock = iter(range(10_000))
    monkeypatch.setattr(timings.time, "perf_counter", lambda: next(clock) / 1000)
    paths = [str(save(tmp_path / name, random_image(32, 48, seed))) for seed, name in enumerate(("a.png", "b.png"))]
    (tmp_path / "bad.png").write_text("no image")
    options = segment.Options(tmp_path / "out", num_classes=3)
    model, _ = segment.build(options)
    errors = []
    report = segment.run([paths[0], str(tmp_path / "bad.png"), paths[1]], options, model, errors.append)
    assert len(errors) == 1
    # every stage takes one tick of a millisecond: pre is read + pre, post is post + write
    for row, milliseconds in (("pre", 2.0), ("infer", 1.0), ("post", 2.0)):
        assert report.times.milliseconds(row) == pytest.approx([milliseconds] * 2)
    assert report.done == 2
    assert "2 images, 200.00 images/s" in report.table()
