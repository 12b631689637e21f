"""Real and full-size models through the server give what the same library gives in process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import inputs
import numpy as np
import onnxruntime
import pytest

import blindai
from tools import models

Outputs = dict[str, np.ndarray]
Run = Callable[..., Outputs]
TOLERANCE = 1e-3


@pytest.fixture
def remote(client: blindai.Client) -> Iterator[Callable[[str], Run]]:
    """Uploads a model by its name and runs it on the server; deletes it at the end."""
    uploaded = []

    def upload(name: str) -> Run:
        client.models.upload(models.build(name), name=name)
        uploaded.append(name)
        return lambda **tensors: client.infer(name, tensors)

    yield upload
    for name in uploaded:
        client.models.delete(name)


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


def assert_equal(got: Outputs, want: Outputs) -> None:
    """Ids and labels exact; floats to a thousandth of the output's largest magnitude."""
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


def stored_answers(name: str) -> tuple[Outputs, Outputs]:
    """The inputs and outputs beside a small model."""
    with np.load(models.TESTDATA / "small" / f"{name}.npz") as stored:
        made = {key: stored[key] for key in stored.files}
    given = {key[3:]: array for key, array in made.items() if key.startswith("in_")}
    return given, {key[4:]: array for key, array in made.items() if key.startswith("out_")}


TABLE: dict[str, Callable[[], dict[str, np.ndarray]]] = {
    "wav2vec2_hello_world": lambda: {"onnx::Unsqueeze_0": inputs.normalised_speech()},
    "wav2vec2_base_logits": lambda: {"input_values": inputs.normalised_speech()},
    "whisper_tiny_en_audio2ids": lambda: {"audio": inputs.padded_speech(32000)},
    "whisper_tiny_en_encoder": lambda: {"input_features": inputs.log_mel()},
    "whisper_tiny_en_decoder": lambda: {
        "input_ids": np.array([[50257, 50362, 18435]]),
        "encoder_hidden_states": inputs.picture(1, 1500, 384),
    },
    "minilm_l6_v2_sentence_embedding": lambda: inputs.sentences("One.", "A longer sentence."),
    "distilbert": lambda: inputs.tokens(1, 128, types=False),
    "bert_base": lambda: inputs.tokens(2, 128, types=True),
    "resnet18": lambda: {"input": inputs.picture(2, 3, 224, 224)},
    "resnet50": lambda: {"input": inputs.picture(1, 3, 224, 224)},
    "mobilenet_v2": lambda: {"input": inputs.picture(2, 3, 224, 224)},
    "squeezenet": lambda: {"input": inputs.picture(1, 3, 224, 224)},
    "efficientnet_b0": lambda: {"input": inputs.picture(1, 3, 224, 224)},
    "efficientnet_lite0": lambda: {"images": inputs.picture(2, 3, 224, 224)},
    "face_resnet": lambda: {"faces": inputs.picture(2, 3, 150, 150)},
    "yolov5s": lambda: {"images": inputs.picture(1, 3, 640, 640)},
    "ppocr_v4_det": lambda: {"x": inputs.picture(1, 3, 320, 480)},
    "ppocr_v4_rec": lambda: {"x": inputs.picture(2, 3, 48, 320)},
    "ppocr_v2_cls": lambda: {"x": inputs.picture(3, 3, 48, 192)},
    "magika": lambda: {"bytes": inputs.magika_bytes(b"#!/bin/sh\necho hello\n" * 20)},
    "silero_vad": lambda: {
        "input": inputs.padded_speech(32000)[:, 3000:3576],
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(inputs.RATE),
    },
    "cnn2d_digits": lambda: stored_answers("cnn2d_digits")[0],
    "tab_digits_mlp": lambda: stored_answers("tab_digits_mlp")[0],
    "tab_iris_lightgbm": lambda: stored_answers("tab_iris_lightgbm")[0],
    "tab_iris_rf": lambda: stored_answers("tab_iris_rf")[0],
}


def test_the_table_is_complete():
    assert TABLE.keys() == models.MODELS.keys()


@pytest.mark.parametrize("name", TABLE)
def test_the_server_agrees_with_the_library(name: str, remote: Callable[[str], Run]):
    tensors = TABLE[name]()
    want = local(name)(**tensors)
    got = remote(name)(**tensors)
    assert_equal(got, want)
    assert_known_answer(name, tensors, got)


def assert_known_answer(name: str, given: dict[str, Any], got: Outputs) -> None:
    """What some models must answer, whatever the library says."""
    if name == "wav2vec2_hello_world":
        assert inputs.ctc_text(got["1626"]) == "HELLO WORLD"
    elif name == "wav2vec2_base_logits":
        assert inputs.ctc_text(got["output"].argmax(-1)) == "HELLO WORLD"
    elif name == "whisper_tiny_en_audio2ids":
        ids = got["token_ids"][0].tolist()
        assert ids[:4] == [18435, 995, 13, 50256]
        assert inputs.whisper_text(ids[:3]) == " Hello world."
    elif name == "yolov5s":
        assert got["output0"][0, :, 4:].min() >= 0
        assert got["output0"][0, :, 4:].max() <= 1
    elif name == "magika":
        assert inputs.magika_labels()[got["target_label"][0].argmax()] == "shell"
    elif name == "cnn2d_digits" or name.startswith("tab_"):
        assert_equal(got, stored_answers(name)[1])


def test_minilm_knows_what_is_alike(remote: Callable[[str], Run]):
    run = remote("minilm_l6_v2_sentence_embedding")
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "A monkey plays drums."]
    embeddings = run(**inputs.sentences(*texts))["sentence_embedding"]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert embeddings[0] @ embeddings[1] == pytest.approx(0.7553, abs=5e-4)
    assert embeddings[0] @ embeddings[2] < 0.2


def test_whisper_decoded_greedily_by_the_client(remote: Callable[[str], Run]):
    encode, decode = remote("whisper_tiny_en_encoder"), remote("whisper_tiny_en_decoder")
    hidden = encode(input_features=inputs.log_mel())["last_hidden_state"]
    ids = [50257, 50362]
    while ids[-1] != 50256 and len(ids) < 12:
        step = decode(input_ids=np.array([ids]), encoder_hidden_states=hidden)
        ids.append(int(step["logits"][0, -1].argmax()))
    assert inputs.whisper_text(ids[2:]) == " Hello world."


def test_silero_finds_speech_with_the_state_carried_by_the_client(remote: Callable[[str], Run]):
    got = voice_probabilities(remote("silero_vad"))
    want = voice_probabilities(local("silero_vad"))
    np.testing.assert_allclose(got, want, atol=TOLERANCE)
    assert max(got[:30]) > 0.9
    assert max(got[-10:]) < 0.5


def voice_probabilities(run: Run) -> list[float]:
    """How likely each 32 ms of the speech, and of one second of silence after it, is a voice."""
    chunk, context = 512, 64
    samples = np.concatenate([np.zeros(context, np.float32), inputs.padded_speech(48128)[0]])
    state = np.zeros((2, 1, 128), np.float32)
    found = []
    for start in range(0, samples.size - context, chunk):
        window = samples[None, start : start + context + chunk]
        answer = run(input=window, state=state, sr=np.array(inputs.RATE))
        state = answer["stateN"]
        found.append(float(answer["output"][0, 0]))
    return found
