"""Small ONNX models, written for one test each."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def identity(dtype: int = FLOAT, shape: list | None = None) -> bytes:
    """`x` comes back as `y`."""
    shape = ["n"] if shape is None else shape
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], [value("x", dtype, shape)], [value("y", dtype, shape)])


def split() -> bytes:
    """`sum = a + b` and `difference = a - b`."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    inputs, outputs = (
        [value(name, FLOAT, ["n"]) for name in names] for names in ("ab", ("sum", "difference"))
    )
    return model(nodes, inputs, outputs)


def add(shape: list) -> bytes:
    """`y = a + b`."""
    node = helper.make_node("Add", ["a", "b"], ["y"])
    inputs = [value("a", FLOAT, shape), value("b", FLOAT, shape)]
    return model([node], inputs, [value("y", FLOAT, shape)])


def loop() -> bytes:
    """Adds one to a counter `rounds` times: as slow as the caller wishes, up to forever."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still"]),
            helper.make_node("Add", ["count", "one"], ["more"]),
        ],
        "body",
        [
            value("round", INT64, []),
            value("go_on", TensorProto.BOOL, []),
            value("count", INT64, []),
        ],
        [value("still", TensorProto.BOOL, []), value("more", INT64, [])],
    )
    node = helper.make_node("Loop", ["rounds", "true", "zero"], ["total"], body=body)
    constants = {"one": np.int64(1), "zero": np.int64(0), "true": np.bool_(True)}
    return model([node], [value("rounds", INT64, [])], [value("total", INT64, [])], constants)


def hungry() -> bytes:
    """Fills a tensor of `shape` and sums it up: as much memory as the caller wishes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["filled"]),
        helper.make_node("ReduceSum", ["filled"], ["total"], keepdims=0),
    ]
    return model(nodes, [value("shape", INT64, ["rank"])], [value("total", FLOAT, [])])


def unfolding(elements: int) -> bytes:
    """A small file whose constants take much memory once they are computed."""
    nodes = [
        helper.make_node("Expand", ["one", "shape"], ["filled"]),
        helper.make_node("Add", ["x", "filled"], ["y"]),
    ]
    constants = {"one": np.float32(1), "shape": np.array([elements], np.int64)}
    return model(nodes, [value("x", FLOAT, [])], [value("y", FLOAT, ["n"])], constants)


def heavy(weights: np.ndarray) -> bytes:
    """`y = x + weights`: a file as large as its weights."""
    node = helper.make_node("Add", ["x", "weights"], ["y"])
    specs = value("x", FLOAT, []), value("y", FLOAT, list(weights.shape))
    return model([node], [specs[0]], [specs[1]], {"weights": weights})


def divide() -> bytes:
    """`y = a / b` in integers: INT64_MIN / -1 traps in the processor."""
    node = helper.make_node("Div", ["a", "b"], ["y"])
    inputs = [value("a", INT64, ["n"]), value("b", INT64, ["n"])]
    return model([node], inputs, [value("y", INT64, ["n"])])


def divide_floats() -> bytes:
    """`y = x / x`: NaN for zero."""
    node = helper.make_node("Div", ["x", "x"], ["y"])
    return model([node], [value("x", FLOAT, ["n"])], [value("y", FLOAT, ["n"])])


def external(location: str) -> bytes:
    """A model whose weights lie in another file."""
    weight = TensorProto(name="w", data_type=FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=text)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node], "g", [value("x", FLOAT, [4])], [value("y", FLOAT, [4])], [weight]
    )
    return finish(graph)


def model(nodes: list, inputs: list, outputs: list, constants: dict | None = None) -> bytes:
    """A model file of these nodes."""
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    return finish(helper.make_graph(nodes, "g", inputs, outputs, weights))


def finish(graph: onnx.GraphProto) -> bytes:
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made.SerializeToString()


def value(name: str, dtype: int, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)
