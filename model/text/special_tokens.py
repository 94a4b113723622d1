"""Ids with a meaning (end of text, begin, padding): which there are, and which file says so. Light; reads JSON only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from launchyard.model.text.companions import (
    GENERATION,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Companions,
    json_companion,
)

CONFIG = "config.json"
GUESSED = f"{TOKENIZER}, by the usual names"
# Spellings of the token that ends a text, for tokenizers that come without a file that names it.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>")
_ROLES = ("eos", "bos", "pad")


class SpecialTokens:
    """The special ids of a model by its companions, and by its config.json where it has one.

    `vocabulary`: that of the tokenizer, from those who have read it already: reading it takes most of the time.
    """

    def __init__(
        self,
        companions: Companions,
        config: Mapping[str, object] | None = None,
        vocabulary: dict[str, int] | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._companions = companions
        self._id_files = {GENERATION: json_companion(companions, GENERATION), CONFIG: config or {}}
        self._name_files = {name: json_companion(companions, name) for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS)}

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id; empty without a tokenizer.json. ValueError if that is none."""
        if self._vocabulary is not None:
            return self._vocabulary
        return read_vocabulary(self._companions[TOKENIZER]) if TOKENIZER in self._companions else {}

    @property
    def n_ids(self) -> int | None:
        """One more than the largest id that the tokenizer can give; None without a tokenizer."""
        return 1 + max(self.vocabulary.values()) if self.vocabulary else None

    def said(self, role: str) -> dict[str, list[int]]:
        """The ids of `role` (eos, bos or pad) by the file that says so, of those that do."""
        found = {name: ids_in(content.get(f"{role}_token_id")) for name, content in self._id_files.items()}
        for name, content in self._name_files.items():
            token = token_text(content.get(f"{role}_token"))
            found[name] = [self.vocabulary[token]] if token is not None and token in self.vocabulary else []
        return {name: ids for name, ids in found.items() if ids}

    def named_ends(self) -> dict[int, list[str]]:
        """Every id that a file says ends a text -> those files."""
        ends: dict[int, list[str]] = {}
        for name, ids in self.said("eos").items():
            for end in ids:
                ends.setdefault(end, []).append(name)
        return ends

    def ends(self) -> dict[int, list[str]]:
        """The same; where no file says one, the usual name of such a token."""
        guess = next((self.vocabulary[token] for token in END_OF_TEXT if token in self.vocabulary), None)
        return self.named_ends() or ({} if guess is None else {guess: [GUESSED]})

    def id_of(self, role: str) -> int | None:
        """The one id of `role`, of the first file that says one."""
        return next((ids[0] for ids in self.said(role).values()), None)

    def token_of(self, number: int) -> str | None:
        return next((token for token, found in self.vocabulary.items() if found == number), None)


def named_end(companions: Companions) -> str | None:
    """The eos_token that a file beside a tokenizer names, which may be none of its tokens."""
    names = (json_companion(companions, name).get("eos_token") for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS))
    return next((token for token in map(token_text, names) if token is not None), None)


def special_ids(companions: Companions, *, rows: int) -> dict[str, int | list[int]]:
    """The keys of a config.json of that many rows which follow from the companions."""
    tokens = SpecialTokens(companions)
    ends = [end for end in tokens.ends() if end < rows]
    found: dict[str, int | list[int]] = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
    for role in ("bos", "pad"):
        number = tokens.id_of(role)
        if number is not None and number < rows:
            found[f"{role}_token_id"] = number
    return found


def with_ids(companions: Companions, config: Mapping[str, object]) -> dict[str, bytes]:
    """The companions, their generation_config.json completed by the ids that a config.json alone holds."""
    rules = json_companion(companions, GENERATION)
    found = {f"{role}_token_id": config.get(f"{role}_token_id") for role in ("bos", "pad")}
    missing = {key: value for key, value in found.items() if ids_in(value) and rules.get(key) is None}
    completed = _with_rules(companions, {**rules, **missing}) if missing else dict(companions)
    return with_ends(completed, ids_in(config.get("eos_token_id")))


def with_ends(companions: Companions, ends: Iterable[int]) -> dict[str, bytes]:
    """The companions, with these ids among the end ids of their generation_config.json."""
    rules = json_companion(companions, GENERATION)
    known = ids_in(rules.get("eos_token_id"))
    more = [end for end in dict.fromkeys(ends) if end not in known]
    if not more:
        return dict(companions)
    every = [*known, *more]
    return _with_rules(companions, {**rules, "eos_token_id": every[0] if len(every) == 1 else every})


def with_ids_of(companions: Companions, other: Companions) -> dict[str, bytes]:
    """Companions of one tokenizer with the ids that they mean under another: by token, and without those it lacks."""
    rules = json_companion(companions, GENERATION)
    ours = SpecialTokens(companions).vocabulary
    theirs = SpecialTokens(other).vocabulary
    if not rules or not ours or not theirs or ours == theirs:
        return dict(companions)
    names = {number: token for token, number in ours.items()}
    translated = dict(rules)
    for key in [key for key in rules if key.endswith("_token_id")]:
        ids = [theirs[names[number]] for number in ids_in(rules[key]) if names.get(number) in theirs]
        translated[key] = ids if isinstance(rules[key], list) else next(iter(ids), None)
    return _with_rules(companions, translated)


def read_vocabulary(raw: bytes, *, name: str = TOKENIZER) -> dict[str, int]:
    """Token -> id of a tokenizer.json, read without the tokenizers package. ValueError that names it if it is none."""
    try:
        content = json.loads(raw)
        vocab = content["model"]["vocab"]
        ids = dict(vocab) if isinstance(vocab, dict) else {piece[0]: number for number, piece in enumerate(vocab)}
        ids |= {token["content"]: token["id"] for token in content.get("added_tokens") or []}
        max(ids.values()) + 1  # a vocabulary has ids, and they are numbers
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{name} is no tokenizer.json of Hugging Face tokenizers") from error
    return ids


def ids_in(value: object) -> list[int]:
    """The ids of a key such as eos_token_id: of a number, a list of them, or none."""
    listed = value if isinstance(value, list) else [value]
    return [number for number in listed if isinstance(number, int) and not isinstance(number, bool) and number >= 0]


def token_text(value: object) -> str | None:
    """The text of a token as tokenizer_config.json has it: a string, or an object with its `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _with_rules(companions: Companions, rules: Mapping[str, object]) -> dict[str, bytes]:
    return {**companions, GENERATION: (json.dumps(rules, indent=2) + "\n").encode()}


def tokenizer_vocab_size(raw: bytes, *, name: str) -> int:
    """One more than the largest id of a tokenizer.json, read without the tokenizers package."""
    return 1 + max(read_vocabulary(raw, name=name).values())


def end_of_text(companions: Companions, raw: Any) -> str | None:
    """The token of a tokenizer (`raw`: as `tokenizers` reads it) that ends a document.

    The eos_token that a file beside it names if that is one of its tokens, else the first of END_OF_TEXT that is; None
    if there is neither.
    """
    named = named_end(companions)
    return next((token for token in (named, *END_OF_TEXT) if token and raw.token_to_id(token) is not None), None)
