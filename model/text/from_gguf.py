"""The tokenizer of a GGUF file as files of a Hugging Face folder, from its metadata alone. Light."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import cast

from launchyard.model.text.companions import GENERATION, TOKENIZER, TOKENIZER_CONFIG
from launchyard.model.text.splits import splits_of
from launchyard.model.text.tokenizer_json import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    AddedToken,
    Ends,
    Merge,
    Pieces,
    added_tokens,
    byte_level,
    sentencepiece_bpe,
    unigram,
)

TOKENIZER_KEYS = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
MODELS = {"gpt2": "byte-level BPE", "llama": "sentencepiece BPE", "gemma4": "sentencepiece BPE", "t5": "unigram"}
SENTENCEPIECE_PRES = ("gemma4", "sarvam-moe")  # of the model gpt2, which cut as sentencepiece does
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
_ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message


def companions_of_gguf(metadata: Mapping[str, object]) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json, and a file for each chat template.

    Empty if the file has no tokenizer. ValueError names the key that is missing or not supported.
    """
    model = metadata.get(f"{TOKENIZER_KEYS}model")
    if model in (None, "none", "no_vocab"):
        return {}
    if model not in MODELS:
        raise ValueError(
            f"{TOKENIZER_KEYS}model is {model!r}; supported: {', '.join(f'{n} ({w})' for n, w in MODELS.items())}"
        )
    vocabulary = _Vocabulary(metadata)
    templates = _templates(metadata)
    settings = vocabulary.settings()
    if "default" in templates:
        settings["chat_template"] = templates["default"]
    companions = {TOKENIZER: vocabulary.tokenizer_json(str(model)), TOKENIZER_CONFIG: _encoded(settings)}
    if rules := vocabulary.generation():
        companions[GENERATION] = _encoded(rules)
    for name, template in templates.items():
        file = "chat_template" if name == "default" else f"additional_chat_templates/{name}"
        companions[f"{file}.jinja"] = template.encode()
    return companions


