"""Search by meaning: the sentences of a file, those closest to a question first.

    python tools/models.py build minilm_l6_v2_sentence_embedding
    python examples/search.py --simulation "How do I know what runs on the server?"

The weights are real: all-MiniLM-L6-v2. The server turns texts into vectors and keeps nothing; which
of them were compared, and with what, happens here.
"""

from __future__ import annotations

from pathlib import Path

from connection import connect, options
from embeddings import MODEL, embed


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("question")
    parser.add_argument(
        "--documents",
        type=Path,
        default=Path(__file__).with_name("sentences.txt"),
        help="a file with one text per line",
    )
    parser.add_argument("--top", type=int, default=3, help="how many to show")
    arguments = parser.parse_args()
    documents = arguments.documents.read_text().splitlines()

    with connect(arguments) as client:
        client.models.upload(MODEL, name="minilm")
        library = embed(client, "minilm", documents)
        (question,) = embed(client, "minilm", [arguments.question])
        client.models.delete("minilm")

    alike = library @ question
    for place in alike.argsort()[::-1][: arguments.top]:
        print(f"{alike[place]:.3f}  {documents[place]}")


if __name__ == "__main__":
    main()
