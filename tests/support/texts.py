"""Text and tokenizers for tests, as fixtures that every test can ask for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"


@pytest.fixture(scope="session")
def tokenizer_file() -> str:
    return str(QUICKSTART / "tokenizer.json")


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: str) -> Tokenizer:
    return Tokenizer.from_file(tokenizer_file)


@pytest.fixture(scope="session")
def novel() -> str:
    return (QUICKSTART / "emma.txt").read_text()[:400_000]


@pytest.fixture(scope="session")
def short_texts(novel: str) -> list[str]:
    """Documents of very different lengths."""
    draw, texts, at = random.Random(3), [], 0
    while at < 200_000:
        size = int(draw.lognormvariate(5.5, 1.2)) + 1
        texts.append(novel[at : at + size])
        at += size
    return texts


@pytest.fixture(scope="session")
def big_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer of 200,000 tokens: bytes, an end, and words w300 … w199999 whose id is their number."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(letters)} | {"<|endoftext|>": 256}
    vocab |= {f"w{number}": number for number in range(257, 200_000)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("big") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)
