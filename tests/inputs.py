"""What goes into the test models: sound, text, bytes and pictures, as each model wants them."""

from __future__ import annotations

import json
import wave
from functools import lru_cache
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from tokenizers import Tokenizer

from tools import models

FOLDER = models.TESTDATA / "inputs"
RATE = 16000


def speech() -> np.ndarray:
    """The spoken "hello world": f32 [samples] at 16 kHz, between -1 and 1."""
    with wave.open(str(FOLDER / "hello_world_16k.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / 32768


def normalised_speech() -> np.ndarray:
    """The speech with zero mean and unit variance, f32 [1, samples], as wav2vec2 wants it."""
    samples = speech()
    return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))[None].astype(np.float32)


def padded_speech(samples: int) -> np.ndarray:
    """The speech followed by silence, f32 [1, samples]."""
    padded = np.zeros((1, samples), np.float32)
    padded[0, : speech().size] = speech()
    return padded


def ctc_text(ids: np.ndarray) -> str:
    """The text of greedy CTC ids: repeats merged, blanks dropped."""
    letters = {i: c for c, i in json.loads((FOLDER / "wav2vec2_vocab.json").read_text()).items()}
    ids = np.asarray(ids).ravel()
    kept = [i for n, i in enumerate(ids) if i != 0 and (n == 0 or i != ids[n - 1])]
    return "".join(letters[int(i)] for i in kept).replace("|", " ").strip()


def whisper_text(ids: list[int]) -> str:
    """The text of Whisper's ids."""
    return tokenizer("whisper_tiny_en").decode([int(i) for i in ids], skip_special_tokens=True)


@lru_cache
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / f"{name}_tokenizer.json"))


def sentences(*texts: str) -> dict[str, np.ndarray]:
    """BERT's three inputs, padded to the longest text."""
    minilm = tokenizer("minilm")
    minilm.enable_padding()
    encoded = minilm.encode_batch(list(texts))
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        "token_type_ids": np.array([e.type_ids for e in encoded], np.int64),
    }


def tokens(batch: int, length: int, *, types: bool) -> dict[str, np.ndarray]:
    """Seeded token ids; the second half of the last row is padding."""
    ids = np.random.RandomState(1).randint(1000, 30000, (batch, length)).astype(np.int64)
    mask = np.ones_like(ids)
    mask[-1, length // 2 :] = 0
    made = {"input_ids": ids, "attention_mask": mask}
    return {**made, "token_type_ids": np.zeros_like(ids)} if types else made


def picture(*shape: int) -> np.ndarray:
    """Smooth seeded waves with a little noise, f32 around 0."""
    random = np.random.RandomState(2)
    rows, columns = np.mgrid[0 : shape[-2], 0 : shape[-1]] / 32
    waves = [np.sin(rows * (1 + c) + columns * (2 - c / 2)) for c in range(shape[-3])]
    return (np.broadcast_to(waves, shape) + 0.1 * random.standard_normal(shape)).astype(np.float32)


def magika_bytes(content: bytes) -> np.ndarray:
    """Beginning and end of a file, as Magika wants them: i32 [1, 2048], 256 for nothing."""
    content = content.strip()
    half = np.full((2, 1024), 256, np.int32)
    start, end = content[:1024], content[-1024:]
    half[0, : len(start)] = list(start)
    half[1, 1024 - len(end) :] = list(end)
    return half.reshape(1, 2048)


def magika_labels() -> list[str]:
    """The labels of Magika's output."""
    with ZipFile(models.fetch(models.MAGIKA)) as wheel:
        member = Path(models.MODELS["magika"].member).parent / "config.min.json"
        return json.loads(wheel.read(str(member)))["target_labels_space"]


def log_mel() -> np.ndarray:
    """Whisper's view of the speech: the log mel spectrum of 30 s, f32 [1, 80, 3000]."""
    size, hop, frames = 400, 160, 3000
    samples = np.pad(padded_speech(frames * hop)[0], size // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    starts = np.arange(frames) * hop
    spectrum = np.fft.rfft(samples[starts[:, None] + np.arange(size)] * window)
    mel = mel_filters(80, size) @ (np.abs(spectrum) ** 2).T
    log = np.log10(np.maximum(mel, 1e-10))
    log = np.maximum(log, log.max() - 8)
    return ((log + 4) / 4)[None].astype(np.float32)


def mel_filters(bands: int, size: int) -> np.ndarray:
    """Triangles of equal area on Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    step = np.log(6.4) / 27
    top = 15 + np.log(RATE / 2 / 1000) / step
    mels = np.linspace(0, top, bands + 2)
    hertz = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    bins = np.fft.rfftfreq(size, 1 / RATE)
    rising = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * (2 / (hertz[2:] - hertz[:-2]))[:, None]
