"""The models that scripts of `examples/` make and train, made without a server."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import onnxruntime

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

import covid_net as covid
import find_anomalies


def isolation_forest() -> onnx.ModelProto:
    return anomalies("isolation-forest")


def local_outlier_factor() -> onnx.ModelProto:
    return anomalies("local-outlier-factor")


def one_class_svm() -> onnx.ModelProto:
    return anomalies("one-class-svm")


def covid_net() -> onnx.ModelProto:
    session = onnxruntime.InferenceSession(covid.network().SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return covid.network(covid.train(lambda given: dict(zip(names, session.run(None, given)))))


def anomalies(method: str) -> onnx.ModelProto:
    known, _, _ = find_anomalies.measurements()
    return find_anomalies.export(find_anomalies.train(method, known), known)
