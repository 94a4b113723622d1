"""Finds the tokenizer in a folder or file, whatever its format, as the files of a Hugging Face folder.

tokenizer.json is taken as it is; one is made of sentencepiece, tiktoken and GGUF files, and of vocab.json with
merges.txt. Light.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatch

from launchyard.model.text.companions import (
    ADDED_TOKENS,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Companions,
    companions_beside,
    json_companion,
    read_companions,
)
from launchyard.model.text.sentencepiece_file import is_sentencepiece, of_sentencepiece
from launchyard.model.text.splits import WORD_SPLITS
from launchyard.model.text.tiktoken_file import of_tiktoken
from launchyard.model.text.tokenizer_json import AddedToken, Ends, byte_level
from launchyard.storage import files
from launchyard.storage.errors import pointer_fault
from launchyard.storage.files import exists, listdir, normal

VOCAB = "vocab.json"
MERGES = "merges.txt"
GGUF = ".gguf"
# What a message says is taken.
TAKEN = (
    f"a {TOKENIZER}, tokenizer.model or *.tiktoken file or a folder with one, a folder with {VOCAB} and {MERGES}, or a "
    f"*{GGUF} file"
)
# Patterns of file names in the order of preference, after tokenizer.json.
CARRIERS = (VOCAB, "tokenizer.model", "*.tiktoken", "spiece.model", "sentencepiece.bpe.model", "*.model")
_PRES = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2", "None": "gpt-2"}  # tokenizer_class -> its regex


def find_carrier(place: str) -> str | None:
    """The file of a vocabulary that a file or folder, local or URL, means; a tokenizer.json may have any name."""
    where = normal(place)
    name = where.rpartition("/")[2]
    is_carrier = name.endswith((".json", GGUF)) or any(fnmatch(name, pattern) for pattern in CARRIERS)
    return carrier_in(where) or (where if is_carrier and _is_file(where) else None)


def _is_file(path: str) -> bool:
    return exists(path) and not os.path.isdir(path) and not listdir(path)


def carrier_in(folder: str) -> str | None:
    """The file of the vocabulary in a folder, a tokenizer.json before others; None without one."""
    names = listdir(folder)
    found = (name for pattern in (TOKENIZER, *CARRIERS) for name in names if fnmatch(name, pattern))
    usable = (name for name in found if name != VOCAB or MERGES in names)
    return next((f"{folder}/{name}" for name in usable), None)


def read_tokenizer_files(path: str) -> dict[str, bytes]:
    """tokenizer.json and what lies beside it, of the file that holds the vocabulary. FileNotFoundError without it.

    ValueError names the file if it cannot be read or turned into a tokenizer.json.
    """
    folder, _, name = path.rpartition("/")
    if name.endswith(GGUF):
        return _of_gguf(path)
    if name.endswith(".json") and name != VOCAB:
        found = companions_beside(path)
        _refuse_pointer(path, found[TOKENIZER])
        return found
    convert = _of_vocab_and_merges if name == VOCAB else _of_model_file
    beside = read_companions(folder or ".")
    beside.pop(TOKENIZER, None)  # of another vocabulary, perhaps
    raw = files.read(path)
    _refuse_pointer(path, raw)
    try:
        return convert(raw, beside, folder or ".")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _refuse_pointer(path: str, raw: bytes) -> None:
    if fault := pointer_fault(path, raw[:64]):
        raise ValueError(fault)


def _of_gguf(path: str) -> dict[str, bytes]:
    from launchyard.model.weights.gguf_header import gguf_companions

    found = gguf_companions(path)
    if TOKENIZER not in found:
        raise ValueError(f"{path} has no tokenizer inside")
    return found


def _of_model_file(raw: bytes, beside: Companions, folder: str) -> dict[str, bytes]:
    """`tokenizer.model` is sentencepiece's or, of Llama 3, tiktoken's."""
    added = added_beside(beside)
    if is_sentencepiece(raw):
        return {**beside, TOKENIZER: of_sentencepiece(raw, json_companion(beside, TOKENIZER_CONFIG), added)}
    content, encoding = of_tiktoken(raw, added)
    named = {"eos_token": encoding.eos, **({"bos_token": encoding.bos} if encoding.bos else {})}
    return _configured({**beside, TOKENIZER: content}, named)


def _of_vocab_and_merges(raw: bytes, beside: Companions, folder: str) -> dict[str, bytes]:
    """GPT-2's two files; which regex cuts text follows from tokenizer_class."""
    settings = json_companion(beside, TOKENIZER_CONFIG)
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if kind not in _PRES or settings.get("add_prefix_space"):
        what = "add_prefix_space" if kind in _PRES else f"tokenizer_class {kind}"
        raise ValueError(f"{MERGES} of {what} is not supported ({', '.join(_PRES)}); give a tokenizer.json")
    vocab = json.loads(raw)
    lines = files.read(f"{folder}/{MERGES}").decode().splitlines()
    merges = [_merge(line) for line in lines if line and not line.startswith("#version")]
    added = added_beside(beside) | _special_in(vocab, beside)
    plain = {token: number for token, number in vocab.items() if token not in added}
    splits = WORD_SPLITS[_PRES[kind]]
    ends = Ends(bos=_begin(settings, added))
    return _configured({**beside, TOKENIZER: byte_level(plain, merges, list(added.values()), splits, ends)}, {})


def _begin(settings: Mapping[str, object], added: Mapping[str, AddedToken]) -> AddedToken | None:
    """The bos_token where add_bos_token says that it begins every text."""
    return added.get(_text_of(settings.get("bos_token"))) if settings.get("add_bos_token") else None


def added_beside(beside: Companions) -> dict[str, AddedToken]:
    """Tokens with their ids that tokenizer_config.json or added_tokens.json add to a vocabulary, by text."""
    listed = {text: AddedToken(text, int(number)) for text, number in _ids(beside).items()}
    decoder = json_companion(beside, TOKENIZER_CONFIG).get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        listed[token["content"]] = AddedToken(token["content"], int(number), special=bool(token.get("special")))
    return listed


def _ids(beside: Companions) -> dict[str, int]:
    return {text: number for text, number in json_companion(beside, ADDED_TOKENS).items() if isinstance(number, int)}


def _special_in(vocab: Mapping[str, int], beside: Companions) -> dict[str, AddedToken]:
    """Tokens of the vocabulary itself that a file beside it calls special, and GPT-2's end of text."""
    named: list[object] = ["<|endoftext|>"]
    for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        content = json_companion(beside, name)
        named += [content.get(f"{role}_token") for role in ("bos", "eos", "unk", "pad")]
    return {text: AddedToken(text, vocab[text]) for text in map(_text_of, named) if text in vocab}


def _text_of(token: object) -> str:
    """Of a token that is written as its text or with options; empty for none."""
    return str((token.get("content") if isinstance(token, dict) else token) or "")


def _configured(companions: Companions, defaults: Mapping[str, object]) -> dict[str, bytes]:
    """With a tokenizer_config.json of a class that takes tokenizer.json as it is."""
    settings = {**defaults, **json_companion(companions, TOKENIZER_CONFIG)}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    return {**companions, TOKENIZER_CONFIG: (json.dumps(settings, indent=2) + "\n").encode()}


def _merge(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    return left, right
