"""Text classification by BERT or DistilBERT.

    python tools/models.py build distilbert
    python examples/classify_text.py --simulation --compare "A wonderful film." "Two lost hours."

The weights of the test models are seeded random, so their answer means nothing; --compare shows
that the server computes what this process computes. classify_text.md exports a real one. What runs
on real weights is few_shot.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from compare import compare
from connection import INPUTS, built, connect, options
from tokenizers import Tokenizer

LONGEST = 512  # tokens that BERT takes


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("text", nargs="+")
    parser.add_argument("--model", type=Path, default=built("distilbert"))
    # The vocabulary of MiniLM is that of bert-base-uncased.
    parser.add_argument("--tokenizer", type=Path, default=INPUTS / "minilm_tokenizer.json")
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--compare", action="store_true", help="with the model in this process")
    arguments = parser.parse_args()

    with connect(arguments) as client:
        model = client.models.upload(arguments.model, name="classifier")
        wanted = [tensor.name for tensor in model.signature.inputs]
        # BERT is told where a second text begins; DistilBERT is not.
        inputs = {k: v for k, v in tokens(arguments.tokenizer, arguments.text).items() if k in wanted}
        outputs = client.infer("classifier", inputs)
        client.models.delete("classifier")

    for text, scores in zip(arguments.text, softmax(outputs["logits"])):
        best = int(scores.argmax())
        print(f"{arguments.labels[best]} {scores[best]:.3f}  {text}")
    if arguments.compare:
        compare(arguments.model, inputs, outputs)


def tokens(tokenizer_file: Path, texts: list[str]) -> dict[str, np.ndarray]:
    """The texts as numbers, i64 [texts, tokens], padded to the longest."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([text.ids for text in encoded]),
        "attention_mask": np.array([text.attention_mask for text in encoded]),
        "token_type_ids": np.array([text.type_ids for text in encoded]),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Scores as probabilities, row by row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    main()
