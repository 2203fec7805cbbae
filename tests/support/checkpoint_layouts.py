"""Layouts of training scripts, built from a model's state dict: one row for each line of docs/models.md's table."""

import argparse
import collections
import datetime
import functools
import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from lwrn_fast import models

State = dict[str, torch.Tensor]


class Row(NamedTuple):
    """One layout. build: the content of a file of torch.save. line: the error of `load`, None where it loads."""

    writer: str
    build: Callable[[State], Any]
    line: str | None = None
    wanted: dict[str, Any] = {}
    # True if `load` takes the moving average, which `build` makes 1 larger where there are two.
    averaged: bool = False


def prefixed(state: State, prefix: str) -> State:
    return collections.OrderedDict((prefix + name, value) for name, value in state.items())


def larger(state: State) -> State:
    """Return other weights than the trained ones, in the same shapes."""
    return collections.OrderedDict((name, value + 1) for name, value in state.items())


def optimizer(state: State) -> dict[str, Any]:
    """Return the state of torch.optim.Adam: tensors two levels down."""
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": v.clone()} for i, v in enumerate(list(state.values())[:40])}
    return {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(range(40))}]}


@contextmanager
def module_of(name: str, *classes: type) -> Iterator[None]:
    """Put these classes into a module of this name, like a trainer's, which does not exist when a file is read."""
    module = types.ModuleType(name)
    for each in classes:
        each.__module__ = name
        setattr(module, each.__name__, each)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]


class Config(dict):
    """A dictionary with attributes, as in yacs, mmengine, addict and Lightning."""


class Items(list):
    """A list of its own class, as fastcore's L."""


class Metrics:
    """An object with a state."""

    def __init__(self) -> None:
        self.history = [np.float32(0.5)]
        self.best = {"iou": np.float64(0.5)}


class Task:
    """A class with an inner class, which pickle looks up by getattr."""

    class Segmentation:
        pass


CLASSES = (Config, Items, Metrics, Task)


def denses(state: State) -> State:
    """Rename to DenseTorch's names: an encoder and a decoder in a Sequential."""
    names = {f"conv{8 - i}": f"stem_convs.{i}" for i in range(6)} | {f"crp{4 - i}": f"crp_blocks.{i}" for i in range(4)}
    names |= {f"conv_adapt{4 - i}": f"adapt_convs.{i}" for i in range(3)} | {"segm": "segm"}
    result = {}
    for name, value in state.items():
        top, rest = name.split(".", 1)
        result[f"module.0.{name}" if top.startswith("layer") else f"module.1.{names[top]}.{rest}"] = value
    return result


def multi_task_names() -> State:
    torch.manual_seed(1)
    state = models.rf_lw_mbv2_multi_task(num_classes=7).state_dict()
    heads = {"pre_depth.weight": (256, 1, 1, 1), "depth.weight": (1, 256, 3, 3), "depth.bias": (1,)}
    return {**state, **{name: torch.rand(shape) for name, shape in heads.items()}}


def timm(state: State) -> dict[str, Any]:
    return {
        "epoch": 3,
        "arch": "rf",
        "state_dict": state,
        "optimizer": optimizer(state),
        "version": 2,
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), amp=None),
        "amp_scaler": {"scale": 65536.0},
        "state_dict_ema": larger(state),
        "metric": np.float64(0.7),
    }


def lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": "runs"}},
        "optimizer_states": [optimizer(state)],
        "lr_schedulers": [{"_step_count": 4, "lr_lambdas": [None, {"total": np.int64(4)}]}],
        "hparams_name": "kwargs",
        "hyper_parameters": Config(rate=0.1, folder=pathlib.Path("data"), split=Task.Segmentation()),
        "state_dict": {
            **prefixed(state, "model."),
            "criterion.weight": torch.ones(7),
            "metric.confusion": torch.ones(7, 7),
        },
    }


def averaged(state: State) -> State:
    return {"n_averaged": torch.tensor(5), **prefixed(state, "module.")}


def mmengine(state: State) -> dict[str, Any]:
    return {
        "meta": {"epoch": 3, "experiment_name": "run", "cfg": "model = dict()", "time": "now"},
        "state_dict": larger(state),
        "message_hub": {"log_scalars": {"loss": Metrics()}, "runtime_info": Config(iter=np.int64(3))},
        "optimizer": optimizer(state),
        "ema_state_dict": {"steps": torch.tensor(4), **prefixed(state, "module.")},
    }


