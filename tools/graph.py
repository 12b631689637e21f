"""An ONNX graph that grows node by node. Needs numpy and onnx."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# A name, and a shape of sizes, and of names where any size will do.
Value = tuple[str, list]


class Graph:
    """The nodes and weights of a graph; values are known by their names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], *, output: str | None = None, **attributes) -> str:
        """Adds a node with one output and gives the output's name."""
        output = output or f"{self.fresh()}_{kind.lower()}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, values, dtype: type = np.float32) -> str:
        """Adds a tensor to the weights and gives its name."""
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def fresh(self) -> str:
        """A name that is not taken yet."""
        return f"node{len(self.nodes)}"

    def model(self, name: str, given: Value, made: Value) -> onnx.ModelProto:
        """The finished model, from one float32 input to one float32 output."""
        inputs, outputs = (
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)]
            for value, shape in (given, made)
        )
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        return model
