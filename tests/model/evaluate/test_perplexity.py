"""Windows hold each token of a text once, and its figures follow from their sum."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard import load
from launchyard.model.evaluate.perplexity import TextOdds, length_limit, prefix_id, rolling_windows, text_odds
from launchyard.model.evaluate.score import score
from launchyard.model.loaded import LoadedModel
from launchyard.model.text.companions import companions_beside
from launchyard.model.weights.hf_export import save_hf
from tests.support.tiny_models import byte_tokenizer, edit_json, llama, random_model, weights_of

CONFIG = llama(vocab_size=300, padded_vocab_size=300)
TEXT = "the cat and the dog,\n\nthe end of the tale: äöü 你好 😀 " * 6


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    path = byte_tokenizer(tmp_path / "t/tokenizer.json")
    save_hf(weights_of(random_model(CONFIG)), CONFIG, str(tmp_path / "hf"), companions=companions_beside(path))
    return load(str(tmp_path / "hf"), device="cpu")


@given(n_tokens=st.integers(0, 60), max_length=st.integers(1, 20))
def test_windows_hold_each_token_once_and_never_more_than_fits(n_tokens: int, max_length: int) -> None:
    ids = list(range(n_tokens))
    windows = list(rolling_windows(ids, -1, max_length))
    assert [token for _, continuation in windows for token in continuation] == ids
    for context, continuation in windows:
        together = [*context, *continuation]
        assert together == list(range(together[0], together[0] + len(together)))  # the prefix is before the first
        assert context
        assert len(together) <= max_length + 1


def test_figures_follow_from_the_text(loaded: LoadedModel) -> None:
    ids = loaded.tokenizer.encode(TEXT)
    short = loaded.tokenizer.decode(ids[:60])
    odds = text_odds(loaded, short)
    (whole,) = score(loaded.transformer, [([prefix_id(loaded)], loaded.tokenizer.encode(short))])
    assert odds.logprob == pytest.approx(whole.logprob)
    assert odds.n_bytes == len(short.encode())
    assert odds.perplexity**odds.n_tokens == pytest.approx(math.exp(-odds.logprob))
    assert odds.word_perplexity == pytest.approx(odds.perplexity ** (odds.n_tokens / odds.n_words))
    assert 2 ** (odds.bits_per_byte * odds.n_bytes) == pytest.approx(math.exp(-odds.logprob))


def test_odds_beyond_all_numbers_are_no_overflow() -> None:
    """As of a model that diverged, and is sure of the wrong token."""
    odds = TextOdds(logprob=-9000.0, n_tokens=9, n_words=3, n_bytes=30)
    assert (odds.perplexity, odds.word_perplexity) == (math.inf, math.inf)
    assert odds.bits_per_byte == pytest.approx(300 / math.log(2))


def test_a_long_text_is_cut_into_windows(loaded: LoadedModel) -> None:
    every = text_odds(loaded, TEXT)
    assert every.n_tokens > CONFIG.max_seq_len
    assert text_odds(loaded, TEXT, batch_tokens=1).logprob == pytest.approx(every.logprob)
    assert text_odds(loaded, TEXT, max_length=8).logprob != pytest.approx(every.logprob)


def test_a_tokenizer_s_own_bos_is_the_prefix_and_no_token_of_the_text(loaded: LoadedModel, tmp_path: Path) -> None:
    plain = text_odds(loaded, TEXT)
    from tokenizers.processors import TemplateProcessing

    adding = load(str(tmp_path / "hf"), device="cpu")
    end = adding.tokenizer.eos_id
    adding.tokenizer.raw.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    assert adding.tokenizer.encode(TEXT)[0] == end
    assert text_odds(adding, TEXT) == plain


def test_the_prefix_is_bos_else_eos(loaded: LoadedModel, tmp_path: Path) -> None:
    assert prefix_id(loaded) == loaded.tokenizer.eos_id
    edit_json(tmp_path / "hf/tokenizer_config.json", bos_token="the")
    again = load(str(tmp_path / "hf"), device="cpu")
    assert prefix_id(again) == again.tokenizer.vocabulary["the"] != again.tokenizer.eos_id


def test_what_cannot_be_measured_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match="the text is empty"):
        text_odds(loaded, "")
    with pytest.raises(ValueError, match="max_length is 65; it must be between 1 and 64"):
        length_limit(loaded, 65)
