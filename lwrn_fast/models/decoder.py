"""The Light-Weight RefineNet decoder (Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation,
section 3): per level one fusion and one chained residual pooling, from the deepest feature to the finest, then a 3x3
classifier at the finest feature's size."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks, reference
from ..crp import CRP
from ..fusion import fusion
from .folding import FoldCache
from .refinenet_blocks import LightResidualUnits


class Level(NamedTuple):
    """One level, by the names its modules have in their network."""

    laterals: tuple[tuple[str, ...], ...]
    """Per feature of this level, deepest first, the one or two consecutive 1x1 convolutions it goes through; in the
    original RefineNet, all modules of its path."""
    crp: str | None
    """None for the ablation without it."""
    deeper: str | None = None
    """The 1x1 convolution that the deeper level's result goes through; None at the deepest level."""
    adapt: str | None = None
    """The light-weight residual units behind the lateral's first convolution, for the ablation with them."""
    refine: str | None = None
    """The residual units at the end of the level."""


class LevelDecoder(nn.Module):
    """What every decoder does; a subclass registers the modules and says here what they are called."""

    levels: tuple[Level, ...]
    """Deepest first."""
    head = "classifier"
    activation = "relu"
    align_corners = True
    dropout = 0.0
    """Probability of a zero in the two deepest features while training."""
    plain = False
    """True for PyTorch's own operations on whatever memory they choose, nothing fused and nothing folded."""

    def __init__(self) -> None:
        super().__init__()
        self._folds = FoldCache()

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Features (N, C_i, H_i, W_i), finest first, to logits (N, classes, H_0, W_0)."""
        remaining = list(features)
        for i in range(max(0, len(remaining) - 2), len(remaining)):
            remaining[i] = F.dropout(remaining[i], self.dropout, self.training)
        deeper: Tensor | None = None
        for level in self.levels:
            inputs, weights = [], []
            for chain in level.laterals:
                feature, weight = self._lateral(remaining.pop(), chain, level.adapt)
                inputs.append(feature)
                weights.extend(weight)
            if deeper is not None and level.deeper is not None:
                inputs.append(deeper)
                weights.append(self._weight(level.deeper))
            deeper = self._level(inputs, weights, level)
        return getattr(self, self.head)(deeper)

    def _level(self, inputs: list[Tensor], weights: list[Tensor], level: Level) -> Tensor:
        if not weights:  # they have been through all their convolutions
            x = reference.join(inputs, self.activation, self.align_corners)
        else:
            join = reference.fusion if self.plain else fusion
            x = join(inputs, weights, activation=self.activation, align_corners=self.align_corners)
        if level.crp is not None:
            x = self._crp(x, level.crp)
        return x if level.refine is None else getattr(self, level.refine)(x)

    def _crp(self, x: Tensor, name: str) -> Tensor:
        crp = getattr(self, name)
        return reference.crp(x, list(crp.parameters())) if self.plain else crp(x)

    def _add_levels(
        self,
        in_planes: Sequence[int],
        num_classes: int,
        planes: int,
        n_stages: int = 4,
        groups: bool = False,
        rcu: bool = False,
        crp: bool = True,
    ) -> None:
        """Registers what `Decoder` describes, a level for each of in_planes, which are finest first."""
        levels = []
        for number in range(len(in_planes), 0, -1):
            deepest = number == len(in_planes)
            chain = [f"lateral{number}"]
            self.add_module(chain[0], conv1x1(in_planes[number - 1], planes))
            if rcu:
                self.add_module(f"adapt{number}", LightResidualUnits(planes, count=2))
                if not deepest:
                    chain.append(f"joint{number}")
                    self.add_module(chain[1], conv1x1(planes, planes))
            if not deepest:
                self.add_module(f"deeper{number + 1}", conv1x1(planes, planes))
            if crp:
                self.add_module(f"crp{number}", CRP(planes, planes, n_stages, groups=groups))
            if rcu:
                self.add_module(f"refine{number}", LightResidualUnits(planes, count=3))
            levels.append(
                Level(
                    laterals=(tuple(chain),),
                    crp=f"crp{number}" if crp else None,
                    deeper=None if deepest else f"deeper{number + 1}",
                    adapt=f"adapt{number}" if rcu else None,
                    refine=f"refine{number}" if rcu else None,
                )
            )
        self.levels = tuple(levels)
        self.classifier = nn.Conv2d(planes, num_classes, 3, padding=1)

    def _weight(self, name: str) -> Tensor:
        return cast(Tensor, getattr(self, name).weight)

    def _lateral(self, feature: Tensor, chain: tuple[str, ...], adapt: str | None) -> tuple[Tensor, list[Tensor]]:
        """What goes into the fusion for a feature: the feature, or the first convolution's result, and its weight."""
        if adapt is not None:
            return getattr(self, adapt)(getattr(self, chain[0])(feature)), [self._weight(name) for name in chain[1:]]
        last = self._weight(chain[-1])
        if len(chain) == 1:
            return feature, [last]
        first = self._weight(chain[0])
        learning = torch.is_grad_enabled() and (first.requires_grad or last.requires_grad)
        if self.plain or self.training or learning or torch.jit.is_tracing():  # a trace follows its weights
            return getattr(self, chain[0])(feature), [last]
        return feature, [self._folds.get(chain[0], last, first)]

    def __prepare_scriptable__(self) -> nn.Module:
        raise checks.not_scriptable(self)


