"""Sound for the speech models: a file or the microphone, as mono samples at 16 kHz."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000  # what Wav2Vec2 and Whisper were trained on


def add_options(parser: argparse.ArgumentParser) -> None:
    """Files, or seconds of the microphone."""
    parser.add_argument("sound", nargs="*", type=Path, help="wav, mp3, flac or ogg")
    parser.add_argument("--microphone", type=float, metavar="SECONDS", help="record this long")


def clips(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """The samples of each file, and of what was recorded, by name."""
    if not arguments.sound and not arguments.microphone:
        sys.exit("nothing to hear: name a file, or pass --microphone SECONDS")
    heard = {path.name: read(path) for path in arguments.sound}
    if arguments.microphone:
        heard["microphone"] = record(arguments.microphone)
    return heard


def read(path: Path) -> np.ndarray:
    """A file's samples, f32 in -1..1. What counts is the content, not the file's name."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(samples.mean(axis=1), rate)


def record(seconds: float) -> np.ndarray:
    """What the default microphone hears, f32 in -1..1."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        sys.exit(
            f"no microphone: {error}. It needs `pip install sounddevice`, "
            "and PortAudio (Debian: libportaudio2)"
        )
    print(f"listening for {seconds:g} s", flush=True)
    heard = sounddevice.rec(
        int(seconds * RATE), samplerate=RATE, channels=1, dtype="float32", blocking=True
    )
    return heard[:, 0]


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples at 16 kHz: the spectrum is cut, or continued with silence."""
    if rate == RATE or not samples.size:
        return samples
    size = round(samples.size * RATE / rate)
    spectrum = np.fft.rfft(samples)[: size // 2 + 1]
    return (np.fft.irfft(spectrum, size) * size / samples.size).astype(np.float32)
