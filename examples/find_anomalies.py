"""What does not belong, by a model that scikit-learn trained here and the server runs.

    python examples/find_anomalies.py --simulation --method isolation-forest

Everything is real: measurements of tumours (scikit-learn's breast cancer data). The model sees
benign ones only, is exported by skl2onnx, and then judges benign and malignant ones it never saw.
scikit-learn judges them as well, to compare.
"""

from __future__ import annotations

import numpy as np
from connection import connect, options
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
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
    measured, benign = load_breast_cancer(return_X_y=True)
    measured, benign = measured.astype(np.float32), benign.astype(bool)
    known, fresh = np.split(measured[benign], [250])
    asked = np.concatenate([fresh, measured[~benign]])

    trained = make_pipeline(StandardScaler(), METHODS[arguments.method]()).fit(known)
    model = to_onnx(trained, known[:1], target_opset={"": 17, "ai.onnx.ml": 3})

    with connect(arguments) as client:
        client.models.upload(model.SerializeToString(), name="anomalies")
        outputs = client.infer("anomalies", {"X": asked})
        client.models.delete("anomalies")

    flagged = outputs["label"].ravel() == -1
    print(f"flagged {flagged[: len(fresh)].sum()} of {len(fresh)} benign")
    print(f"flagged {flagged[len(fresh) :].sum()} of {len(asked) - len(fresh)} malignant")
    agree = (flagged == (trained.predict(asked) == -1)).mean()
    print(f"scikit-learn says the same of {agree:.1%}")


if __name__ == "__main__":
    main()