def pruned(state: State) -> State:
    """Return weights in the form of torch.nn.utils.prune, with nothing pruned."""
    result = dict(state)
    for name in ("conv8", "segm"):
        result[f"{name}.weight_orig"] = result.pop(f"{name}.weight")
        result[f"{name}.weight_mask"] = torch.ones_like(state[f"{name}.weight"])
    return result


def normed(state: State, ends: tuple[str, str]) -> State:
    result = dict(state)
    for name in ("conv8", "crp4.0.1_outvar_dimred"):
        weight = result.pop(f"{name}.weight")
        result[f"{name}.{ends[0]}"] = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
        result[f"{name}.{ends[1]}"] = weight * 3
    return result


def objects(state: State) -> dict[str, Any]:
    """Return everything harmless that a script can save with the weights."""
    return {
        "args": argparse.Namespace(lr=0.1),
        "counts": collections.defaultdict(list, loss=[np.float32(1)]),
        "array": np.zeros((2, 3)),
        "when": datetime.datetime(2020, 1, 1),
        "rule": functools.partial(max, 3),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "seen": frozenset({1, 2}),
        "types": [np.int64, np.dtype("float32"), Metrics, len],
        "rng": np.random.RandomState(0).get_state(),
        "generator": np.random.default_rng(0),
        "hyper": Items([Config(a=Items([1]))]),
        "nested": Task.Segmentation(),
        "metrics": Metrics(),
        "weights": state,
    }


