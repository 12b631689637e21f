"""Objects in a picture, by YOLOv5, with boxes drawn around them.

    python tools/models.py build yolov5s
    python examples/detect_objects.py --simulation --compare testdata/models/inputs/coffee.jpg

The test model is written from the published architecture, with seeded random weights: its boxes lie
anywhere. It shows the mechanics, and --compare that they are computed rightly. The real weights are
AGPL-3.0 and no part of this project; detect_objects.md says how to export and use them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from compare import compare
from connection import built, connect, options
from PIL import Image, ImageDraw

SIZE = 640
GREY = 114
CANDIDATES = 1000  # the best boxes, among which rivals are looked for
OVERLAP = 0.45  # boxes of one class that share more than this show the same thing


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--output", type=Path, default=Path("detected.png"))
    parser.add_argument("--model", type=Path, default=built("yolov5s"))
    parser.add_argument("--labels", type=Path, help="a file with the name of each class per line")
    parser.add_argument("--threshold", type=float, default=0.25, help="the least score shown")
    parser.add_argument("--most", type=int, default=20, help="the most boxes shown")
    parser.add_argument("--compare", action="store_true", help="with the model in this process")
    arguments = parser.parse_args()
    picture = Image.open(arguments.picture).convert("RGB")
    inputs = {"images": letterbox(picture)}

    with connect(arguments) as client:
        client.models.upload(arguments.model, name="detector")
        outputs = client.infer("detector", inputs)
        client.models.delete("detector")

    boxes, scores, classes = detections(outputs["output0"][0], arguments.threshold)
    boxes = (boxes * max(picture.size) / SIZE).clip(0, np.tile(picture.size, 2))
    names = arguments.labels.read_text().splitlines() if arguments.labels else None
    pen = ImageDraw.Draw(picture)
    for i in range(min(len(boxes), arguments.most)):
        name = names[classes[i]] if names else f"class {classes[i]}"
        left, top, right, bottom = boxes[i].round().astype(int).tolist()
        print(f"{name} {scores[i]:.2f} at {left},{top} to {right},{bottom}")
        pen.rectangle((left, top, right, bottom), outline="red", width=3)
        pen.text((left + 5, top + 4), name, fill="red")
    picture.save(arguments.output)
    print(f"drawn into {arguments.output}")
    if arguments.compare:
        compare(arguments.model, inputs, outputs)


def letterbox(picture: Image.Image) -> np.ndarray:
    """The picture in the upper left of a grey square, f32 [1, 3, 640, 640] in 0..1."""
    scale = SIZE / max(picture.size)
    square = Image.new("RGB", (SIZE, SIZE), (GREY,) * 3)
    square.paste(picture.resize([max(1, round(side * scale)) for side in picture.size]))
    return np.asarray(square, np.float32).transpose(2, 0, 1)[None] / 255


def detections(rows: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners, scores and classes of what stays, the best first.

    A row is centre, width and height in pixels, then how likely there is anything, then how likely
    it is of each class.
    """
    classes = rows[:, 5:].argmax(axis=1)
    scores = rows[:, 4] * rows[:, 5:].max(axis=1)
    order = [i for i in scores.argsort()[::-1][:CANDIDATES] if scores[i] >= threshold]
    half = rows[:, 2:4] / 2
    corners = np.hstack([rows[:, :2] - half, rows[:, :2] + half])
    kept: list[int] = []
    for i in order:
        rivals = [j for j in kept if classes[j] == classes[i]]
        if not rivals or shared(corners[i], corners[rivals]).max() <= OVERLAP:
            kept.append(i)
    return corners[kept], scores[kept], classes[kept]


def shared(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How much a box and each of the others have in common, of what they cover together."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = sides.clip(0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return common / ((box[2:] - box[:2]).prod() + areas - common)


if __name__ == "__main__":
    main()
