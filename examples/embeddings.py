"""Sentences as vectors, by MiniLM on a server: for search.py and few_shot.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from connection import INPUTS, built
from tokenizers import Tokenizer

import blindai

MODEL = built("minilm_l6_v2_sentence_embedding")
LONGEST = 256  # tokens that MiniLM was trained on
BATCH = 32


def embed(client: blindai.Client, name: str, texts: list[str]) -> np.ndarray:
    """Vectors of length one, f32 [texts, 384]; the more alike two texts, the larger the product."""
    tokenizer = load_tokenizer(INPUTS / "minilm_tokenizer.json")
    found = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer.encode_batch(texts[start : start + BATCH])
        inputs = {
            "input_ids": np.array([text.ids for text in batch]),
            "attention_mask": np.array([text.attention_mask for text in batch]),
            "token_type_ids": np.array([text.type_ids for text in batch]),
        }
        found.append(client.infer(name, inputs)["sentence_embedding"])
    vectors = np.concatenate(found)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def load_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer, cutting long texts and padding short ones."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    return tokenizer
