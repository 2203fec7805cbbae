"""The Light-Weight RefineNet decoder (Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation,
section 3): per level one fusion and one chained residual pooling, from the deepest feature to the finest, then a 3x3
classifier at the finest feature's size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backends
from ..ops import checks, conv_parameters, reference
from ..ops.crp import CRP
from ..ops.fusion import OP as FUSION
from ..ops.fusion import fusion
from .folding import FoldCache
from .refinenet_blocks import LightResidualUnits


class Level(NamedTuple):
    """One level of a decoder, as the names of its modules in the model."""

    # One or two consecutive 1x1 convolutions for each feature of this level, deepest first; in the original RefineNet,
    # all modules of the path.
    laterals: tuple[tuple[str, ...], ...]
    # None for the ablation without it.
    crp: str | None
    # The 1x1 convolution after the deeper level; None at the deepest level.
    deeper: str | None = None
    # The light-weight residual units behind the lateral's first convolution, for the ablation with them.
    adapt: str | None = None
    # The residual units at the end of the level.
    refine: str | None = None


class LevelDecoder(nn.Module):
    """The base class of decoders; a subclass registers the modules and names them in these attributes."""

    # Deepest first.
    levels: tuple[Level, ...]
    head = "classifier"
    activation = "relu"
    align_corners = True
    # Probability of a zero in the two deepest features, in training.
    dropout = 0.0
    # True for PyTorch's own operations in the memory format they choose, without fusing or folding.
    plain = False

    def __init__(self) -> None:
        super().__init__()
        self._folds = FoldCache()

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Map features (N, C_i, H_i, W_i), finest first, to logits (N, classes, H_0, W_0)."""
        if not self.plain:
            return self._decode(features)
        with backends.in_this_thread(backends.PLAIN.name):
            return self._decode(features)

    def read(self) -> set[str]:
        """Return the names of the modules that a fusion replaces and calls only if they have hooks or the like."""
        names = {level.deeper for level in self.levels if level.deeper is not None}
        for level in self.levels:
            for chain in level.laterals:
                names.update(chain if level.adapt is None else chain[1:])
        return names

    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        remaining = list(features)
        for i in range(max(0, len(remaining) - 2), len(remaining)):
            remaining[i] = F.dropout(remaining[i], self.dropout, self.training)
        deeper: Tensor | None = None
        for level in self.levels:
            paths = [self._path(remaining.pop(), chain, level.adapt) for chain in level.laterals]
            if deeper is not None and level.deeper is not None:
                paths.append((deeper, (level.deeper,)))
            deeper = self._level(*self._operands(paths), level)
        return getattr(self, self.head)(deeper)

    def _path(self, feature: Tensor, chain: tuple[str, ...], adapt: str | None) -> tuple[Tensor, tuple[str, ...]]:
        """Return a map and the 1x1 convolutions between it and the fusion: those of `chain` before no other module."""
        if adapt is None:
            return feature, chain
        return getattr(self, adapt)(getattr(self, chain[0])(feature)), chain[1:]

    def _operands(
        self, paths: list[tuple[Tensor, tuple[str, ...]]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return maps, weights and biases of a fusion; only maps where all convolutions have been applied to them."""
        if not all(chain for _, chain in paths):
            return [self._called(*path) for path in paths], [], []
        parameters = conv_parameters.parameters([getattr(self, chain[-1]) for _, chain in paths])
        if isinstance(parameters, str):
            backends.fall_back(FUSION, [x for x, _ in paths], parameters)
            return [self._called(*path) for path in paths], [], []
        weights, biases = parameters
        maps = []
        for i, (x, chain) in enumerate(paths):
            folded = self._folded(chain, weights[i]) if len(chain) > 1 else None
            weights[i] = weights[i] if folded is None else folded
            maps.append(x if folded is not None else self._called(x, chain[:-1]))
        return maps, weights, biases

    def _level(self, maps: list[Tensor], weights: list[Tensor], biases: list[Tensor], level: Level) -> Tensor:
        if weights:
            x = fusion(maps, weights, biases, self.activation, self.align_corners)
        else:
            x = reference.join(maps, self.activation, self.align_corners)
            x = x if self.plain else backends.REFERENCE.lay_out(x)
        if level.crp is not None:
            x = getattr(self, level.crp)(x)
        return x if level.refine is None else getattr(self, level.refine)(x)

    def _called(self, x: Tensor, chain: tuple[str, ...]) -> Tensor:
        """Apply the modules of a chain to x, one after another."""
        for name in chain:
            x = getattr(self, name)(x)
        return x

    def _folded(self, chain: tuple[str, ...], outer: Tensor) -> Tensor | None:
        """Return one weight for the two convolutions of a chain, None where they cannot be folded.

        outer: the last convolution's weight.
        """
        first = getattr(self, chain[0])
        if self.training or self.plain or type(first) is not nn.Conv2d:
            return None
        if conv_parameters.why_not_1x1(first) is not None:
            return None
        if first.bias is not None or first.groups != 1 or type(getattr(self, chain[1])) is not nn.Conv2d:
            return None
        if "_is_replica" in vars(self):  # DataParallel's replicas share the cache and have other tensors at each call
            return None
        if torch.is_grad_enabled() and (outer.requires_grad or first.weight.requires_grad):
            return None
        return self._folds.get(chain[0], outer, first.weight)

    def _add_levels(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int,
        n_stages: int = 4,
        groups: bool = False,
        rcu: bool = False,
        crp: bool = True,
    ) -> None:
        """Register the modules that `Decoder` describes, one level for each of in_channels, finest first."""
        levels = []
        for number in range(len(in_channels), 0, -1):
            deepest = number == len(in_channels)
            chain = [f"lateral{number}"]
            self.add_module(chain[0], conv1x1(in_channels[number - 1], channels))
            if rcu:
                self.add_module(f"adapt{number}", LightResidualUnits(channels, count=2))
                if not deepest:
                    chain.append(f"joint{number}")
                    self.add_module(chain[1], conv1x1(channels, channels))
            if not deepest:
                self.add_module(f"deeper{number + 1}", conv1x1(channels, channels))
            if crp:
                self.add_module(f"crp{number}", CRP(channels, channels, n_stages, groups=groups))
            if rcu:
                self.add_module(f"refine{number}", LightResidualUnits(channels, count=3))
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
        self.classifier = nn.Conv2d(channels, num_classes, 3, padding=1)

    def __prepare_scriptable__(self) -> nn.Module:
        raise checks.not_scriptable(self)


# One node of a graph, as in its own module.
torch.fx.wrap("fusion")


class Decoder(LevelDecoder):
    """The decoder of Light-Weight RefineNet, for any encoder.

    in_planes: channels of the encoder's feature maps, finest first; any number of maps, each one level.
    num_classes: channels of the logits.
    planes: channels inside the decoder. n_stages, groups: the arguments of every `lwrn_fast.CRP`.
    activation: "relu", "relu6" or "none", after every fusion. align_corners: the upsampling's.
    dropout: probability of a zero in the two deepest features, in training.
    rcu: True for the ablation with light-weight residual units: two behind each lateral convolution, three behind each
    CRP. crp: False for the one without chained residual pooling.
    State-dict names, level 1 the finest: `lateral1.weight`, `crp1.1_outvar_dimred.weight`, `deeper2.weight` (from
    level 2 to level 1), `classifier.weight`, `classifier.bias`; with rcu also `adapt1.*`, `joint1.weight` (not
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
        in_planes = checks.integers("Decoder", "in_planes", in_planes)
        num_classes = checks.integer("Decoder", "num_classes", num_classes)
        planes = checks.integer("Decoder", "planes", planes)
        if not in_planes:
            raise ValueError("Decoder: in_planes must name at least one feature map's channels, got none")
        if num_classes < 1:
            raise ValueError(f"Decoder: num_classes must be at least 1, got {num_classes}")
        if min(*in_planes, planes) < 1:
            raise ValueError(f"Decoder: in_planes and planes must be >= 1, got {in_planes} and {planes}")
        if activation not in ("relu", "relu6", "none"):
            raise ValueError(f'Decoder: activation must be "relu", "relu6" or "none", got {activation!r}')
        self.in_planes = in_planes
        self.activation = activation
        self.align_corners = bool(align_corners)
        self.dropout = dropout
        self._add_levels(self.in_planes, num_classes, planes, n_stages, groups, rcu, crp)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features (N, in_planes[i], H_i, W_i), finest first, to logits (N, num_classes, H_0, W_0)."""
        if isinstance(features, (list, tuple)) and len(features) != len(self.in_planes):
            raise ValueError(f"Decoder: features must be {len(self.in_planes)} maps, got {len(features)}")
        return self.decode(features)


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)
