"""The same model in this process: what the answers of a server are held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

Tensors = dict[str, np.ndarray]


def compare(model: Path, inputs: Tensors, outputs: Tensors) -> None:
    """Print how far the server's outputs are from those of ONNX Runtime in this process."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    local = session.run(list(outputs), inputs)
    gap = max(np.abs(ours - theirs).max() for ours, theirs in zip(local, outputs.values()))
    size = max(np.abs(ours).max() for ours in local)
    print(f"same model in this process: outputs up to {size:.3g}, differ by at most {gap:.1e}")
    if gap > 1e-3 * size:
        raise SystemExit("the server and this process do not agree")
