"""Whether two pictures show one face: a vector for each, and how far they lie apart.

    python tools/models.py build face_resnet
    python examples/compare_faces.py --simulation one.png other.png

The weights are real: the face network of dlib. Each picture must show one face, upright, from the
front, that fills it; finding and straightening faces is a model of its own. A face is among the
most personal of data: the server must be one that was verified.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from connection import built, connect, options
from PIL import Image

SIZE = 150
MEAN = np.float32([122.782, 117.001, 104.298])
SAME = 0.6  # faces of one person lie closer, says the training


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("picture", nargs="+", type=Path, help="the first is held against the rest")
    parser.add_argument("--model", type=Path, default=built("face_resnet"))
    arguments = parser.parse_args()
    if len(arguments.picture) < 2:
        parser.error("it takes two pictures or more")
    faces = np.stack([pixels(path) for path in arguments.picture])

    with connect(arguments) as client:
        client.models.upload(arguments.model, name="faces")
        vectors = client.infer("faces", {"faces": faces})["descriptors"]
        client.models.delete("faces")

    distances = np.linalg.norm(vectors[1:] - vectors[0], axis=1)
    for path, distance in zip(arguments.picture[1:], distances):
        verdict = "same" if distance < SAME else "different"
        print(f"{arguments.picture[0].name} and {path.name}: {verdict}, distance {distance:.2f}")


def pixels(path: Path) -> np.ndarray:
    """A face, f32 [3, 150, 150], around 0."""
    picture = Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.BICUBIC)
    return ((np.asarray(picture, np.float32) - MEAN) / 255).transpose(2, 0, 1)


if __name__ == "__main__":
    main()
