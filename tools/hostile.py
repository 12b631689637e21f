"""Models that mean harm, made up anew each time and the same each time.

    python3 tools/hostile.py FOLDER [COUNT]     # writes them, so many mutations included

Two kinds: `handmade`, each an attack that somebody thought of, and `mutations` of real models by a
seeded generator. None is stored. A case may say what to send to it, should it load.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

FLOAT, INT64, STRING, BOOL = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.STRING,
    TensorProto.BOOL,
)
LEAST, MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
SMALL = Path(__file__).resolve().parent.parent / "testdata" / "models" / "small"
OPSETS = [("", 20), ("ai.onnx.ml", 3), ("com.microsoft", 1)]


@dataclass(frozen=True)
class Case:
    """A model, and what to send to it; what is not said is made up from its signature."""

    name: str
    content: bytes
    inputs: dict[str, np.ndarray] = field(default_factory=dict)


def handmade() -> Iterator[Case]:
    """Every attack that has a name."""
    for name, make in FILES.items():
        yield Case(name, make())
    for name, (arguments, made) in OPERATORS.items():
        # Once as constants, computed while the model is loaded; once as what a caller sends.
        yield Case(f"{name}-folded", operator(arguments, made, folded=True))
        fed = {f"i{at}": np.asarray(a) for at, a in enumerate(arguments) if a is not None}
        yield Case(f"{name}-fed", operator(arguments, made, folded=False), fed)


def mutations(count: int, seed: int = 1) -> Iterator[Case]:
    """So many mutations of real models; the first of them are the same for every count."""
    originals = [path.read_bytes() for path in sorted(SMALL.glob("*.onnx"))]
    originals += [control_flow(), calls(["F"], {"F": ["G", "G"], "G": ["Relu"]})]
    for number in range(count):
        chance = random.Random(f"{seed}-{number}")
        original = chance.choice(originals)
        mutate = chance.choice(MUTATORS)
        content = mutate(chance, original, chance.choice(originals))
        yield Case(f"mutation-{number}-{mutate.__name__}", content)


# Writing models


def value(name: str, dtype: int = FLOAT, shape: list | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: list,
    inputs: list | None = None,
    outputs: list | None = None,
    constants: dict | None = None,
    **more,
) -> bytes:
    graph = graph_of(nodes, inputs, outputs, constants)
    opsets = [helper.make_opsetid(*opset) for opset in [*OPSETS, ("local", 1)]]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **more).SerializeToString()


def graph_of(nodes, inputs=None, outputs=None, constants=None) -> GraphProto:
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    inputs = [value("x", FLOAT, ["n"])] if inputs is None else inputs
    outputs = [value("y")] if outputs is None else outputs
    return helper.make_graph(nodes, "g", inputs, outputs, weights)


def node(kind: str, inputs: list[str], outputs: list[str] | None = None, **attributes):
    return helper.make_node(kind, inputs, outputs or ["y"], **attributes)


def operator(arguments: list, made: dict, *, folded: bool) -> bytes:
    """A model of one operator on these arguments."""
    made = dict(made)
    dtype = made.pop("gives", FLOAT)
    extra = made.pop("outputs", 1)
    names = [f"i{at}" if a is not None else "" for at, a in enumerate(arguments)]
    given = {name: np.asarray(a) for name, a in zip(names, arguments, strict=True) if name}
    outputs = ["y", *[f"y{at}" for at in range(1, extra)]]
    nodes = [node(made.pop("op"), names, outputs, **made)]
    if folded:
        return model(nodes, [], [value("y", dtype)], given)
    specs = [value(name, dtype_of(array), [None] * array.ndim) for name, array in given.items()]
    return model(nodes, specs, [value("y", dtype)])


def dtype_of(array: np.ndarray) -> int:
    return STRING if array.dtype.kind in "OU" else helper.np_dtype_to_tensor_dtype(array.dtype)


def i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def words(*values: str) -> np.ndarray:
    return np.array(values, object)


# Attacks on the file


def nested(kind: str, depth: int) -> bytes:
    """Control flow within control flow."""
    inner = node("Identity", ["c"], ["y0"])
    for level in range(1, depth):
        before = f"y{level - 1}"
        if kind == "If":
            spec = [value(before, BOOL, [])]
            deep = helper.make_graph([inner], "b", [], spec)
            flat = helper.make_graph([node("Not", ["c"], [before])], "b", [], spec)
            inner = node("If", ["c"], [f"y{level}"], then_branch=deep, else_branch=flat)
        elif kind == "Loop":
            specs = [value(f"r{level}", INT64, []), value(f"g{level}", BOOL, [])]
            outputs = [value(f"g{level}", BOOL, []), value(before, BOOL, [])]
            body = helper.make_graph([inner], "b", specs, outputs)
            inner = node("Loop", ["two", ""], [f"y{level}"], body=body)
        else:
            body = helper.make_graph([inner], "b", [value(f"s{level}")], [value(before)])
            inner = node("Scan", ["x"], [f"y{level}"], body=body, num_scan_inputs=1)
    constants = {"c": np.bool_(True), "two": np.int64(2)}
    return model([inner], outputs=[value(f"y{depth - 1}", BOOL)], constants=constants)


def chain(length: int) -> bytes:
    """Nodes one after the other, written as bytes because protobuf in Python is slow."""
    parts = []
    for at in range(length):
        names = (b"x%d" % at, b"x%d" % (at + 1))
        body = b"\x0a" + varint(len(names[0])) + names[0]
        body += b"\x12" + varint(len(names[1])) + names[1] + b"\x22\x04Relu"
        parts.append(b"\x0a" + varint(len(body)) + body)
    nodes = b"".join(parts)
    frame = graph_of([], [value("x0", FLOAT, ["n"])], [value(f"x{length}")])
    graph = nodes + frame.SerializeToString()
    rest = ModelProto(ir_version=9, opset_import=[helper.make_opsetid("", 20)])
    return b"\x3a" + varint(len(graph)) + graph + rest.SerializeToString()


def varint(number: int) -> bytes:
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


def calls(called: list[str], functions: dict[str, list[str]]) -> bytes:
    """Functions of the model's own that call each other."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]

    def sequence(names: list[str]) -> list:
        ends = ["x", *[f"t{at}" for at in range(len(names) - 1)], "y"]
        return [
            node(n, [a], [b], domain="local" if n in functions else "")
            for n, a, b in zip(names, ends[:-1], ends[1:], strict=True)
        ]

    made = [
        helper.make_function("local", name, ["x"], ["y"], sequence(body), opsets)
        for name, body in functions.items()
    ]
    return model(sequence(called), functions=made)


