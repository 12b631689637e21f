"""Text classification by a BERT with real weights, learned from a dozen examples.

    python tools/models.py build minilm_l6_v2_sentence_embedding
    python examples/few_shot.py --simulation "My card was charged twice." "The page stays blank."

MiniLM (a BERT of six layers) turns each text into a vector on the server; scikit-learn learns here
which vectors bear which label. examples/tickets.tsv holds what it learns from: a label, a tab, a
text. Neither labels nor answers leave this machine, and the texts go only to the verified server.
"""

from __future__ import annotations

from pathlib import Path

from connection import connect, options
from embeddings import MODEL, embed
from sklearn.linear_model import LogisticRegression


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("text", nargs="+")
    parser.add_argument("--examples", type=Path, default=Path(__file__).with_name("tickets.tsv"))
    arguments = parser.parse_args()
    lines = [line.split("\t", 1) for line in arguments.examples.read_text().splitlines()]
    labels, examples = zip(*lines)

    with connect(arguments) as client:
        client.models.upload(MODEL, name="minilm")
        known = embed(client, "minilm", list(examples))
        asked = embed(client, "minilm", arguments.text)
        client.models.delete("minilm")

    head = LogisticRegression(C=10).fit(known, labels)
    for text, chances in zip(arguments.text, head.predict_proba(asked)):
        best = chances.argmax()
        print(f"{head.classes_[best]} {chances[best]:.2f}  {text}")


if __name__ == "__main__":
    main()
