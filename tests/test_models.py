"""Real and full-size models through the server give what the same library gives in process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import inputs
import numpy as np
import pytest
from answers import CASES, TOLERANCE, Run, assert_equal, local

import blindai
from tools import models


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


def test_the_tables_are_complete():
    assert CASES.keys() == models.MODELS.keys() == models.ORIGINS.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_server_agrees_with_the_library(name: str, remote: Callable[[str], Run]):
    case = CASES[name]
    tensors = case.given()
    want = local(name)(**tensors)
    got = remote(name)(**tensors)
    assert_equal(got, want)
    case.known(tensors, got)


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
