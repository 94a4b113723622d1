"""Tokens and their odds as clients of OpenAI's routes read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launchyard.model.serve.requests import Ended, Generation, TokenOdds
from launchyard.model.text.tokenizer import Tokenizer

_REASONS: dict[Ended, str] = {"stop": "stop", "length": "length", "context": "length", "cancelled": "stop"}


def finish_reason(ended: Ended | None) -> str | None:
    return None if ended is None else _REASONS[ended]


def usage_of(n_prompt: int, generations: Iterable[Generation], n_new: int) -> dict[str, object]:
    """Tokens of a request; those of a prompt count once, however many texts it has."""
    reused = max((generation.n_reused for generation in generations), default=0)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_new,
        "total_tokens": n_prompt + n_new,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def shown_token(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token; of a part of a character its bytes."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def chat_odds(tokenizer: Tokenizer, odds: Sequence[TokenOdds]) -> list[dict[str, object]]:
    """logprobs.content of a chat."""
    return [
        {
            **_one(tokenizer, one.token, one.logprob),
            "top_logprobs": [_one(tokenizer, token, logprob) for token, logprob in one.likeliest],
        }
        for one in odds
    ]


def _one(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, object]:
    return {"token": shown_token(tokenizer, token), "logprob": logprob, "bytes": list(tokenizer.token_bytes(token))}


class CompletionOdds:
    """logprobs of a completion, piece by piece: offsets count characters of the text from its beginning."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def first(self, token: int) -> dict[str, list[object]]:
        """Of the first token of a prompt, which follows nothing."""
        return self._table([(token, None, None)])

    def of(self, odds: Sequence[TokenOdds]) -> dict[str, list[object]]:
        return self._table([(one.token, one.logprob, one.likeliest) for one in odds])

    def _table(
        self, rows: Sequence[tuple[int, float | None, tuple[tuple[int, float], ...] | None]]
    ) -> dict[str, list[object]]:
        table: dict[str, list[object]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, logprob, likeliest in rows:
            text = shown_token(self._tokenizer, token)
            table["tokens"].append(text)
            table["token_logprobs"].append(logprob)
            table["top_logprobs"].append(
                None if likeliest is None else {shown_token(self._tokenizer, each): value for each, value in likeliest}
            )
            table["text_offset"].append(self._offset)
            self._offset += len(self._tokenizer.token_bytes(token).decode(errors="ignore"))
        return table


def joined(tables: Sequence[dict[str, list[object]]]) -> dict[str, list[object]]:
    """One table of several that follow each other."""
    return {key: [value for table in tables for value in table[key]] for key in tables[0]}
