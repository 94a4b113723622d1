"""Which models start from which weights: another vocabulary, and a longer context by a rule that is said."""

from __future__ import annotations

from typing import Any

import pytest

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.initial import check_start, over_weights
from tests.support.tiny_models import LLAMA3, llama, neox

YARN = RopeScaling(kind="yarn", factor=2.0, original_max_seq_len=64)
DYNAMIC = RopeScaling(kind="dynamic", factor=2.0, original_max_seq_len=64)


def longer(theirs: ModelConfig, **knobs: Any) -> ModelConfig:
    return theirs.model_copy(update={"max_seq_len": 128, **knobs})


LEARNED = llama(positions="learned")
WINDOWS = llama(layers=("window", "full"), window=8, rope_layers=(True, False))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (llama(), llama()),
        (llama(max_seq_len=32), llama()),
        (llama(vocab_size=200, padded_vocab_size=256), llama()),
        (longer(llama(), rope_scaling=YARN), llama()),
        (longer(llama(), rope_theta=50_000.0), llama()),
        (longer(llama(rope_scaling=DYNAMIC)), llama(rope_scaling=DYNAMIC)),  # it grows by itself
        (longer(llama(positions="none")), llama(positions="none")),
        (longer(llama(positions="alibi")), llama(positions="alibi")),
        (longer(WINDOWS), WINDOWS),  # no rotated key is farther away than a window
    ],
)
def test_these_start(ours: ModelConfig, theirs: ModelConfig) -> None:
    check_start(ours, theirs, "/weights")


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (
            longer(llama()),
            llama(),
            r"128.*64.*such as \{kind: yarn, factor: 2, original_max_seq_len: 64\}",
        ),
        (longer(llama(rope_scaling=LLAMA3)), llama(rope_scaling=LLAMA3), "by which rule"),
        (longer(neox()), neox(), "keep model.max_seq_len=64"),
        (longer(LEARNED), LEARNED, "table of positions has no more rows"),
        (llama(rope_scaling=YARN), llama(), "rope_scaling is None there"),  # of the same length: another model
        (llama(dim=96), llama(), "another model: dim is 48 there and 96 here"),
    ],
)
def test_these_do_not(ours: ModelConfig, theirs: ModelConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_start(ours, theirs, "/weights")


def test_a_table_keeps_its_rows_while_they_suffice() -> None:
    theirs = llama(vocab_size=131, padded_vocab_size=140)
    rows = [
        ModelConfig.model_validate(over_weights(theirs, fields)).padded_vocab_size
        for fields in ({"vocab_size": 99}, {"vocab_size": 140}, {"vocab_size": 141}, {"padded_vocab_size": 135})
    ]
    assert rows == [140, 140, 256, 135]