def doubling(depth: int) -> bytes:
    functions = {f"F{at}": [f"F{at + 1}"] * 2 for at in range(depth)}
    return calls(["F0"], {**functions, f"F{depth}": ["Relu"]})


def control_flow() -> bytes:
    """A harmless loop, for mutation."""
    return endless(np.int64(3))


def endless(rounds: np.int64, *, growing: bool = False) -> bytes:
    """A loop of so many rounds; growing, it keeps something of each."""
    specs = [value("round", INT64, []), value("on", BOOL, []), value("sum", FLOAT, ["n"])]
    nodes = [node("Identity", ["on"], ["still"]), node("Add", ["sum", "x"], ["more"])]
    outputs = [value("still", BOOL, []), value("more", FLOAT, ["n"])]
    if growing:
        nodes.append(node("Expand", ["x", "wide"], ["kept"]))
        outputs.append(value("kept"))
    body = helper.make_graph(nodes, "body", specs, outputs)
    loop = node("Loop", ["rounds", "true", "x"], ["y", *(["all"] if growing else [])], body=body)
    constants = {"rounds": rounds, "true": np.bool_(True), "wide": i(1 << 16, 1)}
    return model([loop], constants=constants)


def external(location: str, put: Callable[[TensorProto], bytes]) -> bytes:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=text)
    return put(weight)


def as_initializer(weight: TensorProto) -> bytes:
    graph = graph_of([node("Add", ["x", "w"])])
    graph.initializer.append(weight)
    return finish(graph)


def as_constant(weight: TensorProto) -> bytes:
    return model([node("Constant", [], ["w"], value=weight), node("Add", ["x", "w"])])


def in_a_branch(weight: TensorProto) -> bytes:
    nodes = [node("Constant", [], ["w"], value=weight)]
    branch = helper.make_graph(nodes, "b", [], [value("w", FLOAT, [4])])
    made = node("If", ["c"], then_branch=branch, else_branch=branch)
    return model([made], constants={"c": np.bool_(True)})


def in_a_function(weight: TensorProto) -> bytes:
    nodes = [node("Constant", [], ["w"], value=weight), node("Add", ["x", "w"])]
    opsets = [helper.make_opsetid("", 20)]
    function = helper.make_function("local", "F", ["x"], ["y"], nodes, opsets)
    return model([node("F", ["x"], domain="local")], functions=[function])


def in_training(weight: TensorProto) -> bytes:
    made = ModelProto.FromString(model([node("Relu", ["x"])]))
    made.training_info.add().initialization.initializer.append(weight)
    return made.SerializeToString()


def finish(graph: GraphProto) -> bytes:
    opsets = [helper.make_opsetid(*opset) for opset in OPSETS]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def weighted(dims: list[int], data: bytes = b"", dtype: int = FLOAT) -> bytes:
    """An initializer whose dimensions and data need not agree."""
    graph = graph_of([node("Add", ["x", "w"])])
    graph.initializer.add(name="w", data_type=dtype, dims=dims, raw_data=data)
    return finish(graph)


def changed(change: Callable[[GraphProto], object], nodes: list | None = None) -> bytes:
    graph = graph_of(nodes or [node("Relu", ["x"])])
    change(graph)
    return finish(graph)


def attribute(kind: str, inputs: list[str], **raw) -> bytes:
    """A node with an attribute as nobody would write it."""
    made = node(kind, inputs)
    made.attribute.append(AttributeProto(**raw))
    return model([made])


