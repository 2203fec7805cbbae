"""The record of what `models.load` took from a file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Loaded:
    """The record of what `load` took from a file, as `model.loaded`.

    path: the file. weights: the keys and prefix the weights had, "" on top. averaged: True for a moving average.
    ignored: names of other tensors in the file, which are not the model's. untrained: names of the model's tensors that
    the file does not have; their values are random.
    """

    path: str
    weights: str
    averaged: bool
    ignored: tuple[str, ...]
    untrained: tuple[str, ...]
