"""YOLOv5s as an ONNX graph, written from the published architecture, with seeded random weights.

The shape of the network (CSP blocks "C3", fast spatial pyramid pooling "SPPF", a path aggregation
neck and three detection heads with anchors) is that of version 6, as it is after export: batch
norms folded into the convolutions, SiLU as `x * sigmoid(x)`, boxes decoded inside the graph.
Weights are drawn so that the activations keep their size from layer to layer.

Needs numpy and onnx.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from tools.graph import Graph

SIZE = 640
CLASSES = 80
# Width and height of the three anchors of each scale, in pixels, by the stride of the scale.
ANCHORS = {
    8: [(10, 13), (16, 30), (33, 23)],
    16: [(30, 61), (62, 45), (59, 119)],
    32: [(116, 90), (156, 198), (373, 326)],
}


def build() -> onnx.ModelProto:
    """`images` f32 [1,3,640,640] to `output0` f32 [1,25200,85]: boxes, objectness, classes."""
    net = Net()
    features = backbone(net)
    boxes = [net.detect(scale, stride) for scale, stride in zip(neck(net, *features), ANCHORS)]
    net.node("Concat", boxes, output="output0", axis=1)
    rows = sum(3 * (SIZE // stride) ** 2 for stride in ANCHORS)
    return net.model("yolov5s", ("images", [1, 3, SIZE, SIZE]), ("output0", [1, rows, 5 + CLASSES]))


def backbone(net: Net) -> tuple[Maps, Maps, Maps]:
    """The features of the picture at the strides 8, 16 and 32."""
    x = net.conv(Maps("images", 3), 32, 6, stride=2, padding=2)
    x = net.c3(net.conv(x, 64, 3, stride=2), 64, repeats=1)
    eighth = net.c3(net.conv(x, 128, 3, stride=2), 128, repeats=2)
    sixteenth = net.c3(net.conv(eighth, 256, 3, stride=2), 256, repeats=3)
    x = net.c3(net.conv(sixteenth, 512, 3, stride=2), 512, repeats=1)
    return eighth, sixteenth, net.sppf(x, 512)


def neck(net: Net, eighth: Maps, sixteenth: Maps, top: Maps) -> tuple[Maps, Maps, Maps]:
    """Path aggregation: coarse features mixed down into fine ones, and up again."""
    lateral32 = net.conv(top, 256, 1)
    x = net.concat(net.upsample(lateral32), sixteenth)
    lateral16 = net.conv(net.c3(x, 256, repeats=1, shortcut=False), 128, 1)
    x = net.concat(net.upsample(lateral16), eighth)
    small = net.c3(x, 128, repeats=1, shortcut=False)
    x = net.concat(net.conv(small, 128, 3, stride=2), lateral16)
    medium = net.c3(x, 256, repeats=1, shortcut=False)
    x = net.concat(net.conv(medium, 256, 3, stride=2), lateral32)
    return small, medium, net.c3(x, 512, repeats=1, shortcut=False)


class Maps:
    """A value of the graph: feature maps with this many channels."""

    def __init__(self, name: str, channels: int):
        self.name = name
        self.channels = channels


class Net(Graph):
    """The blocks that the network is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.RandomState(5)

    def conv(
        self, x: Maps, channels: int, size: int, *, stride: int = 1, padding: int | None = None
    ) -> Maps:
        """Convolution, folded batch norm and SiLU."""
        padding = size // 2 if padding is None else padding
        x = self.bare_conv(x, channels, size, stride, padding)
        gate = self.node("Sigmoid", [x.name])
        return Maps(self.node("Mul", [x.name, gate]), channels)

    def bare_conv(
        self, x: Maps, channels: int, size: int, stride: int, padding: int, gain: float = 1
    ) -> Maps:
        """A convolution with bias."""
        shape = (channels, x.channels, size, size)
        # SiLU passes about half of the power: this spread gives it back.
        spread = gain * np.sqrt(2 / (x.channels * size * size))
        weight = self.constant(self.random.standard_normal(shape) * spread)
        bias = self.constant(self.random.standard_normal(channels) * 0.1)
        out = self.node(
            "Conv",
            [x.name, weight, bias],
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[padding] * 4,
        )
        return Maps(out, channels)

    def bottleneck(self, x: Maps, shortcut: bool) -> Maps:
        """Two convolutions, added to their input if there is a shortcut."""
        y = self.conv(self.conv(x, x.channels, 1), x.channels, 3)
        return Maps(self.node("Add", [x.name, y.name]), x.channels) if shortcut else y

    def c3(self, x: Maps, channels: int, *, repeats: int, shortcut: bool = True) -> Maps:
        """A cross-stage partial block: half of the channels go through the bottlenecks."""
        y = self.conv(x, channels // 2, 1)
        aside = self.conv(x, channels // 2, 1)
        for _ in range(repeats):
            y = self.bottleneck(y, shortcut)
        return self.conv(self.concat(y, aside), channels, 1)

    def sppf(self, x: Maps, channels: int) -> Maps:
        """Spatial pyramid pooling: the same small pooling three times over."""
        pools = [self.conv(x, x.channels // 2, 1)]
        for _ in range(3):
            pooled = self.node(
                "MaxPool", [pools[-1].name], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4
            )
            pools.append(Maps(pooled, pools[-1].channels))
        return self.conv(self.concat(*pools), channels, 1)

    def upsample(self, x: Maps) -> Maps:
        """Twice the height and width, by the nearest neighbour."""
        scales = self.constant([1, 1, 2, 2])
        out = self.node(
            "Resize",
            [x.name, "", scales],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        return Maps(out, x.channels)

    def concat(self, *parts: Maps) -> Maps:
        """The channels of all parts."""
        out = self.node("Concat", [part.name for part in parts], axis=1)
        return Maps(out, sum(part.channels for part in parts))

    def detect(self, x: Maps, stride: int) -> str:
        """The boxes of one scale, decoded to pixels: [1, 3 * cells, 5 + classes]."""
        cells, fields = SIZE // stride, 5 + CLASSES
        # Scores should spread, but those that are all 0 or 1 would hide differences.
        x = self.bare_conv(x, 3 * fields, 1, 1, 0, gain=4)
        split = self.constant([1, 3, fields, cells, cells], np.int64)
        y = self.node("Reshape", [x.name, split])
        y = self.node("Transpose", [y], perm=[0, 1, 3, 4, 2])
        y = self.node("Sigmoid", [y])
        lengths = self.constant([2, 2, fields - 4], np.int64)
        xy, wh, scores = self.split(y, lengths)
        xy = self.node("Add", [self.node("Mul", [xy, self.constant(2)]), self.grid(cells)])
        xy = self.node("Mul", [xy, self.constant(stride)])
        wh = self.node("Pow", [self.node("Mul", [wh, self.constant(2)]), self.constant(2)])
        anchors = np.array(ANCHORS[stride]).reshape(1, 3, 1, 1, 2)
        wh = self.node("Mul", [wh, self.constant(anchors)])
        y = self.node("Concat", [xy, wh, scores], axis=4)
        return self.node("Reshape", [y, self.constant([1, -1, fields], np.int64)])

    def grid(self, cells: int) -> str:
        """Column and row of each cell, less one half: where its box can be centred."""
        rows, columns = np.mgrid[0:cells, 0:cells]
        return self.constant(
            np.stack([columns, rows], axis=-1).reshape(1, 1, cells, cells, 2) - 0.5
        )

    def split(self, x: str, lengths: str) -> list[str]:
        """Centre, size and scores of each box."""
        names = [f"{self.fresh()}_{part}" for part in ("xy", "wh", "scores")]
        self.nodes.append(helper.make_node("Split", [x, lengths], names, axis=4))
        return names
