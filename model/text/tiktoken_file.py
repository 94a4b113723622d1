"""A tiktoken file (lines of base64 and rank) as a tokenizer.json: finds the merges behind the ranks. Light.

The file holds neither the regex that cuts text nor the special tokens: they follow from which encoding it is.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass, replace

from launchyard.model.text.splits import WORD_SPLITS
from launchyard.model.text.tokenizer_json import AddedToken, Ends, Merge, byte_level, byte_token

END = "<|endoftext|>"
_LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{n}|>" for n in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{n}|>" for n in range(5, 251)),
)
_QWEN = (END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205)))


@dataclass(frozen=True)
class TiktokenEncoding:
    """`n_ranks` tells it from the others; `pre`: the name of its regex among WORD_SPLITS."""

    name: str
    n_ranks: int
    pre: str
    special: Mapping[str, int]
    eos: str = END
    bos: str | None = None


_CL100K = {END: 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
ENCODINGS = (
    TiktokenEncoding("r50k_base", 50256, "gpt-2", {END: 50256}),
    TiktokenEncoding("p50k_base", 50280, "gpt-2", {END: 50256}),
    TiktokenEncoding("cl100k_base", 100256, "smaug-bpe", {**_CL100K, "<|endofprompt|>": 100276}),
    TiktokenEncoding("o200k_base", 199998, "gpt-4o", {END: 199999, "<|endofprompt|>": 200018}),
    TiktokenEncoding(
        "llama3",
        128000,
        "llama-bpe",
        {token: 128000 + number for number, token in enumerate(_LLAMA3)},
        "<|end_of_text|>",
        "<|begin_of_text|>",
    ),
    TiktokenEncoding(
        "qwen",
        151643,
        "qwen2",
        {token: 151643 + number for number, token in enumerate(_QWEN)},
    ),
)


def of_tiktoken(raw: bytes, added: Mapping[str, AddedToken]) -> tuple[bytes, TiktokenEncoding]:
    """tokenizer.json and the encoding. `added`: tokens named beside the file; in their place the encoding's own.

    ValueError if the ranks are those of no known encoding.
    """
    ranks = read_ranks(raw)
    encoding = next((known for known in ENCODINGS if known.n_ranks == len(ranks)), None)
    if encoding is None:
        known = ", ".join(f"{each.name} ({each.n_ranks:,})" for each in ENCODINGS)
        raise ValueError(
            f"the tiktoken file has {len(ranks):,} ranks, as no known encoding has: {known}. Its regex and its special "
            "tokens stand in no file; give a tokenizer.json"
        )
    special = {text: AddedToken(text, number) for text, number in encoding.special.items()} | dict(added)
    splits = replace(WORD_SPLITS[encoding.pre], ignore_merges=True)  # as tiktoken: first the word as a whole
    ends = Ends(bos=special.get(encoding.bos) if encoding.bos else None)
    vocab = {byte_token(token): rank for token, rank in ranks.items()}
    return byte_level(vocab, merges_of_ranks(ranks), list(special.values()), splits, ends), encoding


def read_ranks(raw: bytes) -> dict[bytes, int]:
    try:
        pairs = [line.split() for line in raw.splitlines() if line.strip()]
        return {b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, Base64Error) as error:
        raise ValueError(f"this is no tiktoken file (lines of base64 and rank): {error}") from error


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[Merge]:
    """The two tokens of which each is made, in the order of rank: what merging below its own rank leaves of it."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = _merged(token, ranks, rank)
        if len(parts) == 2:  # else no merge gives it: only a word that is the token as a whole
            merges.append((byte_token(parts[0]), byte_token(parts[1])))
    return merges


def _merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    parts = [token[at : at + 1] for at in range(len(token))]
    found = [ranks.get(token[at : at + 2], below) for at in range(len(token) - 1)]
    while len(parts) > 2:
        best = min(found)
        if best >= below:
            break
        at = found.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del found[at]
        if at < len(found):
            found[at] = ranks.get(parts[at] + parts[at + 1], below)
        if at:
            found[at - 1] = ranks.get(parts[at - 1] + parts[at], below)
    return parts
