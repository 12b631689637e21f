"""What goes into each test model, and what must come out, whatever engine computes it.

The tests hold servers to it, and so does `make bench`, which writes docs/models.md.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import inputs
import numpy as np
import onnxruntime
from PIL import Image, ImageEnhance, ImageOps

from tools import models

sys.path.append(str(models.TOOLS.parent / "examples"))

import classify_image
import compare_faces
import covid_net
import find_anomalies
import read_text

Tensors = dict[str, np.ndarray]
Run = Callable[..., Tensors]
# Of floats, to the largest magnitude of their output; ids and labels are equal or not.
TOLERANCE = 1e-3
# Whisper's beginning of a text in English without times, its end, and " Hello", " world", ".".
BEGIN, END, HELLO_WORLD = [50257, 50362], 50256, [18435, 995, 13]
# How alike two sentences are must not move by more.
ALIKE, APART = 0.7553, 5e-4


def nothing(_given: Tensors, _got: Tensors) -> str:
    """Random weights mean nothing: there is no answer but the library's."""
    return ""


@dataclass(frozen=True)
class Case:
    """What goes into a model. `known` fails unless the model answers what it must answer, whatever
    the library says, and says in words what that is."""

    given: Callable[[], Tensors]
    known: Callable[[Tensors, Tensors], str] = nothing


def local(name: str) -> Run:
    """Runs a model in this process, by the same library with the same threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        models.build(name), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda **tensors: dict(zip(names, session.run(None, tensors)))


def assert_equal(got: Tensors, want: Tensors) -> None:
    """Ids and labels exact; floats within the tolerance."""
    assert list(got) == list(want)
    for name, expected in want.items():
        actual = got[name]
        assert actual.dtype == expected.dtype, name
        assert actual.shape == expected.shape, name
        if expected.dtype.kind == "f":
            scale = np.abs(expected).max(initial=0)
            np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * scale)
        else:
            np.testing.assert_array_equal(actual, expected)


def distance(got: Tensors, want: Tensors) -> float:
    """How far floats are apart, to the largest magnitude of their output."""
    floats = [(got[name], array) for name, array in want.items() if array.dtype.kind == "f"]
    apart = [np.abs(a - b).max(initial=0) / (np.abs(b).max(initial=0) or 1) for a, b in floats]
    return float(max(apart, default=0))


# Speech


def hears_hello_world(output: str) -> Callable[[Tensors, Tensors], str]:
    def known(_given: Tensors, got: Tensors) -> str:
        ids = got[output] if got[output].dtype.kind == "i" else got[output].argmax(-1)
        return reads(inputs.ctc_text(ids), "HELLO WORLD")

    return known


def whisper_hears(_given: Tensors, got: Tensors) -> str:
    ids = got["token_ids"][0].tolist()
    assert ids[:4] == [*HELLO_WORLD, END]
    return reads(inputs.whisper_text(ids[:3]), " Hello world.")


def whisper_encodes(_given: Tensors, got: Tensors) -> str:
    """What was heard is seen by what the decoder makes of it."""
    decode = local("whisper_tiny_en_decoder")
    return continues(decode(**begun(got["last_hidden_state"])))


def whisper_decodes(_given: Tensors, got: Tensors) -> str:
    return continues(got)


def begun(hidden: np.ndarray) -> Tensors:
    """A text that begins with Hello."""
    return {"input_ids": np.array([[*BEGIN, HELLO_WORLD[0]]]), "encoder_hidden_states": hidden}


def continues(decoded: Tensors) -> str:
    found = inputs.whisper_text([decoded["logits"][0, -1].argmax()])
    assert found == " world", found
    return "after “Hello” comes “world”"


@lru_cache
def heard() -> np.ndarray:
    """The speech as Whisper's encoder gives it to the decoder."""
    return local("whisper_tiny_en_encoder")(input_features=inputs.log_mel())["last_hidden_state"]


def finds_a_voice(_given: Tensors, got: Tensors) -> str:
    assert got["output"][0, 0] > 0.5, got["output"]
    return "takes a voice for one, by more than 0.5"


# Text and bytes


