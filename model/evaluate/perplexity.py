"""How well a model foretells a text: log-likelihoods over windows of it, and what follows from their sum."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launchyard.model.evaluate.score import BATCH_TOKENS, OnPairs, score
from launchyard.model.loaded import LoadedModel
from launchyard.model.text.chat_template import named_tokens


@dataclass(frozen=True)
class TextOdds:
    """What a model makes of a text: the sum of natural log-probabilities, and what it is counted by."""

    logprob: float
    n_tokens: int
    n_words: int
    n_bytes: int

    @property
    def perplexity(self) -> float:
        """Of a token of this tokenizer; not to be compared with that of another. inf where it is beyond all numbers."""
        return _exp(-self.logprob / self.n_tokens)

    @property
    def word_perplexity(self) -> float:
        return _exp(-self.logprob / self.n_words)

    @property
    def bits_per_byte(self) -> float:
        return -self.logprob / self.n_bytes / math.log(2)


def _exp(exponent: float) -> float:
    return math.exp(exponent) if exponent < 709 else math.inf


def prefix_id(loaded: LoadedModel) -> int:
    """The token before a text, so that its first token has something to follow: bos, else eos. ValueError without."""
    tokenizer = loaded.tokenizer
    bos = named_tokens(tokenizer.companions).get("bos_token")
    found = tokenizer.vocabulary.get(bos, tokenizer.eos_id) if bos is not None else tokenizer.eos_id
    if found is None:
        raise ValueError(f"{tokenizer.path} names no token that begins or ends a text; name its eos_token beside it")
    return found


def length_limit(loaded: LoadedModel, max_length: int | None) -> int:
    """max_length, by default what the model was made for. ValueError for more than it has."""
    own = loaded.config.max_seq_len
    limit = loaded.config.position_limit
    if max_length is None:
        return own
    if max_length < 1 or (limit is not None and max_length > limit):
        most = "at least 1" if limit is None else f"between 1 and {limit}, which this model has"
        raise ValueError(f"max_length is {max_length}; it must be {most}")
    return max_length


def rolling_windows(ids: Sequence[int], prefix: int, max_length: int) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Contexts and continuations that are each token of a text once, as lm-evaluation-harness cuts them.

    The first window is behind the prefix, each later one behind the token before it; the last, which is shorter, behind
    as many tokens as there is room for.
    """
    if ids:
        yield [prefix], ids[:max_length]
    for start in range(max_length, len(ids), max_length):
        end = min(start + max_length, len(ids))
        yield ids[end - max_length - 1 : start], ids[start:end]


def text_odds(
    loaded: LoadedModel,
    text: str,
    *,
    max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    on_progress: OnPairs | None = None,
) -> TextOdds:
    """Of a whole text. The tokens that a tokenizer adds are none of it: what it begins with is the prefix alone.

    ValueError for a text without tokens.
    """
    ids = loaded.tokenizer.encode(text, special=False)
    if not ids:
        raise ValueError("the text is empty")
    limit = length_limit(loaded, max_length)
    windows = list(rolling_windows(ids, prefix_id(loaded), limit))
    scores = score(loaded.transformer, windows, max_length=limit, batch_tokens=batch_tokens, on_progress=on_progress)
    n_words = len(re.split(r"\s+", text))  # as lm-evaluation-harness counts them
    return TextOdds(math.fsum(one.logprob for one in scores), len(ids), n_words, len(text.encode()))
