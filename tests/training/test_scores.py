"""Scores from counts of pixels, and their files."""

import json

import numpy as np
import pytest
import torch

from lwrn_fast.training.scores import Counter, Scores


class TestScores:
    def test_by_hand(self):
        counter = Counter(4)
        counter.add(torch.tensor([[0, 0, 1], [1, 2, 2]]), torch.tensor([[0, 1, 1], [1, 255, 0]]))
        counter.add(torch.tensor([2]), torch.tensor([2]))
        scores = counter.scores()
        assert scores.confusion.tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
        assert scores.iou[:3] == pytest.approx([1 / 3, 2 / 3, 1 / 2])
        assert np.isnan(scores.iou[3])  # a class that never occurs does not count
        assert scores.mean_iou == pytest.approx(0.5)
        assert scores.pixel_accuracy == pytest.approx(4 / 6)
        assert scores.accuracy[:3] == pytest.approx([1 / 2, 2 / 3, 1])

    def test_as_torchmetrics_says(self):
        classification = pytest.importorskip("torchmetrics.classification")
        predicted, labels = torch.randint(0, 5, (2, 1000))
        counter = Counter(5)
        counter.add(predicted, labels)
        jaccard = classification.MulticlassJaccardIndex(5)(predicted, labels)
        assert counter.scores().mean_iou == pytest.approx(float(jaccard), abs=1e-6)

    def test_files(self):
        scores, names = Scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])), ["a", "b", "c"]
        content = json.loads(scores.to_json(names, split="val"))
        assert (content["split"], content["mean_iou"]) == ("val", pytest.approx(0.775))
        assert content["classes"][2] == {"class": 2, "name": "c", "pixels": 0, "iou": None, "accuracy": None}
        assert scores.to_csv(names).splitlines()[0] == "class,name,pixels,iou,accuracy"
        assert scores.table(names).splitlines()[-1].split() == ["mean", "/", "all", "0.7750", "0.8750", "8"]
        assert scores.confusion_table(names).splitlines()[1].split() == ["0", "a", "75.0", "25.0", "0.0"]

    def test_nothing_counted(self):
        scores = Counter(2).scores()
        assert np.isnan(scores.mean_iou)
        assert json.loads(scores.to_json(["a", "b"]))["pixel_accuracy"] is None
