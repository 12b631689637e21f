"""Speech to text by Whisper: up to 30 seconds of sound in, a sentence out.

    python tools/models.py build whisper_tiny_en_encoder whisper_tiny_en_decoder
    python examples/whisper.py --simulation testdata/models/inputs/hello_world.wav
    python examples/whisper.py --policy policy.toml --microphone 5

The weights are real: OpenAI's Whisper tiny.en. Server and client take turns: the encoder hears the
sound once, then the decoder is asked for one token after the other. The sound, the tokens and the
models are seen by nobody but the two ends of the channel; how many tokens there were shows in the
number of messages.
"""

from __future__ import annotations

from pathlib import Path

import audio
import numpy as np
from connection import INPUTS, built, connect, options
from tokenizers import Tokenizer

START, NO_TIMESTAMPS, END = 50_257, 50_362, 50_256
MOST_TOKENS = 224
WINDOW, HOP, FRAMES, BANDS = 400, 160, 3000, 80  # 25 ms, every 10 ms, for 30 s


def main() -> None:
    parser = options(__doc__)
    audio.add_options(parser)
    parser.add_argument("--encoder", type=Path, default=built("whisper_tiny_en_encoder"))
    parser.add_argument("--decoder", type=Path, default=built("whisper_tiny_en_decoder"))
    parser.add_argument("--tokenizer", type=Path, default=INPUTS / "whisper_tiny_en_tokenizer.json")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    clips = audio.clips(arguments)

    with connect(arguments) as client:
        client.models.upload(arguments.encoder, name="whisper-encoder")
        client.models.upload(arguments.decoder, name="whisper-decoder")
        for name, samples in clips.items():
            features = {"input_features": log_mel(samples)}
            hidden = client.infer("whisper-encoder", features)["last_hidden_state"]
            ids = [START, NO_TIMESTAMPS]
            while ids[-1] != END and len(ids) < MOST_TOKENS:
                step = {"input_ids": np.array([ids]), "encoder_hidden_states": hidden}
                logits = client.infer("whisper-decoder", step)["logits"]
                ids.append(int(logits[0, -1].argmax()))
            print(f"{name}: {tokenizer.decode(ids, skip_special_tokens=True).strip()}")
        client.models.delete("whisper-encoder")
        client.models.delete("whisper-decoder")


def log_mel(samples: np.ndarray) -> np.ndarray:
    """The loudness of 80 pitches over 30 seconds, f32 [1, 80, 3000], as in the training."""
    if samples.size > FRAMES * HOP:
        raise SystemExit("Whisper hears 30 seconds at a time: cut the recording")
    sound = np.pad(samples, (0, FRAMES * HOP - samples.size))
    sound = np.pad(sound, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP][:FRAMES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    log = np.log10(np.maximum(mel_filters() @ power.T, 1e-10))
    return ((np.maximum(log, log.max() - 8) + 4) / 4)[None].astype(np.float32)


def mel_filters() -> np.ndarray:
    """Triangles of equal area on Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    step = np.log(6.4) / 27
    mels = np.linspace(0, 15 + np.log(audio.RATE / 2000) / step, BANDS + 2)
    hertz = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    low, middle, high = (hertz[i : i + BANDS, None] for i in range(3))
    bins = np.fft.rfftfreq(WINDOW, 1 / audio.RATE)
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)


if __name__ == "__main__":
    main()