ROWS = {
    "state dict": Row("torch.save(model.state_dict()); the published weights of light-weight-refinenet", dict),
    "segmenter": Row(
        "light-weight-refinenet, src/train.py",
        lambda s: {"segmenter": prefixed(s, "module."), "epoch_start": 3, "best_val": np.mean([0.4, 0.6])},
    ),
    "densetorch saver": Row(
        "light-weight-refinenet, src_v2/train.py",
        lambda s: {"state_dict": prefixed(s, "module."), "epoch": 3, "best_val": [np.float64(0.5)]},
    ),
    "refinenet snapshot": Row(
        "refinenet (the package), refinenet/models",
        lambda s: {"enc_optimiser": optimizer(s), "dec_optimiser": optimizer(s), "model": s, "global_iteration": 3},
    ),
    "multi-task": Row("multi-task-refinenet", lambda _: {"state_dict": multi_task_names()}),
    "densetorch": Row("DenseTorch, examples/singletask/train.py", denses),
    "densetorch multi-task": Row(
        "DenseTorch, examples/multitask/train.py",
        lambda s: {
            **{k: v for k, v in denses(s).items() if "segm" not in k and "crp_blocks.3" not in k},
            **{f"module.1.crp_blocks.3.0.{i}_outvar_dimred.weight": torch.rand(256, 1, 1, 1) for i in range(1, 5)},
            "module.1.heads.0.0.weight": torch.rand(256, 1, 1, 1),
            "module.1.heads.0.2.weight": torch.rand(7, 256, 3, 3),
        },
        line="fits no network exactly; the nearest is ",
    ),
    "references": Row(
        "torchvision, references/segmentation/train.py",
        lambda s: {
            "model": s,
            "optimizer": optimizer(s),
            "lr_scheduler": {"last_epoch": 3},
            "args": argparse.Namespace(),
        },
    ),
    "references, average": Row(
        "torchvision, references/classification/train.py --model-ema",
        lambda s: {"model": s, "optimizer": optimizer(s), "model_ema": averaged(larger(s))},
        averaged=True,
    ),
    "timm": Row("timm, utils/checkpoint_saver.py", timm, averaged=True),
    "lightning": Row("Lightning, Trainer.save_checkpoint", lightning),
    "lightning, average": Row(
        "Lightning, callbacks.WeightAveraging",
        lambda s: {
            "state_dict": prefixed(larger(s), "net."),
            "current_model_state": prefixed(s, "net."),
            "averaging_state": {"n_averaged": torch.tensor(3)},
        },
        averaged=True,
    ),
    "lightning, swa": Row(
        "Lightning, callbacks.StochasticWeightAveraging",
        lambda s: {
            "state_dict": prefixed(s, "net."),
            "callbacks": {"StochasticWeightAveraging": {"average_model_state": prefixed(larger(s), "net.")}},
        },
        averaged=True,
    ),
    "mmengine": Row("mmengine (mmsegmentation 1), runner and hooks/ema_hook.py", mmengine, averaged=True),
    "mmcv": Row(
        "mmcv 1 (mmsegmentation 0), runner/checkpoint.py",
        lambda s: {
            "meta": {"epoch": 3, "CLASSES": ("a",), "PALETTE": None},
            "state_dict": s,
            "optimizer": optimizer(s),
        },
    ),
    "deepspeed": Row(
        "DeepSpeed, mp_rank_00_model_states.pt",
        lambda s: {"buffer_names": [], "optimizer": None, "module": s, "param_shapes": None, "ds_config": Config(a=1)},
    ),
    "fsdp": Row("FSDP with a full state dict", lambda s: prefixed(s, "_fsdp_wrapped_module.")),
    "compiled": Row("torch.compile, DataParallel", lambda s: prefixed(s, "_orig_mod.module.")),
    "parallel": Row("DistributedDataParallel of torch.compile", lambda s: {"model": prefixed(s, "module._orig_mod.")}),
    "compiled blocks": Row(
        "nn.Module.compile of parts",
        lambda s: {(k.replace("layer8.0.", "layer8.0._orig_mod.")): v for k, v in s.items()},
    ),
    "averaged model": Row("torch.optim.swa_utils.AveragedModel", averaged, averaged=True),
    "average of parameters": Row(
        "an average of the parameters alone, as many scripts keep it",
        lambda s: {"model": s, "ema": {k: v + 1 for k, v in s.items() if "running" not in k and "num_b" not in k}},
        averaged=True,
    ),
    "ignite": Row(
        "ignite, handlers.Checkpoint", lambda s: {"optimizer": optimizer(s), "trainer": {"epoch": 3}, "model": s}
    ),
    "catalyst": Row(
        "Catalyst", lambda s: {"optimizer_state_dict": optimizer(s), "criterion_state_dict": {}, "model_state_dict": s}
    ),
    "fastai": Row(
        "fastai, Learner.save",
        lambda s: {"model": s, "opt": {"state": [{"mom": torch.ones(3)}], "hypers": Items([{}])}},
    ),
    "detectron2": Row(
        "detectron2 and fvcore, Checkpointer",
        lambda s: {"model": s, "optimizer": optimizer(s), "scheduler": {"_metadata": 1}, "iteration": 3},
    ),
    "thop": Row(
        "thop.profile before saving", lambda s: {**s, **{f"{k}.total_ops": torch.zeros(1) for k in ("layer1", "segm")}}
    ),
    "auxiliary head": Row(
        "an auxiliary head beside", lambda s: {**s, "aux_classifier.0.weight": torch.rand(7, 96, 1, 1)}
    ),
    "parts": Row(
        "an encoder and a decoder saved apart",
        lambda s: {
            "optimizer": optimizer(s),
            "encoder": {k: v for k, v in s.items() if k.startswith("layer")},
            "decoder": {k: v for k, v in s.items() if not k.startswith("layer")},
        },
    ),
    "tuple": Row("a tuple", lambda s: (3, s, "note")),
    "weight_norm": Row("torch.nn.utils.weight_norm", lambda s: normed(s, ("weight_g", "weight_v"))),
    "parametrizations": Row(
        "torch.nn.utils.parametrizations.weight_norm",
        lambda s: normed(s, ("parametrizations.weight.original0", "parametrizations.weight.original1")),
    ),
    "prune": Row("torch.nn.utils.prune", pruned),
    "objects": Row("a script's own objects beside the weights", objects),
    "half": Row("half precision", lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}),
    "double": Row("double precision", lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()}),
    "peft": Row(
        "peft, unmerged",
        lambda s: {
            **prefixed(s, "base_model.model."),
            "base_model.model.conv8.lora_A.default.weight": torch.rand(4, 320, 1, 1),
        },
        line="fits no network exactly; the nearest is rf_lw_mbv2: 1 unexpected (conv8.lora_A.default.weight)",
    ),
    "adapters beside": Row(
        "adapters kept apart",
        lambda s: {**s, "lora_conv8.weight": torch.rand(4, 320, 1, 1)},
        line="holds adapters beside the weights (lora_conv8.weight): merge them before saving",
    ),
    "quantised": Row(
        "a quantised model",
        lambda s: {**s, "conv8.weight": torch.quantize_per_tensor(s["conv8.weight"], 0.1, 0, torch.qint8)},
        line="conv8.weight is qint8, not floating point: a quantised network's weights are not loaded",
    ),
    "more blocks": Row(
        "a model with more in it",
        lambda s: {**s, "layer8.1.output.0.0.weight": torch.rand(4), "conv_adapt5.weight": torch.rand(256, 256, 1, 1)},
        line="fits no network exactly; the nearest is rf_lw_mbv2: "
        "2 unexpected (layer8.1.output.0.0.weight, conv_adapt5.weight)",
    ),
}
