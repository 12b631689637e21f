"""Speech to text by Wav2Vec2: sound in, letters out.

    python examples/wav2vec2.py --simulation testdata/models/inputs/hello_world.wav
    python examples/wav2vec2.py --policy policy.toml --model wav2vec2.onnx --microphone 5

Without --model it takes the test model, whose weights are seeded random, with a last layer fitted
to one recording: it has memorised that "hello world" and recognises nothing else. wav2vec2.md says
how to export the real one.
"""

from __future__ import annotations

import json
from pathlib import Path

import audio
import numpy as np
from compare import compare
from connection import INPUTS, built, connect, options

BLANK = 0  # the id that CTC puts between letters


def main() -> None:
    parser = options(__doc__)
    audio.add_options(parser)
    parser.add_argument("--model", type=Path, default=built("wav2vec2_base_logits"))
    parser.add_argument("--vocabulary", type=Path, default=INPUTS / "wav2vec2_vocab.json")
    parser.add_argument("--compare", action="store_true", help="with the model in this process")
    arguments = parser.parse_args()
    vocabulary = json.loads(arguments.vocabulary.read_text())
    letters = {number: letter for letter, number in vocabulary.items()}
    clips = audio.clips(arguments)

    with connect(arguments) as client:
        model = client.models.upload(arguments.model, name="wav2vec2")
        (sound,) = model.signature.inputs
        for name, samples in clips.items():
            inputs = {sound.name: normalised(samples)}
            outputs = client.infer("wav2vec2", inputs)
            (answer,) = outputs.values()
            # Some exports end in scores of each letter, others in the best letter's number.
            ids = answer if answer.dtype.kind == "i" else answer.argmax(axis=-1)
            print(f"{name}: {text_of(ids[0], letters)}")
            if arguments.compare:
                compare(arguments.model, inputs, outputs)
        client.models.delete("wav2vec2")


def normalised(samples: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance, f32 [1, samples], as in the training."""
    return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))[None].astype(np.float32)


def text_of(ids: np.ndarray, letters: dict[int, str]) -> str:
    """Greedy CTC: what stays the same is one letter, what is blank is none."""
    changed = np.flatnonzero(np.diff(ids, prepend=-1))
    text = "".join(letters[i] for i in ids[changed].tolist() if i != BLANK)
    return text.replace("|", " ").strip()


if __name__ == "__main__":
    main()
