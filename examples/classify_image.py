"""What a picture shows, by a network trained on ImageNet: EfficientNet-Lite, ResNet, MobileNet.

    python tools/models.py build efficientnet_lite0 resnet50 mobilenet_v2
    python examples/classify_image.py --simulation testdata/models/inputs/coffee.jpg
    python examples/classify_image.py --simulation --torchvision --compare \\
        --model .cache/models/resnet50.onnx testdata/models/inputs/coffee.jpg

EfficientNet-Lite0, the default, has Google's real weights. The test models of ResNet and MobileNet
have seeded random ones, whose answer would mean nothing: --compare names no class, but shows that
the server computes what this process computes. classify_image.md exports real ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from compare import compare
from connection import INPUTS, built, connect, options
from PIL import Image

SIZE = 224
# What is subtracted and divided by, for pixels of 0..1; the second is torchvision's.
LITE = np.float32([[127 / 255] * 3, [128 / 255] * 3])
TORCHVISION = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("picture", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=built("efficientnet_lite0"))
    parser.add_argument("--torchvision", action="store_true", help="scale as torchvision does")
    parser.add_argument("--labels", type=Path, default=INPUTS / "imagenet_labels.txt")
    parser.add_argument("--compare", action="store_true", help="with this process; name nothing")
    arguments = parser.parse_args()
    labels = arguments.labels.read_text().splitlines()
    scaling = TORCHVISION if arguments.torchvision else LITE
    pictures = np.stack([pixels(path, *scaling) for path in arguments.picture])

    with connect(arguments) as client:
        model = client.models.upload(arguments.model, name="pictures")
        (images,) = model.signature.inputs
        outputs = client.infer("pictures", {images.name: pictures})
        client.models.delete("pictures")

    if arguments.compare:
        compare(arguments.model, {images.name: pictures}, outputs)
        return
    (scores,) = outputs.values()
    for path, row in zip(arguments.picture, probabilities(scores)):
        best = row.argsort()[::-1][:3]
        print(f"{path.name}: " + "; ".join(f"{labels[i]} {row[i]:.3f}" for i in best))


def pixels(path: Path, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The middle of a picture, f32 [3, 224, 224]."""
    picture = Image.open(path).convert("RGB")
    scale = 256 / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.BICUBIC)
    left, top = ((side - SIZE) // 2 for side in picture.size)
    picture = picture.crop((left, top, left + SIZE, top + SIZE))
    return ((np.asarray(picture, np.float32) / 255 - mean) / spread).transpose(2, 0, 1)


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Some exports end in probabilities, others in what becomes them."""
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    main()
