"""A small convolutional network in the manner of COVID-Net, built here and run by the server.

    python examples/covid_net.py --simulation

COVID-Net reads chest X-rays by blocks that project, expand, look at each channel alone, and project
and expand again. This is that block, three times, with seeded random weights; only the last layer
is trained, on scikit-learn's handwritten digits, which stand in for X-rays that nobody may ship. It
tells digits apart and knows nothing of medicine. What it shows is the way of such a model: its
owner uploads it, and neither he nor the owner of the pictures shows anything to the other's host.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from connection import connect, options
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split

CLASSES = 10
FEATURES = 256


def main() -> None:
    arguments = options(__doc__).parse_args()
    test, answers = unseen()

    with connect(arguments) as client:
        client.models.upload(network().SerializeToString(), name="covid-net-features")
        head = train(lambda given: client.infer("covid-net-features", given))
        client.models.upload(network(head).SerializeToString(), name="covid-net")
        scores = client.infer("covid-net", {"pictures": test})["scores"]
        client.models.delete("covid-net-features")
        client.models.delete("covid-net")

    right = (scores.argmax(axis=1) == answers).sum()
    print(f"the first picture shows a {scores[0].argmax()}, and it is a {answers[0]}")
    print(f"{right} of {len(test)} pictures that it never saw are told rightly")


def train(features: Callable[[dict], dict]) -> RidgeClassifier:
    """The last layer, by what the rest of the network makes of the pictures."""
    pictures, _, digits, _ = halves()
    return RidgeClassifier().fit(features({"pictures": pictures})["features"], digits)


def unseen() -> tuple[np.ndarray, np.ndarray]:
    """Pictures that are not trained on, f32 [200, 1, 8, 8], and their digits."""
    _, pictures, _, digits = halves()
    return pictures, digits


def halves() -> list[np.ndarray]:
    """Pictures to train on and to test with, then the digits that they show."""
    pictures, digits = load_digits(return_X_y=True)
    pictures = (pictures.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    return train_test_split(pictures, digits, test_size=200, random_state=0)


def network(head: RidgeClassifier | None = None) -> onnx.ModelProto:
    """`pictures` f32 [batch, 1, 8, 8] to `features` f32 [batch, 256], or to `scores` of a head."""
    random = np.random.default_rng(7)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def node(kind: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        output = output or f"value{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(values: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"weight{len(weights)}"))
        return weights[-1].name

    def conv(x: str, shape: tuple[int, ...], **attributes: object) -> str:
        values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        return node("Conv", [x, constant(values)], kernel_shape=shape[2:], **attributes)

    def block(x: str, channels: int, out: int) -> str:
        """Project, expand, depthwise, project, expand: COVID-Net's PEPX."""
        few, many = channels // 2, channels * 2
        x = conv(conv(x, (few, channels, 1, 1)), (many, few, 1, 1))
        x = node("Relu", [conv(x, (many, 1, 3, 3), group=many, pads=[1] * 4)])
        return node("Relu", [conv(conv(x, (few, many, 1, 1)), (out, few, 1, 1))])

    x = node("Relu", [conv("pictures", (32, 1, 3, 3), pads=[1] * 4)])
    x = block(block(x, 32, 32), 32, 64)
    x = node("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = node("AveragePool", [block(x, 64, 64)], kernel_shape=[2, 2], strides=[2, 2])
    output, width = ("scores", CLASSES) if head else ("features", FEATURES)
    x = node("Flatten", [x], "" if head else output)
    if head:
        last = [constant(head.coef_), constant(head.intercept_)]
        node("Gemm", [x, *last], output, transB=1)
    return finished(nodes, weights, output, width)


def finished(nodes: list, weights: list, output: str, width: int) -> onnx.ModelProto:
    """The model of these nodes."""
    given = helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["batch", 1, 8, 8])
    made = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(nodes, "covid-net", [given], [made], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    main()