def knows_what_is_alike(_given: Tensors, got: Tensors) -> str:
    embeddings = got["sentence_embedding"]
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    alike, other = embeddings[0] @ embeddings[1], embeddings[0] @ embeddings[2]
    assert abs(alike - ALIKE) < APART, alike
    assert other < 0.2, other
    return f"two sentences are alike by {ALIKE} ± {APART}, two others by less than 0.2"


def names_the_file(_given: Tensors, got: Tensors) -> str:
    found = inputs.magika_labels()[got["target_label"][0].argmax()]
    assert found == "shell", found
    return "takes a shell script for one"


# Pictures


def coffee_and_cat() -> Tensors:
    pictures = [inputs.FOLDER / name for name in ("coffee.jpg", "chelsea.jpg")]
    return {"images": np.stack([classify_image.pixels(p, *classify_image.LITE) for p in pictures])}


def sees_coffee_and_cat(_given: Tensors, got: Tensors) -> str:
    labels = (inputs.FOLDER / "imagenet_labels.txt").read_text().splitlines()
    (scores,) = got.values()
    coffee, cat = (labels[i] for i in scores.argmax(axis=1))
    assert coffee == "espresso", coffee
    assert cat in ("tiger cat", "Egyptian cat", "tabby"), cat
    return "sees an espresso and a cat"


def faces() -> Tensors:
    """A face, the same mirrored, darker and smaller, and a cat."""
    with Image.open(inputs.FOLDER / "astronaut_face.png") as face:
        darker = ImageEnhance.Brightness(face).enhance(0.6)
        pictures = [face.copy(), ImageOps.mirror(darker).resize((64, 64))]
    with Image.open(inputs.FOLDER / "chelsea.jpg") as cat:
        pictures.append(cat.crop((110, 10, 330, 230)))
    return {"faces": np.stack([compare_faces.pixels(as_file(picture)) for picture in pictures])}


def as_file(picture: Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, "png")
    return file


def knows_the_face(_given: Tensors, got: Tensors) -> str:
    vectors = got["descriptors"]
    same, other = np.linalg.norm(vectors[1:] - vectors[0], axis=1)
    assert same < compare_faces.SAME < other, (same, other)
    return "knows a face again, and takes a cat for another"


def probabilities(_given: Tensors, got: Tensors) -> str:
    found = got["output0"][0, :, 4:]
    assert found.min() >= 0
    assert found.max() <= 1
    return "gives probabilities from 0 to 1"


@lru_cache
def page() -> Image.Image:
    with Image.open(inputs.FOLDER / "page.png") as picture:
        return picture.convert("RGB")


@lru_cache
def first_line() -> Image.Image:
    (text_map,) = local("ppocr_v4_det")(x=read_text.whole(page())).values()
    return page().crop(read_text.lines(text_map[0, 0], page().size)[0])


def finds_the_lines(_given: Tensors, got: Tensors) -> str:
    (text_map,) = got.values()
    found = len(read_text.lines(text_map[0, 0], page().size))
    assert found == LINES, found
    return f"finds the {LINES} lines of a page"


def reads_the_line(_given: Tensors, got: Tensors) -> str:
    (scores,) = got.values()
    letters = read_text.alphabet(models.build("ppocr_v4_rec"))
    return reads(read_text.text_of(scores[0], letters), "Region-based segmentation")


def turned() -> Tensors:
    """A line of text, and the same upside down."""
    line = first_line().resize((192, 48))
    return {"x": np.concatenate([read_text.strip(side) for side in (line, line.rotate(180))])}


def tells_what_is_turned(_given: Tensors, got: Tensors) -> str:
    (scores,) = got.values()
    assert scores.argmax(axis=1).tolist() == [0, 1], scores
    return "tells a line from the same line upside down"


# Tables


def stored_answers(name: str) -> tuple[Tensors, Tensors]:
    """The inputs and outputs beside a small model."""
    with np.load(models.TESTDATA / "small" / f"{name}.npz") as stored:
        made = {key: stored[key] for key in stored.files}
    given = {key[3:]: array for key, array in made.items() if key.startswith("in_")}
    return given, {key[4:]: array for key, array in made.items() if key.startswith("out_")}


def stored(name: str) -> Case:
    def known(_given: Tensors, got: Tensors) -> str:
        want = stored_answers(name)[1]
        assert_equal(got, want)
        return f"gives the answers stored with it, {len(next(iter(want.values())))} rows"

    return Case(lambda: stored_answers(name)[0], known)


