"""A sentencepiece `tokenizer.model` as a tokenizer.json: reads the few fields of its protobuf that matter. Light."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from launchyard.model.text.tokenizer_json import (
    CONTROL,
    SPACE,
    USER_DEFINED,
    AddedToken,
    Ends,
    Pieces,
    sentencepiece_bpe,
    unigram,
)

# Numbers of fields and values in sentencepiece_model.proto.
_PIECES = 1
_TRAINER = 2
_NORMALIZER = 3
_UNIGRAM = 1
_BPE = 2
_MODEL_TYPE = 3
_BOS_ID = 41
_EOS_ID = 42
_CHARSMAP = 2
_PREFIX_SPACE = 3
_SQUEEZE_SPACES = 4
_VARINT = 0
_FIXED64 = 1
_BYTES = 2
_FIXED32 = 5
# Classes of transformers that put bos before, or eos after, every text when tokenizer_config.json does not say.
_ADD_BOS = ("LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast", "CodeLlamaTokenizer")
_ADD_EOS = ("T5Tokenizer", "T5TokenizerFast")

Field = tuple[int, int | bytes]


def is_sentencepiece(raw: bytes) -> bool:
    """Whether a file begins as sentencepiece's do: with a piece. A tiktoken file begins with base64."""
    return raw[:1] == bytes([_PIECES << 3 | _BYTES])


def of_sentencepiece(raw: bytes, settings: Mapping[str, object], added: Mapping[str, AddedToken]) -> bytes:
    """`settings`: tokenizer_config.json; `added`: tokens named beside the file, by text. ValueError if damaged."""
    try:
        fields = list(_fields(raw))
        pieces = [_piece(value) for number, value in fields if number == _PIECES and isinstance(value, bytes)]
        trainer = _message(fields, _TRAINER)
        normalizer = _message(fields, _NORMALIZER)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"the sentencepiece file is cut or damaged: {error}") from error
    for token in sorted(added.values(), key=lambda token: token.id):
        kind = CONTROL if token.special else USER_DEFINED
        if token.id > len(pieces):
            raise ValueError(f"added token {token.content!r} has id {token.id}, the vocabulary {len(pieces)} ids")
        pieces[token.id : token.id + 1] = [(token.content, 0.0, kind)]
    charsmap = normalizer.get(_CHARSMAP)
    vocabulary = Pieces(
        tokens=[text.replace(SPACE, " ") if kind == USER_DEFINED else text for text, _, kind in pieces],
        types=[kind for *_, kind in pieces],
        scores=[score for _, score, _ in pieces],
        prefix_space=bool(normalizer.get(_PREFIX_SPACE, True)),
        squeeze_spaces=bool(normalizer.get(_SQUEEZE_SPACES, True)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )
    ends = _ends(vocabulary, trainer, settings)
    algorithm = trainer.get(_MODEL_TYPE, _UNIGRAM)
    if algorithm not in (_UNIGRAM, _BPE):
        raise ValueError("the sentencepiece file holds whole words or characters; BPE and unigram are supported")
    return sentencepiece_bpe(vocabulary, ends) if algorithm == _BPE else unigram(vocabulary, ends)


def _ends(pieces: Pieces, trainer: Mapping[int, int | bytes], settings: Mapping[str, object]) -> Ends:
    name = str(settings.get("tokenizer_class"))
    wanted = {
        "bos": settings.get("add_bos_token", name in _ADD_BOS),
        "eos": settings.get("add_eos_token", name in _ADD_EOS),
    }
    ids = {"bos": trainer.get(_BOS_ID, 1), "eos": trainer.get(_EOS_ID, 2)}
    found = {}
    for role, number in ids.items():
        known = wanted[role] and isinstance(number, int) and number < len(pieces.tokens)  # -1 is a huge varint
        found[role] = AddedToken(pieces.tokens[int(number)], int(number)) if known else None
    return Ends(**found)


def _piece(raw: bytes) -> tuple[str, float, int]:
    """(text, score, type); type 1, a normal piece, is not written."""
    fields = dict(_fields(raw))
    text = fields.get(1, b"")
    score = fields.get(2, b"\0\0\0\0")
    assert isinstance(text, bytes) and isinstance(score, bytes)
    return text.decode(), struct.unpack("<f", score)[0], int(fields.get(3, 1))


def _message(fields: list[Field], number: int) -> dict[int, int | bytes]:
    raw = next((value for found, value in fields if found == number), b"")
    return dict(_fields(raw)) if isinstance(raw, bytes) else {}


def _fields(raw: bytes) -> Iterator[Field]:
    """(number, value) of a protobuf message: an int, or the bytes of what is longer or a float."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if size is None:
            if kind != _BYTES:
                raise IndexError(f"field of kind {kind} at byte {at}")
            size, at = _varint(raw, at)
        if at + size > len(raw):
            raise IndexError(f"a field ends after byte {len(raw)}")
        yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at
