"""Builds a tokenizer.json of Hugging Face's `tokenizers` from a vocabulary with its scores or merges. Light."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from launchyard.model.text.companions import Json
from launchyard.model.text.splits import BYTES, Splits

Merge = tuple[str, str]
# Types of a token, as sentencepiece and GGUF number them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"  # sentencepiece's space


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in text before anything is cut. `special`: left out of decoded text."""

    content: str
    id: int
    special: bool = True

    @property
    def json(self) -> Json:
        same = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return {"id": self.id, "content": self.content, **same, "special": self.special}


@dataclass(frozen=True)
class Ends:
    """Tokens that the tokenizer itself puts before and after every text."""

    bos: AddedToken | None = None
    eos: AddedToken | None = None

    @property
    def post_processor(self) -> Json | None:
        if self.bos is None and self.eos is None:
            return None
        single = [self._special(self.bos, 0), _sequence("A", 0), self._special(self.eos, 0)]
        pair = [*single, self._special(self.bos, 1), _sequence("B", 1), self._special(self.eos, 1)]
        named = {
            token.content: {"id": token.content, "ids": [token.id], "tokens": [token.content]}
            for token in (self.bos, self.eos)
            if token is not None
        }
        return {
            "type": "TemplateProcessing",
            "single": [part for part in single if part],
            "pair": [part for part in pair if part],
            "special_tokens": named,
        }

    @staticmethod
    def _special(token: AddedToken | None, kind: int) -> Json | None:
        return None if token is None else {"SpecialToken": {"id": token.content, "type_id": kind}}


@dataclass(frozen=True)
class Pieces:
    """A sentencepiece vocabulary; the place of a piece is its id."""

    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    prefix_space: bool = True
    squeeze_spaces: bool = False
    charsmap: bytes = b""  # sentencepiece's compiled rules of normalisation

    @property
    def unknown(self) -> int | None:
        return next((number for number, kind in enumerate(self.types) if kind == UNKNOWN), None)

    @property
    def ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    @property
    def added(self) -> list[AddedToken]:
        return added_tokens(self.tokens, self.types)


def added_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[AddedToken]:
    """Those of a vocabulary that are control, unknown or user-defined ones."""
    return [
        AddedToken(token, number, special=kind != USER_DEFINED)
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]


def byte_level(
    vocab: Mapping[str, int], merges: Iterable[Merge], added: Sequence[AddedToken], splits: Splits, ends: Ends
) -> bytes:
    """A BPE over bytes, each of which is written as one printable character (`byte_characters`)."""
    outside = _at_the_end(vocab, added)
    model: Json = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": splits.ignore_merges,
        "vocab": {**vocab, **({} if outside else {token.content: token.id for token in added})},
        "merges": [list(merge) for merge in merges],
    }
    decoder = {**BYTES, "add_prefix_space": True, "use_regex": True}
    return _tokenizer(model, added, pre_tokenizer=splits.pre_tokenizer, decoder=decoder, ends=ends)


def sentencepiece_bpe(pieces: Pieces, ends: Ends, merges: Sequence[Merge] | None = None) -> bytes:
    """Without `merges`, those that the scores stand for."""
    unknown = pieces.unknown
    model: Json = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unknown is None else pieces.tokens[unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": BYTE in pieces.types,
        "ignore_merges": False,
        "vocab": pieces.ids,
        "merges": [list(merge) for merge in (merges_of_scores(pieces) if merges is None else merges)],
    }
    steps: list[Json] = [_replace({"String": " "}, SPACE)]
    back: list[Json] = [_replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if pieces.prefix_space:
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _tokenizer(
        model,
        pieces.added,
        normalizer={"type": "Sequence", "normalizers": [*_normalised(pieces), *steps]},
        decoder={"type": "Sequence", "decoders": back},
        ends=ends,
    )


def unigram(pieces: Pieces, ends: Ends) -> bytes:
    model: Json = {
        "type": "Unigram",
        "unk_id": pieces.unknown,
        "vocab": [[token, score] for token, score in zip(pieces.tokens, pieces.scores, strict=True)],
        "byte_fallback": BYTE in pieces.types,
    }
    spaces: Json = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": "always" if pieces.prefix_space else "never",
        "split": False,
    }
    steps = _normalised(pieces)
    back: list[Json] = [{"type": "ByteFallback"}, spaces] if BYTE in pieces.types else [spaces]
    return _tokenizer(
        model,
        pieces.added,
        normalizer={"type": "Sequence", "normalizers": steps} if steps else None,
        pre_tokenizer=spaces,
        decoder={"type": "Sequence", "decoders": back},
        ends=ends,
    )


def merges_of_scores(pieces: Pieces) -> list[Merge]:
    """Every way to join two pieces to a third, the best third first: sentencepiece joins the two of the best score."""
    ids = pieces.ids
    usable = {NORMAL, USER_DEFINED, UNUSED}
    found = []
    for number, token in enumerate(pieces.tokens):
        if pieces.types[number] not in usable or ids[token] != number:
            continue
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [way for way in ways if way[0] in ids and way[1] in ids]
        found += [(-pieces.scores[number], ids[left], ids[right], left, right) for left, right in known]
    return [(left, right) for *_, left, right in sorted(found)]


@cache
def byte_characters() -> tuple[str, ...]:
    """GPT-2's character for each byte: itself where it is printable Latin-1, else one from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def byte_token(raw: bytes) -> str:
    """A token of bytes, as a byte-level vocabulary writes it."""
    characters = byte_characters()
    return "".join(characters[byte] for byte in raw)


def _tokenizer(
    model: Json,
    added: Sequence[AddedToken],
    *,
    normalizer: Json | None = None,
    pre_tokenizer: Json | None = None,
    decoder: Json,
    ends: Ends,
) -> bytes:
    content: Json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token.json for token in sorted(added, key=lambda token: token.id)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": ends.post_processor,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _at_the_end(vocab: Mapping[str, int], added: Sequence[AddedToken]) -> bool:
    """Whether the added tokens follow a vocabulary without a gap: then they need no place in it to keep their ids."""
    ids = [*sorted(vocab.values()), *sorted(token.id for token in added)]
    return all(after == before + 1 for before, after in pairwise([-1, *ids]))


def _normalised(pieces: Pieces) -> list[Json]:
    steps: list[Json] = []
    if pieces.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": b64encode(pieces.charsmap).decode()})
    if pieces.squeeze_spaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append(_replace({"Regex": " {2,}"}, " "))
    return steps


def _replace(pattern: Json, content: str) -> Json:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _sequence(name: str, kind: int) -> Json:
    return {"Sequence": {"id": name, "type_id": kind}}
