"""What does not belong, by a model that scikit-learn trained here and the server runs.

    python examples/find_anomalies.py --simulation --method isolation-forest

Everything is real: measurements of tumours (scikit-learn's breast cancer data). The model sees
benign ones only, is exported by skl2onnx, and then judges benign and malignant ones it never saw.
scikit-learn judges them as well, to compare.
"""

from __future__ import annotations

import numpy as np
import onnx
from connection import connect, options
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

METHODS = {
    "isolation-forest": lambda: IsolationForest(contamination=0.05, random_state=0),
    "local-outlier-factor": lambda: LocalOutlierFactor(novelty=True, contamination=0.05),
    "one-class-svm": lambda: OneClassSVM(nu=0.05, gamma=0.02),
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--method", choices=METHODS, default="isolation-forest")
    arguments = parser.parse_args()
    known, benign, malignant = measurements()
    trained = train(arguments.method, known)
    model = export(trained, known)
    asked = np.concatenate([benign, malignant])

    with connect(arguments) as client:
        client.models.upload(model.SerializeToString(), name="anomalies")
        outputs = client.infer("anomalies", {"X": asked})
        client.models.delete("anomalies")

    flagged = outputs["label"].ravel() == -1
    print(f"flagged {flagged[: len(benign)].sum()} of {len(benign)} benign")
    print(f"flagged {flagged[len(benign) :].sum()} of {len(malignant)} malignant")
    agree = (flagged == (trained.predict(asked) == -1)).mean()
    print(f"scikit-learn says the same of {agree:.1%}")


def measurements() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a model learns from, then benign and malignant tumours for it to judge: f32 [n, 30]."""
    measured, benign = load_breast_cancer(return_X_y=True)
    measured, benign = measured.astype(np.float32), benign.astype(bool)
    known, fresh = np.split(measured[benign], [250])
    return known, fresh, measured[~benign]


def train(method: str, known: np.ndarray) -> Pipeline:
    return make_pipeline(StandardScaler(), METHODS[method]()).fit(known)


def export(trained: Pipeline, known: np.ndarray) -> onnx.ModelProto:
    return to_onnx(trained, known[:1], target_opset={"": 17, "ai.onnx.ml": 3})


if __name__ == "__main__":
    main()
