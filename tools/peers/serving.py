"""What all peers share: arguments, and a session with the same options as everybody's."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime

NUMPY = {"FP32": np.float32, "INT64": np.int64, "FP64": np.float64, "INT32": np.int32}


def arguments() -> argparse.Namespace:
    """`--port --certificate --key --threads NAME=FILE.onnx...`"""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("models", nargs="+", type=lambda text: text.split("=", 1))
    return parser.parse_args()


def session(path: str | Path, threads: int) -> onnxruntime.InferenceSession:
    """A model, loaded as the others load it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options)


def datatype(array: np.ndarray) -> str:
    """The protocol's name of an array's type."""
    return next(name for name, dtype in NUMPY.items() if array.dtype == dtype)
