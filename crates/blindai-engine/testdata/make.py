"""Makes the models that the tests run. `pip install onnx==1.19.1 numpy`, then `python make.py`.

Each is a few hundred bytes and shows one thing; the files are committed beside this script.
"""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
OPSET = [helper.make_opsetid("", 17)]
TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def tensor(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name, values, kind=np.int64):
    return numpy_helper.from_array(np.array(values, kind), name)


def save(name, nodes, inputs, outputs, constants=(), opsets=OPSET, functions=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    model = helper.make_model(
        graph, opset_imports=opsets, functions=functions, ir_version=8, producer_name="blindai"
    )
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())
    return model


def field(number, content):
    """A field of bytes, short enough for a length of one byte."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def identities():
    # Any shape: scalars, empty tensors and all ranks go through one model per type.
    for name, kind in TYPES.items():
        node = helper.make_node("Identity", ["x"], ["y"])
        save(f"identity_{name}", [node], [tensor("x", kind, None)], [tensor("y", kind, None)])


def arithmetic():
    # Two inputs and two outputs, a fixed and a named dimension, and an input with a default.
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Mul", ["a", "scale"], ["scaled"]),
    ]
    inputs = [tensor("a", F32, ["batch", 3]), tensor("b", F32, ["batch", 3])]
    inputs.append(tensor("scale", F32, [1]))
    outputs = [tensor("sum", F32, ["batch", 3]), tensor("scaled", F32, ["batch", 3])]
    save("two_by_two", nodes, inputs, outputs, [constant("scale", [10], np.float32)])

    # INT64_MIN / -1 raises SIGFPE inside ONNX Runtime.
    node = helper.make_node("Div", ["a", "b"], ["y"], name="divide")
    save(
        "div", [node], [tensor("a", I64, ["n"]), tensor("b", I64, ["n"])], [tensor("y", I64, ["n"])]
    )

    # Fails at run time when the indices are out of range.
    node = helper.make_node("Gather", ["data", "index"], ["y"], name="pick")
    inputs = [tensor("data", F32, ["n"]), tensor("index", I64, ["m"])]
    save("gather", [node], inputs, [tensor("y", F32, ["m"])])


def endless():
    # Loops for as many rounds as the input says; 2^62 is for ever.
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_on"]),
            helper.make_node("Sin", ["state"], ["state_out"]),
        ],
        "body",
        [
            tensor("round", I64, []),
            tensor("going", TensorProto.BOOL, []),
            tensor("state", F32, [1]),
        ],
        [tensor("going_on", TensorProto.BOOL, []), tensor("state_out", F32, [1])],
    )
    node = helper.make_node("Loop", ["rounds", "", "start"], ["y"], body=body)
    save(
        "loop",
        [node],
        [tensor("rounds", I64, []), tensor("start", F32, [1])],
        [tensor("y", F32, [1])],
    )

    # Counts elements one by one, inside a single node.
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["one"], value_floats=[1.0]),
            # tract fails on an input that is not used.
            helper.make_node("Cast", ["element"], ["more"], to=F32),
            helper.make_node("Sum", ["state", "one", "more"], ["state_out"]),
        ],
        "body",
        [tensor("state", F32, [1]), tensor("element", TensorProto.UINT8, [])],
        [tensor("state_out", F32, [1])],
    )
    node = helper.make_node("Scan", ["start", "rounds"], ["y"], body=body, num_scan_inputs=1)
    rounds = tensor("rounds", TensorProto.UINT8, ["n"])
    save("scan", [node], [rounds, tensor("start", F32, [1])], [tensor("y", F32, [1])])

    # Takes long in all, and short in each node.
    names = ["x", *(f"t{i}" for i in range(1, 500)), "y"]
    nodes = [helper.make_node("Sin", [a], [b]) for a, b in zip(names, names[1:], strict=False)]
    save("chain", nodes, [tensor("x", F32, ["n"])], [tensor("y", F32, ["n"])])


def memory():
    # Fills as many floats as the input says and answers with their sum.
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["filled"], name="fill"),
        helper.make_node("ReduceSum", ["filled"], ["y"], keepdims=0),
    ]
    save("fill", nodes, [tensor("shape", I64, [1])], [tensor("y", F32, [])])
    # The same, answering with all of them.
    node = helper.make_node("ConstantOfShape", ["shape"], ["y"], name="fill")
    save("fill_out", [node], [tensor("shape", I64, [1])], [tensor("y", F32, ["n"])])

    # As many floats as the square of the input's length, and their sum; or all of them.
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["column"]),
        helper.make_node("Mul", ["column", "x"], ["products"], name="outer"),
    ]
    rest = [
        helper.make_node("Sin", ["products"], ["sines"]),
        helper.make_node("ReduceSum", ["sines"], ["y"], keepdims=0),
    ]
    x, axis = tensor("x", F32, ["n"]), constant("axis", [1])
    save("outer", [*nodes, *rest], [x], [tensor("y", F32, [])], [axis])
    nodes[1].output[0] = "y"
    save("outer_out", nodes, [x], [tensor("y", F32, ["n", "n"])], [axis])


def external():
    weights = TensorProto(name="weights", data_type=F32, dims=[1])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="etc/passwd")
    node = helper.make_node("Add", ["x", "weights"], ["y"])
    x, y = tensor("x", F32, [1]), tensor("y", F32, [1])
    model = save("external", [node], [x], [y], [weights])

    # The same, with keys that have a bit above the 32nd, which protobuf drops.
    entry = field(13, weights.external_data[0].SerializeToString())
    disguised = weights.SerializeToString()
    for plain in (entry, b"\x70\x01"):
        wide = bytes([plain[0] | 0x80]) + b"\x80\x80\x80\x10" + plain[1:]
        assert disguised.count(plain) == 1
        disguised = disguised.replace(plain, wide)
    model.graph.ClearField("initializer")
    graph = model.graph.SerializeToString() + field(5, disguised)
    model.ClearField("graph")
    (HERE / "external_disguised.onnx").write_bytes(model.SerializeToString() + field(7, graph))

    # The same, hidden in a branch of an If.
    value = helper.make_node("Constant", [], ["w"], value=weights)
    branch = helper.make_graph([value], "branch", [], [tensor("w", F32, [1])])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    save("external_in_branch", [choice], [tensor("c", TensorProto.BOOL, [])], [y])

    # The same, hidden in a function.
    body = [value, helper.make_node("Add", ["x", "w"], ["y"])]
    function = helper.make_function("local", "AddWeights", ["x"], ["y"], body, OPSET)
    call = helper.make_node("AddWeights", ["x"], ["y"], domain="local")
    opsets = [*OPSET, helper.make_opsetid("local", 1)]
    save("external_in_function", [call], [x], [y], opsets=opsets, functions=[function])


def unsupported():
    x, y = tensor("x", F32, [1]), tensor("y", F32, [1])
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("y", F32, None)
    save("sequence_output", [node], [x], [sequence])
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="example.com")
    save(
        "custom_operator", [node], [x], [y], opsets=[*OPSET, helper.make_opsetid("example.com", 1)]
    )

    # What tract does not take: quantised models, and what only has the name of an operator.
    scale, zero = constant("scale", 0.5, np.float32), constant("zero", 0, np.uint8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    save("quantised", nodes, [x], [y], [scale, zero])
    local = [*OPSET, helper.make_opsetid("local", 1)]
    node = helper.make_node("Relu", ["x"], ["y"], domain="local")
    body = [helper.make_node("Neg", ["x"], ["y"])]
    function = helper.make_function("local", "Relu", ["x"], ["y"], body, OPSET)
    save("function_relu", [node], [x], [y], opsets=local, functions=[function])
    node = helper.make_node("Relu", ["x"], ["y"], domain="com.microsoft")
    save(
        "microsoft_relu", [node], [x], [y], opsets=[*OPSET, helper.make_opsetid("com.microsoft", 1)]
    )

    # Each function calls the next one twice.
    opsets = [*OPSET, helper.make_opsetid("local", 1)]
    functions = []
    for level in range(25):
        callee, domain = (f"F{level + 1}", "local") if level < 24 else ("Identity", "")
        calls = [
            helper.make_node(callee, ["x"], ["t"], domain=domain),
            helper.make_node(callee, ["t"], ["y"], domain=domain),
        ]
        functions.append(helper.make_function("local", f"F{level}", ["x"], ["y"], calls, opsets))
    call = helper.make_node("F0", ["x"], ["y"], domain="local")
    save("function_bomb", [call], [x], [y], opsets=opsets, functions=functions)


def rows():
    # It says that it keeps the rows, and drops those that are equal to others.
    x, y = (tensor(name, I64, ["batch"]) for name in "xy")
    save("fewer_rows", [helper.make_node("Unique", ["x"], ["y"])], [x], [y])


def ranks():
    # As many dimensions as the input has elements.
    node = helper.make_node("ConstantOfShape", ["shape"], ["y"])
    save("any_rank", [node], [tensor("shape", I64, ["rank"])], [tensor("y", F32, None)])


if __name__ == "__main__":
    identities()
    arithmetic()
    endless()
    memory()
    external()
    unsupported()
    rows()
    ranks()
