"""Text to ids and back, thin over `tokenizers`. Loads no vocabulary before it is used, and never runs remote code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

from launchyard.model.text.companions import TOKENIZER, TOKENIZER_CONFIG, Companions, json_companion
from launchyard.model.text.find import TAKEN, find_carrier, read_tokenizer_files
from launchyard.model.text.special_tokens import SpecialTokens, end_of_text, named_end
from launchyard.model.text.templates import read_templates, with_templates
from launchyard.model.text.tokenizer_json import byte_characters
from launchyard.model.weights.source import find_source
from launchyard.storage.files import normal

# Ids before new ones that a stream decodes with them.
CONTEXT = 8


class Tokenizer:
    """`path` is the path or fsspec URL of the file with the vocabulary, or of what `companions` came from."""

    def __init__(self, path: str, companions: Companions | None = None) -> None:
        self.path = path
        self._given = companions

    @cached_property
    def companions(self) -> Companions:
        """The tokenizer.json and what lies beside it."""
        return read_tokenizer_files(self.path) if self._given is None else self._given

    @classmethod
    def load(cls, source: str) -> Tokenizer:
        """From a file with a vocabulary, a folder with one, or a model; FileNotFoundError says what is taken."""
        where = normal(source)
        found = find_carrier(where) or _of_model(where)
        if found is None:
            raise FileNotFoundError(f"{source}: no tokenizer there, nor in tokenizer/ of its run; give {TAKEN}")
        return cls(found)

    @cached_property
    def raw(self) -> Any:
        """The `tokenizers.Tokenizer`; ValueError if the file is none."""
        import tokenizers

        try:
            raw = tokenizers.Tokenizer.from_str(self.companions[TOKENIZER].decode())
        except FileNotFoundError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{self.path} is no tokenizer.json that can be read: {error}") from error
        raw.no_truncation()  # either, if the file asks for it, would silently change the text
        raw.no_padding()
        return raw

    @cached_property
    def eos_id(self) -> int | None:
        """The id that ends a text; None if neither tokenizer_config.json nor the vocabulary names it."""
        token = end_of_text(self.companions, self.raw)
        return None if token is None else int(self.raw.token_to_id(token))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id, special ones included."""
        return dict(self.raw.get_vocab(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer can give, special ones included."""
        return int(self.raw.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """`special`: with the tokens that the tokenizer adds, such as Llama's begin-of-text."""
        return self.encode_each([text], special=special)[0]

    def encode_each(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Ids of several texts, each for itself, on all threads that the tokenizers package may use.

        Other threads of Python go on meanwhile, which they would not beside its `encode`. ValueError for a text that
        is not Unicode.
        """
        try:
            return [list(one.ids) for one in self.raw.encode_batch_fast(list(texts), add_special_tokens=special)]
        except TypeError:
            for text in texts:
                refuse_halves(text)
            raise

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return str(self.raw.decode(list(ids), skip_special_tokens=skip_special))

    def token_bytes(self, token: int) -> bytes:
        """What a token adds in the middle of a text; of a special token its name, of an id without a token nothing."""
        name = self.raw.id_to_token(token)
        if name is None:
            return b""
        if token in self._added:
            return str(name).encode()
        if self._is_byte_level:
            return bytes(map(self._byte_of_letter.__getitem__, name))
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return str(name).replace("\u2581", " ").encode()

    def byte_lengths(self, n: int) -> list[int] | None:
        """Bytes of the text that each of n ids stands for: none of control tokens, and of ids without a token.

        None if the text of a token depends on those around it, as in WordPiece.
        """
        cut = type(self.raw.model).__name__ in ("BPE", "Unigram") and any("\u2581" in one for one in self.vocabulary)
        if not (self._is_byte_level or cut):
            return None
        control = {token for token, one in self.raw.get_added_tokens_decoder().items() if one.special}
        return [0 if token in control else len(self.token_bytes(token)) for token in range(n)]

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.raw.get_added_tokens_decoder())

    @cached_property
    def _byte_of_letter(self) -> dict[str, int]:
        return {letter: byte for byte, letter in enumerate(byte_characters())}

    @cached_property
    def _is_byte_level(self) -> bool:
        """True if each letter of a token stands for a byte, as in GPT-2."""
        return b'"ByteLevel"' in self.companions[TOKENIZER]

    def stream(self, context: Sequence[int] = (), *, skip_special: bool = True) -> TextStream:
        """Text of ids that come one by one, after those in `context`."""
        return TextStream(self, context, skip_special=skip_special)


class TextStream:
    """Gives text as soon as it is sure: never half a character, and never a lost space.

    Many decoders strip the first space of their input, so new ids are decoded together with some before them.
    All pieces joined are the text of all ids after `context`.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), *, skip_special: bool = True) -> None:
        self._decode = partial(tokenizer.decode, skip_special=skip_special)
        self._ids = list(context[-CONTEXT:])
        self._emitted = len(self._decode(self._ids))  # characters of the text of _ids that were given

    def add(self, token: int) -> str:
        """The new text that is sure now, often empty in the middle of a character."""
        self._ids.append(token)
        text = self._decode(self._ids)
        sure = text.rstrip("\ufffd")  # the next id may decide the last character
        new_text = sure[self._emitted :]
        self._emitted = max(len(sure), self._emitted)
        if len(sure) == len(text) and len(self._ids) > 4 * CONTEXT:
            self._ids = self._ids[-CONTEXT:]
            self._emitted = len(self._decode(self._ids))
        return new_text

    def flush(self) -> str:
        """Returns the text that is still pending, at the end."""
        text = self._decode(self._ids)
        new_text = text[self._emitted :]
        self._emitted = len(text)
        return new_text


class StopStrings:
    """Cuts a stream of text where the first of some strings begins; holds back a possible beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._pending = ""
        self.found = False

    def add(self, text: str) -> str:
        self._pending += text
        at = min((where for where in map(self._pending.find, self._stops) if where >= 0), default=None)
        if at is not None:
            self.found = True
            sure = self._pending[:at]
            self._pending = ""
            return sure
        keep = max((_overlap(self._pending, stop) for stop in self._stops), default=0)
        cut = len(self._pending) - keep
        sure = self._pending[:cut]
        self._pending = self._pending[cut:]
        return sure

    def flush(self) -> str:
        sure = self._pending
        self._pending = ""
        return sure


def exported(companions: Companions, *, max_seq_len: int) -> dict[str, bytes]:
    """The files of a Hugging Face folder: all that was there, with a tokenizer_config.json that opens it.

    The class is PreTrainedTokenizerFast whatever it was: it takes the file as it is, where the classes of a model
    rebuild the pipeline in their own way (transformers 5 loses the splitting of digits with GPT2Tokenizer).
    """
    if TOKENIZER not in companions:
        return dict(companions)
    settings = {key: value for key, value in json_companion(companions, TOKENIZER_CONFIG).items() if key != "auto_map"}
    tokens = SpecialTokens(companions)
    if named_end(companions) is None and (ends := list(tokens.ends())):
        settings["eos_token"] = tokens.token_of(ends[0])
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.setdefault("model_max_length", max_seq_len)
    raw = (json.dumps(settings, indent=2) + "\n").encode()
    return with_templates({**companions, TOKENIZER_CONFIG: raw}, read_templates(companions))


def refuse_halves(text: str) -> None:
    """ValueError for half a surrogate pair: JSON may hold one, and Python makes them of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text is not Unicode at character {error.start + 1}; was it written as UTF-8?") from None


def _of_model(where: str) -> str | None:
    try:
        return find_source(where).tokenizer
    except FileNotFoundError:
        return None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