class _Vocabulary:
    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._metadata = metadata
        tokens = self._strings("tokens")
        if not tokens:
            raise ValueError(f"{TOKENIZER_KEYS}tokens is missing: the file has no vocabulary")
        types = cast("Sequence[int]", self._list("token_type")) or [NORMAL] * len(tokens)
        if len(types) != len(tokens):
            raise ValueError(f"{TOKENIZER_KEYS}token_type has {len(types)} values for {len(tokens)} tokens")
        self.real = [number for number, token in enumerate(tokens) if token != f"[PAD{number}]"]
        self.tokens = tokens
        self.types = list(types)
        for role in ("bos", "eos"):  # some files call them normal
            number = self._id(role)
            if number is not None and self.types[number] == NORMAL and self._is_written_as_special(number):
                self.types[number] = CONTROL

    def tokenizer_json(self, model: str) -> bytes:
        if model == "t5":
            return unigram(self._pieces(), self._ends(add_eos=True))
        if model == "llama":
            return sentencepiece_bpe(self._pieces(), self._ends(add_bos=True), self._merges() or None)
        pre = str(self._get("pre") or ("gemma4" if model == "gemma4" else "default"))
        if pre in SENTENCEPIECE_PRES:
            return sentencepiece_bpe(self._pieces(prefix_space=False), self._ends(), self._needed_merges())
        splits = splits_of(pre)
        real = set(self.real)
        added = [token for token in added_tokens(self.tokens, self.types) if token.id in real]
        outside = {token.id for token in added}
        vocab = {self.tokens[number]: number for number in self.real if number not in outside}
        return byte_level(vocab, self._needed_merges(), added, splits, self._ends(add_bos=splits.add_bos))

    def settings(self) -> dict[str, object]:
        """tokenizer_config.json, of a class that takes tokenizer.json as it is."""
        named = {f"{role}_token": self._token(role) for role in _ROLES}
        flags = {name: self._get(name) for name in ("add_bos_token", "add_eos_token")}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{key: value for key, value in (named | flags).items() if value is not None},
            "clean_up_tokenization_spaces": False,
        }

    def generation(self) -> dict[str, object]:
        ends = [number for name in _ENDS if (number := self._id(name)) is not None]
        ends = list(dict.fromkeys(ends))
        rules: dict[str, object] = {f"{role}_token_id": self._id(role) for role in ("bos", "pad")}
        if ends:
            rules["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        return {key: value for key, value in rules.items() if value is not None}

    def _get(self, key: str) -> object:
        return self._metadata.get(f"{TOKENIZER_KEYS}{key}")

    def _list(self, key: str) -> list[object]:
        """Empty if there is no such key."""
        value = self._get(key)
        if value is not None and not isinstance(value, list):
            raise ValueError(f"{TOKENIZER_KEYS}{key} is {value!r}, not a list")
        return value or []

    def _strings(self, key: str) -> Sequence[str]:
        return cast("Sequence[str]", self._list(key))

    def _id(self, role: str) -> int | None:
        key = f"{_ROLES.get(role, role)}_token_id"
        number = self._get(key)
        if not isinstance(number, int) or number < 0 or number == 2**32 - 1:  # both say that there is none
            return None
        if number >= len(self.tokens):
            raise ValueError(f"{TOKENIZER_KEYS}{key} is {number}, of {len(self.tokens)} tokens")
        return number

    def _token(self, role: str) -> str | None:
        number = self._id(role)
        return None if number is None else self.tokens[number]

    def _is_written_as_special(self, number: int) -> bool:
        return re.fullmatch(r"<.+>|\[.+\]", self.tokens[number]) is not None

    def _ends(self, *, add_bos: bool = False, add_eos: bool = False) -> Ends:
        """By the keys of the file, else as llama.cpp has it for such a file."""
        defaults = {"bos": add_bos, "eos": add_eos}
        found = {}
        for role, default in defaults.items():
            said = self._get(f"add_{role}_token")
            number = self._id(role) if (default if said is None else said) else None
            found[role] = None if number is None else AddedToken(self.tokens[number], number)
        return Ends(**found)

    def _merges(self) -> list[Merge]:
        """Written as "a b"; a space that belongs to a token is none of its first character."""
        merges = []
        for merge in self._strings("merges"):
            cut = merge.index(" ", 1)
            merges.append((merge[:cut], merge[cut + 1 :]))
        return merges

    def _needed_merges(self) -> list[Merge]:
        merges = self._merges()
        if not merges and len(self.real) > 257:
            raise ValueError(f"{TOKENIZER_KEYS}merges is missing: the file does not say which tokens join to others")
        return merges

    def _pieces(self, *, prefix_space: bool = True) -> Pieces:
        n = 1 + max(self.real)
        scores = cast("Sequence[float]", self._list("scores")) or [0.0] * len(self.tokens)
        types = self.types[:n]
        unknown = self._id("unk")
        if unknown is None:
            unknown = next((number for number, kind in enumerate(types) if kind == UNKNOWN), None)
        else:
            types[unknown] = UNKNOWN
        said = self._get("add_space_prefix")
        return Pieces(
            tokens=self.tokens[:n],
            types=[self._checked(number, kind, unknown) for number, kind in enumerate(types)],
            scores=scores[:n],
            prefix_space=prefix_space if said is None else bool(said),
            squeeze_spaces=bool(self._get("remove_extra_whitespaces")),
            charsmap=bytes(cast("Sequence[int]", self._list("precompiled_charsmap"))),
        )

    def _checked(self, number: int, kind: int, unknown: int | None) -> int:
        """Only one token is the unknown one; others of that type are control tokens (Phi-3 has 52 of them)."""
        if kind == UNKNOWN and number != unknown:
            return CONTROL
        return BYTE if re.fullmatch("<0x[0-9A-F]{2}>", self.tokens[number]) else kind


def _templates(metadata: Mapping[str, object]) -> dict[str, str]:
    """Name -> chat template; `default` is the one of no name."""
    more = f"{TEMPLATE}."
    found = {key.removeprefix(more): str(value) for key, value in metadata.items() if key.startswith(more)}
    return {"default": str(metadata[TEMPLATE]), **found} if TEMPLATE in metadata else found


def _encoded(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