def tumours(method: str) -> Case:
    def given() -> Tensors:
        return {"X": np.concatenate(find_anomalies.measurements()[1:])}

    def known(given: Tensors, got: Tensors) -> str:
        learned, benign, _ = find_anomalies.measurements()
        flagged = got["label"].ravel() == -1
        assert flagged[: len(benign)].mean() < 0.2
        assert flagged[len(benign) :].mean() > 0.7
        trained = find_anomalies.train(method, learned)
        # One that lies on the border may fall to either side in single precision.
        assert (flagged == (trained.predict(given["X"]) == -1)).mean() > 0.99
        return f"says of {len(flagged)} tumours what scikit-learn says, of 99 % or more"

    return Case(given, known)


def reads_digits(_given: Tensors, got: Tensors) -> str:
    digits = covid_net.unseen()[1]
    right = (got["scores"].argmax(axis=1) == digits).sum()
    assert right > 175, right
    return f"tells more than 175 of {len(digits)} digits rightly"


def reads(found: str, expected: str) -> str:
    assert found == expected, found
    return f"reads “{expected.strip()}”"


LINES = 7
SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "A monkey plays drums.",
    "The train to the coast leaves in the morning.",
    "One.",
)

CASES: dict[str, Case] = {
    "wav2vec2_hello_world": Case(
        lambda: {"onnx::Unsqueeze_0": inputs.normalised_speech()}, hears_hello_world("1626")
    ),
    "wav2vec2_base_logits": Case(
        lambda: {"input_values": inputs.normalised_speech()}, hears_hello_world("output")
    ),
    "whisper_tiny_en_audio2ids": Case(
        lambda: {"audio": inputs.padded_speech(32000)}, whisper_hears
    ),
    "whisper_tiny_en_encoder": Case(lambda: {"input_features": inputs.log_mel()}, whisper_encodes),
    "whisper_tiny_en_decoder": Case(lambda: begun(heard()), whisper_decodes),
    "minilm_l6_v2_sentence_embedding": Case(
        lambda: inputs.sentences(*SENTENCES), knows_what_is_alike
    ),
    "distilbert": Case(lambda: inputs.tokens(1, 128, types=False)),
    "bert_base": Case(lambda: inputs.tokens(2, 128, types=True)),
    "resnet18": Case(lambda: {"input": inputs.picture(2, 3, 224, 224)}),
    "resnet50": Case(lambda: {"input": inputs.picture(1, 3, 224, 224)}),
    "mobilenet_v2": Case(lambda: {"input": inputs.picture(1, 3, 224, 224)}),
    "squeezenet": Case(lambda: {"input": inputs.picture(1, 3, 224, 224)}),
    "efficientnet_b0": Case(lambda: {"input": inputs.picture(1, 3, 224, 224)}),
    "efficientnet_lite0": Case(coffee_and_cat, sees_coffee_and_cat),
    "face_resnet": Case(faces, knows_the_face),
    "yolov5s": Case(lambda: {"images": inputs.picture(1, 3, 640, 640)}, probabilities),
    "ppocr_v4_det": Case(lambda: {"x": read_text.whole(page())}, finds_the_lines),
    "ppocr_v4_rec": Case(lambda: {"x": read_text.strip(first_line())}, reads_the_line),
    "ppocr_v2_cls": Case(turned, tells_what_is_turned),
    "magika": Case(
        lambda: {"bytes": inputs.magika_bytes(b"#!/bin/sh\necho hello\n" * 20)}, names_the_file
    ),
    "silero_vad": Case(
        lambda: {
            "input": inputs.padded_speech(32000)[:, 3000:3576],
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(inputs.RATE),
        },
        finds_a_voice,
    ),
    "cnn2d_digits": stored("cnn2d_digits"),
    "tab_digits_mlp": stored("tab_digits_mlp"),
    "tab_iris_lightgbm": stored("tab_iris_lightgbm"),
    "tab_iris_rf": stored("tab_iris_rf"),
    "isolation_forest": tumours("isolation-forest"),
    "local_outlier_factor": tumours("local-outlier-factor"),
    "one_class_svm": tumours("one-class-svm"),
    "covid_net": Case(lambda: {"pictures": covid_net.unseen()[0]}, reads_digits),
}