torch.fx.wrap("fusion")  # one node of a graph, as in its own module


class Decoder(LevelDecoder):
    """The decoder for an encoder of your own.

    in_planes: channels of the encoder's feature maps, finest first; any number of maps, each one level.
    num_classes: channels of the logits.
    planes: channels inside the decoder. n_stages, groups: of every `lwrn_fast.CRP`.
    activation: "relu", "relu6" or "none", after every fusion. align_corners: of the upsampling.
    dropout: probability of a zero in the two deepest features while training.
    rcu: True for the ablation with light-weight residual units: two behind each lateral convolution, three behind each
    CRP. crp: False for the one without chained residual pooling.
    State-dict names, level 1 the finest: `lateral1.weight`, `crp1.1_outvar_dimred.weight`, `deeper2.weight` (what
    level 2 hands to level 1), `classifier.weight`, `classifier.bias`; with rcu also `adapt1.*`, `joint1.weight` (not
    at the deepest level), `refine1.*`.

    >>> decoder = Decoder(in_planes=[16, 32], num_classes=5, planes=8)
    >>> tuple(decoder([torch.rand(1, 16, 12, 14), torch.rand(1, 32, 6, 7)]).shape)
    (1, 5, 12, 14)
    """

    def __init__(
        self,
        in_planes: Sequence[int],
        num_classes: int,
        planes: int = 256,
        n_stages: int = 4,
        groups: bool = False,
        activation: str = "relu",
        align_corners: bool = True,
        dropout: float = 0.0,
        rcu: bool = False,
        crp: bool = True,
    ) -> None:
        super().__init__()
        if not in_planes:
            raise ValueError("Decoder: in_planes must name at least one feature map's channels, got none")
        if num_classes < 1:
            raise ValueError(f"Decoder: num_classes must be at least 1, got {num_classes}")
        if activation not in ("relu", "relu6", "none"):
            raise ValueError(f'Decoder: activation must be "relu", "relu6" or "none", got {activation!r}')
        self.in_planes = tuple(in_planes)
        self.activation = activation
        self.align_corners = align_corners
        self.dropout = dropout
        self._add_levels(self.in_planes, num_classes, planes, n_stages, groups, rcu, crp)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps (N, in_planes[i], H_i, W_i), finest first, to logits (N, num_classes, H_0, W_0)."""
        if isinstance(features, (list, tuple)) and len(features) != len(self.in_planes):
            raise ValueError(f"Decoder: features must be {len(self.in_planes)} maps, got {len(features)}")
        return self.decode(features)


def conv1x1(in_planes: int, out_planes: int) -> nn.Conv2d:
    return nn.Conv2d(in_planes, out_planes, 1, bias=False)