FILES: dict[str, Callable[[], bytes]] = {
    **{f"nested-{kind}": lambda kind=kind: nested(kind, 30) for kind in ("If", "Loop", "Scan")},
    "nested-Loop-1000": lambda: nested_bytes(1000),
    "chain-1000001": lambda: chain(1_000_001),
    "chain-20000": lambda: chain(20_000),
    "functions-doubling": lambda: doubling(30),
    "functions-doubling-many": lambda: doubling(16),
    "function-of-itself": lambda: calls(["F"], {"F": ["F"]}),
    "functions-of-each-other": lambda: calls(["F"], {"F": ["G"], "G": ["F"]}),
    "function-like-an-operator": lambda: calls(["Relu"], {"Relu": ["Relu"]}),
    "loop-without-end": lambda: endless(np.int64(MOST)),
    "loop-that-grows": lambda: endless(np.int64(MOST), growing=True),
    "loop-negative": lambda: endless(np.int64(LEAST)),
    **{
        f"external-{at}": lambda location=location: external(location, as_initializer)
        for at, location in enumerate(
            [
                "weights.bin",
                "/etc/hostname",
                "../../../../etc/hostname",
                "/proc/self/mem",
                "/dev/zero",
                "http://localhost/w",
                "file:///etc/hostname",
                "",
                "\0",
                "w" * 100_000,
                "*/_ORT_MEM_ADDR_/*",
            ]
        )
    },
    **{
        f"external-{put.__name__}": lambda put=put: external("/etc/hostname", put)
        for put in (as_constant, in_a_branch, in_a_function, in_training)
    },
    "shape-2^60": lambda: weighted([1 << 60]),
    "shape-overflow": lambda: weighted([1 << 32, 1 << 32]),
    "shape-overflow-to-four": lambda: weighted([(1 << 62) + 1, 4], bytes(16)),
    "shape-negative": lambda: weighted([-1], bytes(4)),
    "shape-negative-twice": lambda: weighted([-2, -2], bytes(16)),
    "shape-least": lambda: weighted([LEAST]),
    "shape-zero-and-huge": lambda: weighted([0, MOST]),
    "shape-without-data": lambda: weighted([1 << 28]),
    "shape-of-many-ones": lambda: weighted([1] * 100_000, bytes(4)),
    "data-too-long": lambda: weighted([2], bytes(4 << 20)),
    "data-odd": lambda: weighted([2], bytes(7)),
    "dtype-unknown": lambda: weighted([1], bytes(4), dtype=99),
    "dtype-negative": lambda: weighted([1], bytes(4), dtype=-5),
    "dtype-undefined": lambda: weighted([1], bytes(4), dtype=0),
    "dtype-string-raw": lambda: weighted([1], bytes(4), dtype=STRING),
    "dtype-int4-odd": lambda: weighted([3], bytes(1), dtype=TensorProto.INT4),
    "cycle": lambda: model(
        [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"])]
    ),
    "cycle-of-one": lambda: model([node("Add", ["x", "y"])]),
    "one-output-twice": lambda: model([node("Relu", ["x"]), node("Neg", ["x"])]),
    "one-node-name-twice": lambda: model(
        [node("Relu", ["x"], ["t"], name="n"), node("Relu", ["t"], name="n")]
    ),
    "one-weight-twice": lambda: changed(
        lambda g: [g.initializer.append(numpy_helper.from_array(f(n), "w")) for n in (1, 3)],
        [node("Add", ["x", "w"])],
    ),
    "one-input-twice": lambda: changed(lambda g: g.input.append(value("x", INT64, [1]))),
    "output-of-nothing": lambda: changed(lambda g: g.output.append(value("z"))),
    "no-outputs": lambda: changed(lambda g: g.ClearField("output")),
    "no-inputs": lambda: changed(lambda g: g.ClearField("input")),
    "no-nodes": lambda: changed(lambda g: g.ClearField("node")),
    "nothing": lambda: changed(lambda g: g.Clear()),
    "input-is-output": lambda: changed(lambda g: g.output.append(value("x", FLOAT, ["n"]))),
    "names-empty": lambda: model([node("Relu", [""], [""])]),
    "name-of-8-MB": lambda: model([node("Relu", ["x"], name="n" * (8 << 20))]),
    "output-name-of-1-MB": lambda: model(
        [node("Relu", ["x"], ["n" * (1 << 20)])], outputs=[value("n" * (1 << 20))]
    ),
    "names-that-steer": lambda: model([node("Nope\x1b[2J\u202e\n", ["x"], name="\x1b]0;a\x07")]),
    "operator-of-1-MB": lambda: model([node("O" * (1 << 20), ["x"])]),
    "10000-inputs": lambda: model(
        [node("Sum", [f"x{at}" for at in range(10_000)])],
        [value(f"x{at}", FLOAT, [1]) for at in range(10_000)],
    ),
    "10000-outputs": lambda: model(
        [node("Split", ["x"], [f"y{at}" for at in range(10_000)], axis=0, num_outputs=10_000)],
        outputs=[value(f"y{at}") for at in range(10_000)],
    ),
    "strings-of-8-MB": lambda: model(
        [node("Equal", ["x", "w"])],
        [value("x", STRING, [1])],
        [value("y", BOOL)],
        {"w": words("a" * (8 << 20))},
    ),
    "million-strings": lambda: model(
        [node("Concat", ["x", "w"], axis=0)],
        [value("x", STRING, ["n"])],
        [value("y", STRING)],
        {"w": words(*[""] * 1_000_000)},
    ),
    "domain-unknown": lambda: model([node("Relu", ["x"], domain="local")]),
    "domain-of-a-path": lambda: model([node("Relu", ["x"], domain="../../libevil.so")]),
    "opset-of-the-future": lambda: helper.make_model(
        graph_of([node("Relu", ["x"])]), opset_imports=[helper.make_opsetid("", 1 << 30)]
    ).SerializeToString(),
    "opset-negative": lambda: helper.make_model(
        graph_of([node("Relu", ["x"])]), opset_imports=[helper.make_opsetid("", -1)]
    ).SerializeToString(),
    "ir-of-the-future": lambda: ModelProto(ir_version=MOST).SerializeToString(),
    "attribute-without-type": lambda: attribute("Relu", ["x"], name="a"),
    "attribute-of-two-types": lambda: attribute(
        "LeakyRelu", ["x"], name="alpha", type=2, f=1.0, i=7, s=b"x"
    ),
    "attribute-of-wrong-type": lambda: attribute("LeakyRelu", ["x"], name="alpha", type=3, s=b"x"),
    "attribute-refers-to-nothing": lambda: attribute(
        "LeakyRelu", ["x"], name="alpha", type=1, ref_attr_name="none"
    ),
    "million-ints": lambda: attribute(
        "Unsqueeze", ["x"], name="axes", type=7, ints=list(range(1_000_000))
    ),
    "engine-context": lambda: model(
        [
            node(
                "EPContext",
                ["x"],
                domain="com.microsoft",
                embed_mode=0,
                main_context=1,
                ep_cache_context="/etc/hostname",
                source="/etc/hostname",
            )
        ]
    ),
}


def nested_bytes(depth: int) -> bytes:
    """Graphs in attributes of nodes, deeper than protobuf in Python would write."""
    graph = graph_of([node("Relu", ["x"])], [], [value("y")]).SerializeToString()
    for _ in range(depth):
        # GraphProto{node{output, op_type, attribute{name, g, type}}}
        body = b"\x0a\x04body\x32" + varint(len(graph)) + graph + b"\xa0\x01\x05"
        made = b"\x12\x01y\x22\x04Loop\x2a" + varint(len(body)) + body
        graph = b"\x0a" + varint(len(made)) + made
    rest = ModelProto(ir_version=9, opset_import=[helper.make_opsetid("", 20)])
    return b"\x3a" + varint(len(graph)) + graph + rest.SerializeToString()


# Attacks on operators: arguments, and what the node says besides.

BOXES = np.zeros((1, 64, 4), np.float32)
TREE = {
    "op": "TreeEnsembleRegressor",
    "domain": "ai.onnx.ml",
    "n_targets": 1,
    "nodes_featureids": [0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF"],
    "nodes_nodeids": [0, 1],
    "nodes_treeids": [0, 0],
    "nodes_values": [0.5, 0.0],
    "nodes_truenodeids": [1, 0],
    "nodes_falsenodeids": [1, 0],
    "target_ids": [0],
    "target_nodeids": [1],
    "target_treeids": [0],
    "target_weights": [1.0],
}
NGRAMS = {
    "op": "TfIdfVectorizer",
    "mode": "TF",
    "min_gram_length": 1,
    "max_gram_length": 2,
    "max_skip_count": 0,
    "ngram_counts": [0, 2],
    "ngram_indexes": [0, 1, 2],
    "pool_int64s": [1, 2, 3, 4],
}
OPERATORS: dict[str, tuple[list, dict]] = {
    "divide-least": ([i(LEAST), i(-1)], {"op": "Div", "gives": INT64}),
    "divide-by-zero": ([i(1), i(0)], {"op": "Div", "gives": INT64}),
    "remainder-least": ([i(LEAST), i(-1)], {"op": "Mod", "gives": INT64}),
    "remainder-by-zero": ([i(1), i(0)], {"op": "Mod", "gives": INT64}),
    "remainder-int32": (
        [np.array([-(1 << 31)], np.int32), np.array([-1], np.int32)],
        {"op": "Mod", "gives": TensorProto.INT32},
    ),
    "fill-2^40": ([i(1 << 40)], {"op": "ConstantOfShape"}),
    "fill-2^62": ([i(1 << 31, 1 << 31)], {"op": "ConstantOfShape"}),
    "fill-negative": ([i(-1)], {"op": "ConstantOfShape"}),
    "fill-rank": ([i(*[1] * 100_000)], {"op": "ConstantOfShape"}),
    "expand-2^40": ([f(1), i(1 << 40)], {"op": "Expand"}),
    "expand-overflow": ([f(1), i(1 << 32, 1 << 32)], {"op": "Expand"}),
    "tile-2^40": ([f(1), i(1 << 40)], {"op": "Tile"}),
    "tile-overflow": ([f(4), i(1 << 62)], {"op": "Tile"}),
    "tile-negative": ([f(4), i(-1)], {"op": "Tile"}),
    "range-2^62": ([np.int64(0), np.int64(1 << 62), np.int64(1)], {"op": "Range", "gives": INT64}),
    "range-step-0": ([np.int64(0), np.int64(9), np.int64(0)], {"op": "Range", "gives": INT64}),
    "range-nan": ([np.float32(0), np.float32("nan"), np.float32(1)], {"op": "Range"}),
    "range-infinite": ([np.float32(0), np.float32("inf"), np.float32(1)], {"op": "Range"}),
    "one-hot-2^40": ([i(0), np.int64(1 << 40), f(2)], {"op": "OneHot"}),
    "one-hot-negative": ([i(LEAST), np.int64(2), f(2)], {"op": "OneHot", "axis": -1}),
    "slice-extremes": ([f(9), i(LEAST), i(MOST), i(0), i(LEAST)], {"op": "Slice"}),
    "slice-extremes-2": ([f(9), i(MOST), i(LEAST), i(0), i(-1)], {"op": "Slice"}),
    "slice-step-0": ([f(9), i(0), i(9), i(0), i(0)], {"op": "Slice"}),
    "slice-axis": ([f(9), i(0), i(9), i(LEAST), i(1)], {"op": "Slice"}),
    "slice-axes-twice": ([f(9), i(0, 5), i(9, 2), i(0, 0), i(1, -1)], {"op": "Slice"}),
    "slice-lengths": ([f(9), i(0, 0, 0), i(9), i(0), i(1)], {"op": "Slice"}),
    "gather-far": ([f(9), i(MOST)], {"op": "Gather"}),
    "gather-least": ([f(9), i(LEAST)], {"op": "Gather"}),
    "gather-elements": ([f(3, 3), i(9).reshape(1, 1)], {"op": "GatherElements"}),
    "gather-nd": ([f(3, 3), i(LEAST, MOST).reshape(1, 2)], {"op": "GatherND"}),
    "gather-nd-batch": ([f(3, 3), i(0, 0).reshape(2, 1)], {"op": "GatherND", "batch_dims": 7}),
    "scatter-nd": ([f(3), i(MOST).reshape(1, 1), f(1)], {"op": "ScatterND"}),
    "scatter-nd-least": ([f(3), i(LEAST).reshape(1, 1), f(1)], {"op": "ScatterND"}),
    "scatter-nd-updates": ([f(3), i(0, 1, 2).reshape(3, 1), f(1)], {"op": "ScatterND"}),
    "scatter-elements": ([f(3), i(-99), f(1)], {"op": "ScatterElements"}),
    "pad-2^40": ([f(1), i(1 << 40, 1 << 40)], {"op": "Pad"}),
    "pad-most": ([f(4), i(MOST, MOST)], {"op": "Pad"}),
    "pad-negative": ([f(4), i(-9, -9)], {"op": "Pad"}),
    "pad-least": ([f(4), i(LEAST, 0)], {"op": "Pad"}),
    "pad-reflect": ([f(1), i(99, 99)], {"op": "Pad", "mode": "reflect"}),
    "pad-wrap-empty": ([f(0), i(3, 3)], {"op": "Pad", "mode": "wrap"}),
    "pad-length": ([f(2, 2), i(1)], {"op": "Pad"}),
    "resize-huge": (
        [f(1, 1, 2, 2), None, np.array([1, 1, 1e9, 1e9], np.float32)],
        {"op": "Resize"},
    ),
    "resize-nan": (
        [f(1, 1, 2, 2), None, np.array([1, 1, "nan", -1], np.float32)],
        {"op": "Resize"},
    ),
    "resize-negative": ([f(1, 1, 2, 2), None, None, i(1, 1, -4, LEAST)], {"op": "Resize"}),
    "resize-roi": (
        [
            f(1, 1, 2, 2),
            np.array([0, 0, -1e30, 1e30, 1, 1, 1e30, -1e30], np.float32),
            None,
            i(1, 1, 4, 4),
        ],
        {"op": "Resize", "coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"},
    ),
    "resize-cubic-empty": (
        [f(1, 1, 0, 2), None, None, i(1, 1, 4, 4)],
        {"op": "Resize", "mode": "cubic"},
    ),
    "boxes-most": (
        [BOXES, np.ones((1, 1, 64), np.float32), np.array([MOST], np.int64)],
        {"op": "NonMaxSuppression", "gives": INT64},
    ),
    "boxes-mismatched": (
        [BOXES, np.ones((1, 1, 4096), np.float32), i(4096)],
        {"op": "NonMaxSuppression", "gives": INT64},
    ),
    "boxes-nan": (
        [np.full((1, 64, 4), np.nan, np.float32), np.full((1, 1, 64), np.nan, np.float32), i(64)],
        {"op": "NonMaxSuppression", "gives": INT64},
    ),
    "top-k-most": ([f(4), i(MOST)], {"op": "TopK", "outputs": 2}),
    "top-k-negative": ([f(4), i(-1)], {"op": "TopK", "outputs": 2}),
    "reshape-twice": ([f(4), i(-1, -1)], {"op": "Reshape"}),
    "reshape-overflow": ([f(4), i((1 << 62) + 1, 4)], {"op": "Reshape"}),
    "reshape-least": ([f(4), i(LEAST)], {"op": "Reshape"}),
    "transpose-twice": ([f(2, 2)], {"op": "Transpose", "perm": [0, 0]}),
    "transpose-far": ([f(2, 2)], {"op": "Transpose", "perm": [0, 1 << 40]}),
    "squeeze-far": ([f(1, 1), i(LEAST)], {"op": "Squeeze"}),
    "unsqueeze-far": ([f(1), i(MOST)], {"op": "Unsqueeze"}),
    "split-negative": ([f(4), i(-4, 8)], {"op": "Split", "outputs": 2}),
    "split-overflow": ([f(4), i(MOST, LEAST)], {"op": "Split", "outputs": 2}),
    "split-huge": ([f(4)], {"op": "Split", "outputs": 2, "num_outputs": MOST}),
    "einsum-long": ([f(2)], {"op": "Einsum", "equation": "a->" + "a" * 100_000}),
    "einsum-odd": ([f(2, 2), f(2, 2)], {"op": "Einsum", "equation": "...ij,...,->,..."}),
    "einsum-outer": ([f(4096), f(4096), f(4096)], {"op": "Einsum", "equation": "a,b,c->abc"}),
    "cumsum-axis": ([f(4), np.int64(LEAST)], {"op": "CumSum"}),
    "conv-group-0": ([f(1, 1, 3, 3), f(1, 1, 1, 1)], {"op": "Conv", "group": 0}),
    "conv-group-least": ([f(1, 1, 3, 3), f(1, 1, 1, 1)], {"op": "Conv", "group": LEAST}),
    "conv-stride-0": ([f(1, 1, 3, 3), f(1, 1, 1, 1)], {"op": "Conv", "strides": [0, 0]}),
    "conv-pads": ([f(1, 1, 3, 3), f(1, 1, 1, 1)], {"op": "Conv", "pads": [1 << 40] * 4}),
    "conv-pads-negative": ([f(1, 1, 3, 3), f(1, 1, 2, 2)], {"op": "Conv", "pads": [-9] * 4}),
    "conv-dilation": ([f(1, 1, 3, 3), f(1, 1, 2, 2)], {"op": "Conv", "dilations": [MOST, MOST]}),
    "conv-shape": ([f(1, 1, 3, 3), f(1, 1, 2, 2)], {"op": "Conv", "kernel_shape": [9, 9]}),
    "conv-empty": ([f(1, 0, 3, 3), f(1, 0, 2, 2)], {"op": "Conv"}),
    "deconv-shape": (
        [f(1, 1, 3, 3), f(1, 1, 2, 2)],
        {"op": "ConvTranspose", "output_shape": [1 << 31, 1 << 31]},
    ),
    "deconv-stride": (
        [f(1, 1, 3, 3), f(1, 1, 2, 2)],
        {"op": "ConvTranspose", "strides": [1 << 30, 1 << 30]},
    ),
    "pool-kernel": ([f(1, 1, 3, 3)], {"op": "MaxPool", "kernel_shape": [MOST, MOST]}),
    "pool-kernel-0": ([f(1, 1, 3, 3)], {"op": "AveragePool", "kernel_shape": [0, 0]}),
    "pool-pads": (
        [f(1, 1, 3, 3)],
        {"op": "AveragePool", "kernel_shape": [2, 2], "pads": [1 << 31] * 4},
    ),
    "pool-p-0": ([f(1, 1, 3, 3)], {"op": "LpPool", "kernel_shape": [2, 2], "p": 0}),
    "unpool-far": (
        [f(1, 1, 1, 1), i(1 << 40).reshape(1, 1, 1, 1)],
        {"op": "MaxUnpool", "kernel_shape": [2, 2]},
    ),
    "unpool-negative": (
        [f(1, 1, 1, 1), i(-(1 << 40)).reshape(1, 1, 1, 1)],
        {"op": "MaxUnpool", "kernel_shape": [2, 2]},
    ),
    "roi-align-far": ([f(1, 1, 4, 4), f(1, 4), i(1 << 40)], {"op": "RoiAlign"}),
    "roi-align-negative": ([f(1, 1, 4, 4), f(1, 4), i(-(1 << 20))], {"op": "RoiAlign"}),
    "roi-align-huge": (
        [f(1, 1, 4, 4), np.array([[0, 0, 1e9, 1e9]], np.float32), i(0)],
        {"op": "RoiAlign", "output_height": 2, "output_width": 2},
    ),
    "roi-pool-far": (
        [f(1, 1, 4, 4), np.array([[9e9, 0, 0, 4, 4]], np.float32)],
        {"op": "MaxRoiPool", "pooled_shape": [2, 2]},
    ),
    "grid-nan": ([f(1, 1, 4, 4), np.full((1, 2, 2, 2), "nan", np.float32)], {"op": "GridSample"}),
    "grid-far": (
        [f(1, 1, 4, 4), np.full((1, 2, 2, 2), 1e30, np.float32)],
        {"op": "GridSample", "padding_mode": "reflection"},
    ),
    "grid-empty": ([f(1, 1, 0, 4), f(1, 2, 2, 2)], {"op": "GridSample"}),
    "depth-to-space-0": ([f(1, 4, 2, 2)], {"op": "DepthToSpace", "blocksize": 0}),
    "space-to-depth-most": ([f(1, 4, 2, 2)], {"op": "SpaceToDepth", "blocksize": MOST}),
    "reverse-far": (
        [f(2, 2), i(MOST, LEAST)],
        {"op": "ReverseSequence", "batch_axis": 0, "time_axis": 1},
    ),
    "compress-long": ([f(2), np.ones(1 << 16, bool)], {"op": "Compress", "axis": 0}),
    "window-2^40": ([np.int64(1 << 40)], {"op": "HannWindow"}),
    "window-negative": ([np.int64(-1)], {"op": "HannWindow"}),
    "dft-long": ([f(1, 4, 1), np.int64(1 << 40)], {"op": "DFT"}),
    "dft-axis": ([f(1, 4, 1), np.int64(4), np.int64(LEAST)], {"op": "DFT"}),
    "stft-step-0": ([f(1, 64, 1), np.int64(0), f(8)], {"op": "STFT"}),
    "stft-long": ([f(1, 64, 1), np.int64(1), f(8), np.int64(1 << 40)], {"op": "STFT"}),
    "mel-2^40": (
        [np.int64(1 << 40), np.int64(8), np.int64(8000), np.float32(0), np.float32(9)],
        {"op": "MelWeightMatrix"},
    ),
    "mel-nan": (
        [np.int64(4), np.int64(8), np.int64(8000), np.float32("nan"), np.float32("inf")],
        {"op": "MelWeightMatrix"},
    ),
    "random-2^40": ([], {"op": "RandomNormal", "shape": [1 << 40]}),
    "random-negative": ([], {"op": "RandomUniform", "shape": [-1, 1 << 40]}),
    "multinomial-2^40": (
        [f(1, 4)],
        {"op": "Multinomial", "sample_size": 1 << 31, "gives": TensorProto.INT32},
    ),
    "lstm-mismatched": (
        [f(1, 1, 3), f(1, 4, 1), f(1, 4, 1)],
        {"op": "LSTM", "hidden_size": 1 << 30, "outputs": 1},
    ),
    "lstm-lengths": (
        [f(2, 1, 3), f(1, 4, 3), f(1, 4, 1), None, np.array([1 << 30], np.int32)],
        {"op": "LSTM", "hidden_size": 1},
    ),
    "gru-hidden-0": ([f(2, 1, 3), f(1, 3, 3), f(1, 3, 1)], {"op": "GRU", "hidden_size": 0}),
    "batch-norm-short": ([f(1, 8, 2, 2), f(1), f(1), f(1), f(1)], {"op": "BatchNormalization"}),
    "layer-norm-axis": ([f(2, 2), f(2)], {"op": "LayerNormalization", "axis": 99}),
    "group-norm-0": ([f(1, 4, 2), f(4), f(4)], {"op": "GroupNormalization", "num_groups": 0}),
    "dequantize-axis": ([np.ones((2, 2), np.int8), f(2)], {"op": "DequantizeLinear", "axis": 99}),
    "matmul-integer": (
        [np.ones((2, 2), np.uint8), np.ones((2, 2), np.uint8), np.ones(99, np.uint8)],
        {"op": "MatMulInteger", "gives": TensorProto.INT32},
    ),
    "matmul-huge": ([f(200_000, 1), f(1, 200_000)], {"op": "MatMul"}),
    "matmul-empty": ([f(3, 0), f(0, 3)], {"op": "MatMul"}),
    "shift-far": (
        [np.ones(1, np.uint64), np.array([200], np.uint64)],
        {"op": "BitShift", "direction": "LEFT", "gives": TensorProto.UINT64},
    ),
    "power": ([i(3), i(LEAST)], {"op": "Pow", "gives": INT64}),
    "cast-text": ([words("9" * 100_000)], {"op": "Cast", "to": INT64, "gives": INT64}),
    "cast-nan": (
        [np.array(["nan", 1e30], np.float32)],
        {"op": "Cast", "to": INT64, "gives": INT64},
    ),
    "regex-bomb": (
        [words("a" * 10_000)],
        {"op": "RegexFullMatch", "pattern": "(a?){30}" * 20 + "b", "gives": BOOL},
    ),
    "regex-repeats": (
        [words("a")],
        {"op": "RegexFullMatch", "pattern": "((a{100}){100}){100}", "gives": BOOL},
    ),
    "regex-nested": (
        [words("a")],
        {"op": "RegexFullMatch", "pattern": "(" * 20_000 + "a" + ")" * 20_000, "gives": BOOL},
    ),
    "regex-odd": (
        [words("\xff")],
        {"op": "RegexFullMatch", "pattern": "\\C\\pN[[:x:]](?i", "gives": BOOL},
    ),
    "split-text": (
        [words("a," * 100_000)],
        {"op": "StringSplit", "delimiter": ",", "gives": STRING, "outputs": 2},
    ),
    "split-text-by-itself": (
        [words("aaaa")],
        {"op": "StringSplit", "delimiter": "", "maxsplit": LEAST, "gives": STRING, "outputs": 2},
    ),
    "normalize-locale": (
        [words("A")],
        {
            "op": "StringNormalizer",
            "locale": "../../etc",
            "gives": STRING,
            "case_change_action": "LOWER",
        },
    ),
    "normalize-odd": (
        [words("\udcff".encode("utf-8", "surrogatepass").decode("latin1") * 9)],
        {"op": "StringNormalizer", "case_change_action": "UPPER", "gives": STRING},
    ),
    "ngrams-negative": ([i(1, 2, 3)], {**NGRAMS, "ngram_indexes": [-1, 1 << 40, 2]}),
    "ngrams-counts": ([i(1, 2, 3)], {**NGRAMS, "ngram_counts": [3, 0, 99]}),
    "ngrams-skips": ([i(*range(1000))], {**NGRAMS, "max_skip_count": 1 << 40}),
    "ngrams-length": ([i(1, 2, 3)], {**NGRAMS, "max_gram_length": 1 << 40}),
    "tree": ([f(1, 1)], TREE),
    "tree-cycle": ([f(1, 1)], {**TREE, "nodes_truenodeids": [0, 0], "nodes_falsenodeids": [0, 0]}),
    "tree-far": ([f(1, 1)], {**TREE, "nodes_truenodeids": [1 << 40, 0]}),
    "tree-feature": ([f(1, 1)], {**TREE, "nodes_featureids": [1 << 40, 0]}),
    "tree-target": ([f(1, 1)], {**TREE, "target_ids": [1 << 40]}),
    "tree-targets": ([f(1, 1)], {**TREE, "n_targets": 1 << 40}),
    "tree-lengths": ([f(1, 1)], {**TREE, "nodes_values": [0.5], "nodes_modes": ["LEAF"]}),
    "svm-lengths": (
        [f(1, 3)],
        {
            "op": "SVMRegressor",
            "domain": "ai.onnx.ml",
            "n_supports": 1 << 30,
            "coefficients": [1.0],
            "support_vectors": [1.0],
            "rho": [0.0],
        },
    ),
    "linear-lengths": (
        [f(1, 3)],
        {
            "op": "LinearRegressor",
            "domain": "ai.onnx.ml",
            "coefficients": [1.0],
            "targets": 1 << 30,
        },
    ),
    "linear-classes": (
        [f(1, 3)],
        {
            "op": "LinearClassifier",
            "domain": "ai.onnx.ml",
            "coefficients": [1.0],
            "classlabels_ints": [1, 2, 3],
            "outputs": 2,
            "gives": INT64,
        },
    ),
    "labels-lengths": (
        [i(1)],
        {
            "op": "LabelEncoder",
            "domain": "ai.onnx.ml",
            "keys_int64s": [1, 2, 3],
            "values_int64s": [1],
            "gives": INT64,
        },
    ),
    "features-far": (
        [f(1, 3), i(1 << 40)],
        {"op": "ArrayFeatureExtractor", "domain": "ai.onnx.ml"},
    ),
    "features-negative": (
        [f(1, 3), i(-9)],
        {"op": "ArrayFeatureExtractor", "domain": "ai.onnx.ml"},
    ),
    "scaler-lengths": (
        [f(1, 9)],
        {"op": "Scaler", "domain": "ai.onnx.ml", "offset": [1.0, 2.0], "scale": [1.0]},
    ),
    "normalizer-empty": ([f(1, 0)], {"op": "Normalizer", "domain": "ai.onnx.ml", "norm": "L2"}),
    "attention-heads": (
        [f(1, 2, 4), f(4, 12), f(12)],
        {"op": "Attention", "domain": "com.microsoft", "num_heads": 0},
    ),
    "attention-mask": (
        [f(1, 2, 4), f(4, 12), f(12), np.array([1 << 30], np.int32)],
        {"op": "Attention", "domain": "com.microsoft", "num_heads": 2},
    ),
    "nbits-block": (
        [f(1, 32), np.ones((1, 1, 1), np.uint8), f(1)],
        {
            "op": "MatMulNBits",
            "domain": "com.microsoft",
            "K": 32,
            "N": 1 << 20,
            "bits": 4,
            "block_size": 32,
        },
    ),
    "embedding-far": (
        [np.full((1, 2), 1 << 30, np.int32), None, f(4, 4), f(4, 4), None, f(4), f(4)],
        {"op": "EmbedLayerNormalization", "domain": "com.microsoft", "outputs": 2},
    ),
    "crop-far": (
        [
            f(1, 1, 4, 4),
            f(1, 4),
            np.array([1 << 30], np.int32),
            np.array([1 << 15, 1 << 15], np.int32),
        ],
        {"op": "CropAndResize", "domain": "com.microsoft"},
    ),
    "tokenize": (
        [words("a" * 10_000)],
        {
            "op": "Tokenizer",
            "domain": "com.microsoft",
            "mark": 1,
            "pad_value": "#",
            "mincharnum": 1,
            "tokenexp": "(a|aa)+$",
            "gives": STRING,
        },
    ),
    "search": (
        [np.ones((1, 1 << 16), np.int32)],
        {"op": "NGramRepeatBlock", "domain": "com.microsoft", "ngram_size": LEAST},
    ),
}


# Mutations


def flip_bits(chance: random.Random, content: bytes, _: bytes) -> bytes:
    broken = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    return bytes(broken)


def flip_structure(chance: random.Random, content: bytes, _: bytes) -> bytes:
    """Weights are most of a file: hits its first and last bytes instead."""
    broken = bytearray(content)
    for _ in range(chance.choice([1, 2, 4])):
        at = chance.randrange(min(len(broken), 600))
        broken[chance.choice([at, -1 - at])] = chance.randrange(256)
    return bytes(broken)


def truncate(chance: random.Random, content: bytes, _: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def splice(chance: random.Random, content: bytes, other: bytes) -> bytes:
    start, end = sorted(chance.randrange(len(other)) for _ in range(2))
    at = chance.randrange(len(content))
    return content[:at] + other[start:end] + content[at + chance.choice([0, end - start]) :]


def repeat(chance: random.Random, content: bytes, _: bytes) -> bytes:
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.choice([1, 16, 512]))
    return content[:end] + content[start:end] * chance.choice([1, 3, 100]) + content[end:]


def change_fields(chance: random.Random, content: bytes, _: bytes) -> bytes:
    """Numbers and texts of messages, chosen anywhere, become what nobody expects there."""
    made = ModelProto.FromString(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        message, chosen = pick(chance, made)
        change_field(chance, message, chosen)
    return made.SerializeToString()


def change_lists(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Elements are doubled, dropped, shuffled, or come from another model."""
    made = ModelProto.FromString(content)
    graph, stranger = made.graph, ModelProto.FromString(other).graph
    name = chance.choice(["node", "input", "output", "initializer", "value_info"])
    entries, others = list(getattr(graph, name)), list(getattr(stranger, name))
    for _ in range(chance.choice([1, 3])):
        act = chance.choice(["double", "drop", "shuffle", "adopt"])
        if act == "adopt" and others:
            entries.insert(chance.randint(0, len(entries)), chance.choice(others))
        elif act == "double" and entries:
            entries.append(chance.choice(entries))
        elif act == "drop" and entries:
            entries.pop(chance.randrange(len(entries)))
        else:
            chance.shuffle(entries)
    graph.ClearField(name)
    getattr(graph, name).extend(entries)
    return made.SerializeToString()


def change_operator(chance: random.Random, content: bytes, _: bytes) -> bytes:
    """Another operator on the same inputs, or the same one on others."""
    made = ModelProto.FromString(content)
    names = [name for n in made.graph.node for name in [*n.input, *n.output]]
    for _ in range(chance.choice([1, 2])):
        target = chance.choice(made.graph.node)
        if chance.random() < 0.5 or not target.input:
            schema = chance.choice(SCHEMAS)
            target.op_type, target.domain = schema
        else:
            target.input[chance.randrange(len(target.input))] = chance.choice(names)
    return made.SerializeToString()


def pick(chance: random.Random, message: Message) -> tuple[Message, FieldDescriptor]:
    """A scalar field that is set, somewhere below; a walk, so that weights do not win by size."""
    while True:
        set_fields = [chosen for chosen, _ in message.ListFields()]
        chosen = chance.choice(set_fields)
        if chosen.type != FieldDescriptor.TYPE_MESSAGE:
            return message, chosen
        below = getattr(message, chosen.name)
        if is_repeated(message, chosen):
            below = chance.choice(below)
        if not below.ListFields():
            return message, chosen
        message = below


def change_field(chance: random.Random, message: Message, chosen: FieldDescriptor) -> None:
    if chosen.type == FieldDescriptor.TYPE_MESSAGE:
        message.ClearField(chosen.name)
        return
    if is_repeated(message, chosen):
        entries = getattr(message, chosen.name)
        if chance.random() < 0.3:
            entries.extend(list(entries) * chance.choice([1, 50]))
        elif chance.random() < 0.3:
            del entries[chance.randrange(len(entries)) :]
        else:
            entries[chance.randrange(len(entries))] = odd_value(chance, chosen)
    else:
        setattr(message, chosen.name, odd_value(chance, chosen))


def is_repeated(message: Message, chosen: FieldDescriptor) -> bool:
    return hasattr(getattr(message, chosen.name), "extend")


def odd_value(chance: random.Random, chosen: FieldDescriptor):
    kind = chosen.cpp_type
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return chance.choice([value.number for value in chosen.enum_type.values])
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return chance.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    if kind == FieldDescriptor.CPPTYPE_INT32:
        return chance.choice([0, 1, -1, 99, (1 << 31) - 1, -(1 << 31)])
    if kind == FieldDescriptor.CPPTYPE_INT64:
        return chance.choice([0, 1, -1, 7, 1 << 31, 1 << 40, MOST, LEAST])
    if kind == FieldDescriptor.CPPTYPE_UINT64:
        return chance.choice([0, 1 << 40, (1 << 64) - 1])
    text = chance.choice(["", "x", "image", "y", "n" * 5000, "\x1b[2J", "../../etc/passwd"])
    return text.encode() if chosen.type == FieldDescriptor.TYPE_BYTES else text


MUTATORS = [
    flip_bits,
    flip_structure,
    truncate,
    splice,
    repeat,
    change_fields,
    change_fields,
    change_lists,
    change_operator,
]
SCHEMAS = sorted(
    {(s.name, s.domain) for s in onnx.defs.get_all_schemas() if "train" not in s.domain}
)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 600
    for case in [*handmade(), *mutations(count)]:
        (folder / f"{case.name}.onnx").write_bytes(case.content)


if __name__ == "__main__":
    main()
