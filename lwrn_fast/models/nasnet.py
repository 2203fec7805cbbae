"""The NASNet-A encoder at mobile size, 4 @ 1056 (Zoph et al., Learning Transferable Architectures for Scalable Image
Recognition, CVPR 2018, section 4, figure 4 and appendix A)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SeparableConv(nn.Module):
    """ReLU, depthwise k x k with the stride, 1x1, batch norm; then the same again without a stride (appendix A)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _separable(in_channels, out_channels, kernel, stride)
        self.second = _separable(out_channels, out_channels, kernel, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return self.second(F.relu(self.first(F.relu(x))))


class Halving(nn.Module):
    """Half the size without losing a pixel: 1x1 of the even pixels, 1x1 of the odd ones, concatenated, batch norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)
        self.bn = _batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H / 2), ceil(W / 2))."""
        x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]  # zero past the edge of an odd size
        return self.bn(torch.cat([self.even(x[:, :, ::2, ::2]), self.odd(shifted[:, :, ::2, ::2])], 1))


class Cell(nn.Module):
    """The base class of both cells: bring the last result and the one before it to `channels` channels.

    earlier, last: channels of the two. halve: the earlier map has twice the last one's size.
    adapt: False leaves the earlier map as it is.
    """

    def __init__(self, earlier: int, last: int, channels: int, halve: bool = False, adapt: bool = True) -> None:
        super().__init__()
        self.last = _squeeze(last, channels)
        self.earlier: nn.Module = nn.Identity()
        if halve:
            self.earlier = Halving(earlier, channels)
        elif adapt and earlier != channels:
            self.earlier = _squeeze(earlier, channels)


class NormalCell(Cell):
    """The normal cell (figure 4, left): 6 `channels` channels at the last result's size."""

    def __init__(self, earlier: int, last: int, channels: int, halve: bool = False) -> None:
        super().__init__(earlier, last, channels, halve)
        self.last_5x5 = SeparableConv(channels, channels, 5)
        self.last_3x3 = SeparableConv(channels, channels, 3)
        self.earlier_5x5 = SeparableConv(channels, channels, 5)
        self.earlier_3x3 = SeparableConv(channels, channels, 3)
        self.earlier_3x3_beside = SeparableConv(channels, channels, 3)

    def forward(self, earlier: Tensor, last: Tensor) -> Tensor:
        """Map both results to (N, 6 channels, H, W)."""
        earlier, last = self.earlier(earlier), self.last(last)
        pooled = _average(earlier, 1)
        sums = (
            self.last_5x5(last) + self.earlier_3x3_beside(earlier),
            self.earlier_5x5(earlier) + self.earlier_3x3(earlier),
            _average(last, 1) + earlier,
            pooled + pooled,
            self.last_3x3(last) + last,
        )
        return torch.cat([earlier, *sums], 1)


class ReductionCell(Cell):
    """The reduction cell (figure 4, right): 4 `channels` channels at half the last result's size."""

    def __init__(self, earlier: int, last: int, channels: int, halve: bool = False, adapt: bool = True) -> None:
        super().__init__(earlier, last, channels, halve, adapt)
        earlier = channels if halve or adapt else earlier
        self.last_5x5 = SeparableConv(channels, channels, 5, 2)
        self.earlier_7x7 = SeparableConv(earlier, channels, 7, 2)
        self.earlier_7x7_beside = SeparableConv(earlier, channels, 7, 2)
        self.earlier_5x5 = SeparableConv(earlier, channels, 5, 2)
        self.sum_3x3 = SeparableConv(channels, channels, 3)

    def forward(self, earlier: Tensor, last: Tensor) -> Tensor:
        """Map both results to (N, 4 channels, ceil(H / 2), ceil(W / 2))."""
        earlier, last = self.earlier(earlier), self.last(last)
        pooled = F.max_pool2d(last, 3, 2, 1)
        first = self.last_5x5(last) + self.earlier_7x7(earlier)
        second = pooled + self.earlier_7x7_beside(earlier)
        third = _average(last, 2) + self.earlier_5x5(earlier)
        return torch.cat([second, third, _average(first, 1) + second, self.sum_3x3(first) + pooled], 1)


class NASNetMobile(nn.Module):
    """The convolutional part of NASNet-A 4 @ 1056: a 3x3 stem, two reduction cells, three times four normal cells.

    4,232,978 parameters; with a classifier of 1000 classes on the 1056 channels, 5,289,978 (5.3 M in the paper).
    """

    # channels of the features, finest first
    planes = (44, 264, 528, 1056)

    def __init__(self) -> None:
        super().__init__()
        # padded, so that every feature has the image's size over its stride, rounded up
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), _batch_norm(32))
        self.reduce1 = ReductionCell(32, 32, 11, adapt=False)
        self.reduce2 = ReductionCell(32, 44, 22, halve=True)
        self.cells1 = _four(44, 88, 44)
        self.reduce3 = ReductionCell(264, 264, 88)
        self.cells2 = _four(264, 352, 88)
        self.reduce4 = ReductionCell(528, 528, 176)
        self.cells3 = _four(528, 704, 176)

    def features(self, x: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to the last results at 1/4, 1/8, 1/16 and 1/32 of the input's size, finest first."""
        earlier = self.stem(x)
        last = self.reduce1(earlier, earlier)
        results = [F.relu(last)]  # cells begin with a ReLU, so its ReLU is all that they read of a result
        earlier, last = last, self.reduce2(earlier, last)
        for cells, reduce in ((self.cells1, self.reduce3), (self.cells2, self.reduce4), (self.cells3, None)):
            for cell in cells:
                earlier, last = last, cell(earlier, last)
            results.append(F.relu(last))
            if reduce is not None:
                earlier, last = last, reduce(earlier, last)
        return results


def _four(earlier: int, last: int, channels: int) -> nn.ModuleList:
    """Return four normal cells after a reduction, which halves the size."""
    cells = [NormalCell(earlier, last, channels, halve=True), NormalCell(last, 6 * channels, channels)]
    return nn.ModuleList([*cells, *(NormalCell(6 * channels, 6 * channels, channels) for _ in range(2))])


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _squeeze(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False), _batch_norm(out_channels))


def _separable(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, kernel, stride, kernel // 2, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        _batch_norm(out_channels),
    )


def _average(x: Tensor, stride: int) -> Tensor:
    """Return the mean of those pixels of the 3x3 window that lie on the map."""
    return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
