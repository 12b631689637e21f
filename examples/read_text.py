"""Text in a picture (OCR), by PP-OCRv4: one model finds the lines, another reads them.

    python tools/models.py build ppocr_v4_det ppocr_v4_rec
    python examples/read_text.py --simulation testdata/models/inputs/page.png

The weights are real: PaddleOCR's, for Chinese and English. This script takes lines to be level;
slanted ones need the rotated boxes of PaddleOCR itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from connection import built, connect, options
from PIL import Image
from scipy import ndimage

LARGEST = 1280  # pixels of the longer side that are looked at
LIKELY, SURE = 0.3, 0.6  # of a pixel to be text, and of a line on average
GROW = 1.5  # lines are found thinner than they are
HEIGHT = 48  # of a line that is read
MEAN, SPREAD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--detector", type=Path, default=built("ppocr_v4_det"))
    parser.add_argument("--reader", type=Path, default=built("ppocr_v4_rec"))
    arguments = parser.parse_args()
    picture = Image.open(arguments.picture).convert("RGB")
    letters = alphabet(arguments.reader)

    with connect(arguments) as client:
        client.models.upload(arguments.detector, name="ocr-detector")
        client.models.upload(arguments.reader, name="ocr-reader")
        (text_map,) = client.infer("ocr-detector", {"x": whole(picture)}).values()
        for box in lines(text_map[0, 0], picture.size):
            (scores,) = client.infer("ocr-reader", {"x": strip(picture.crop(box))}).values()
            print(text_of(scores[0], letters))
        client.models.delete("ocr-detector")
        client.models.delete("ocr-reader")


def whole(picture: Image.Image) -> np.ndarray:
    """The picture for the detector, f32 [1, 3, height, width]: sides are multiples of 32."""
    scale = min(1.0, LARGEST / max(picture.size))
    size = [max(32, round(side * scale / 32) * 32) for side in picture.size]
    pixels = np.asarray(picture.resize(size, Image.BILINEAR), np.float32)[..., ::-1] / 255
    return ((pixels - MEAN) / SPREAD).transpose(2, 0, 1)[None]


def lines(likely: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """The corners of each line of text in the picture, from the top."""
    scale = np.array(size) / likely.shape[::-1]
    areas, _ = ndimage.label(likely > LIKELY)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(areas), 1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        inside = areas[rows, columns] == number
        if min(height, width) < 3 or likely[rows, columns][inside].mean() < SURE:
            continue
        grow = GROW * height * width / (2 * (height + width))
        corners = [columns.start - grow, rows.start - grow, columns.stop + grow, rows.stop + grow]
        corners = (np.array(corners) * np.tile(scale, 2)).clip(0, np.tile(size, 2))
        found.append(tuple(corners.round().astype(int).tolist()))
    return sorted(found, key=lambda box: (box[1], box[0]))


def strip(line: Image.Image) -> np.ndarray:
    """A line for the reader, f32 [1, 3, 48, width] in -1..1."""
    width = max(1, round(line.width * HEIGHT / line.height))
    pixels = np.asarray(line.resize((width, HEIGHT), Image.BILINEAR), np.float32)[..., ::-1]
    return (pixels / 127.5 - 1).transpose(2, 0, 1)[None]


def alphabet(reader: Path) -> list[str]:
    """The letters that the reader knows, which stand in its file; the first is none."""
    properties = {entry.key: entry.value for entry in onnx.load(reader).metadata_props}
    return ["", *properties["character"].split("\n"), " "]


def text_of(scores: np.ndarray, letters: list[str]) -> str:
    """Greedy CTC: what stays the same is one letter, what is blank is none."""
    ids = scores.argmax(axis=1)
    return "".join(letters[i] for i in ids[np.flatnonzero(np.diff(ids, prepend=-1))])


if __name__ == "__main__":
    main()
