"""Text classification by BERT or DistilBERT.

    python examples/classify_text.py --policy policy.toml --model sst2.onnx "A wonderful film."

classify_text.md exports a real model. The test models distilbert and bert_base have seeded random
weights, whose answer would mean nothing. For them there is --compare, which names no class, but
shows that the server computes what this process computes. What runs on real weights as it comes is
few_shot.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from compare import compare
from connection import INPUTS, connect, options
from tokenizers import Tokenizer

LONGEST = 512  # tokens that BERT takes


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("text", nargs="+")
    parser.add_argument("--model", type=Path, required=True)
    # The vocabulary of MiniLM is that of bert-base-uncased.
    parser.add_argument("--tokenizer", type=Path, default=INPUTS / "minilm_tokenizer.json")
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--compare", action="store_true", help="with this process; name nothing")
    arguments = parser.parse_args()

    with connect(arguments) as client:
        model = client.models.upload(arguments.model, name="classifier")
        wanted = [tensor.name for tensor in model.signature.inputs]
        # BERT is told where a second text begins; DistilBERT is not.
        made = tokens(arguments.tokenizer, arguments.text)
        inputs = {name: made[name] for name in wanted}
        outputs = client.infer("classifier", inputs)
        client.models.delete("classifier")

    if arguments.compare:
        compare(arguments.model, inputs, outputs)
        return
    for text, scores in zip(arguments.text, softmax(outputs["logits"])):
        best = int(scores.argmax())
        print(f"{arguments.labels[best]} {scores[best]:.3f}  {text}")


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
