"""The MobileNet-v2 encoder (Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, table 2)."""

from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise 3x3 with the stride, 1x1 without activation (table 1)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        channels = in_channels * expansion
        self.output = nn.Sequential(
            _conv_bn_relu6(in_channels, channels, 1),
            _conv_bn_relu6(channels, channels, 3, stride, groups=channels),
            nn.Sequential(nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return x + self.output(x) if self.residual else self.output(x)


class MobileNetV2(nn.Module):
    """The convolutional part of MobileNet-v2 at width 1, up to its last 320 channels."""

    # expansion, channels, blocks, stride of layer2 to layer8
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    # channels of the features, finest first
    planes = tuple(stage[1] for stage in stages[1:])

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = _conv_bn_relu6(3, 32, 3, 2)
        in_channels = 32
        for number, (expansion, out_channels, blocks, stride) in enumerate(self.stages, start=2):
            layer = []
            for block in range(blocks):
                layer.append(InvertedResidual(in_channels, out_channels, stride if block == 0 else 1, expansion))
                in_channels = out_channels
            setattr(self, f"layer{number}", nn.Sequential(*layer))

    def features(self, x: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to the results of layer3 to layer8, finest first: 1/4, 1/8, 2 x 1/16, 2 x 1/32 the size."""
        results = []
        for number in range(1, 9):
            x = getattr(self, f"layer{number}")(x)
            results.append(x)
        return results[2:]


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )
