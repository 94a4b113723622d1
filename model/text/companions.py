"""What stands beside the weights of a model: its tokenizer, chat templates, rules of generation and licence.

Kept whole and unchanged from an import through data, runs and checkpoints to an export. Light; builds no tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from launchyard.storage import files
from launchyard.storage.files import listdir, normal

# Name of a file as in a Hugging Face folder -> its content.
Companions = Mapping[str, bytes]
Json = dict[str, object]

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
GENERATION = "generation_config.json"
OF_TOKENIZER = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
_NAMED = (*OF_TOKENIZER, CHAT_TEMPLATE, GENERATION)
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|COPYING)([-._].*)?", re.IGNORECASE)
_TEMPLATE = re.compile(rf"{MORE_TEMPLATES}/[^/]+\.jinja")


def is_companion(name: str) -> bool:
    return name in _NAMED or is_licence(name) or _TEMPLATE.fullmatch(name) is not None


def is_licence(name: str) -> bool:
    return _LICENCE.fullmatch(name) is not None


def is_template(name: str) -> bool:
    return name == CHAT_TEMPLATE or _TEMPLATE.fullmatch(name) is not None


def read_companions(folder: str) -> dict[str, bytes]:
    """Those in a local folder or fsspec URL, by name; none if there is no such folder."""
    where = normal(folder)
    names = listdir(where)
    if MORE_TEMPLATES in names:
        names += [f"{MORE_TEMPLATES}/{name}" for name in listdir(f"{where}/{MORE_TEMPLATES}")]
    return {name: files.read(f"{where}/{name}") for name in names if is_companion(name)}


def companions_beside(tokenizer: str) -> dict[str, bytes]:
    """A tokenizer.json, whatever its own name, and the companions in its folder. FileNotFoundError without it."""
    raw = files.read(tokenizer)
    return {**read_companions(tokenizer.rpartition("/")[0] or "."), TOKENIZER: raw}


def write_companions(companions: Companions, folder: str, *, sync: bool = False) -> None:
    """Each into a local folder or fsspec URL; files of these names are replaced, tokenizer.json last.

    ValueError for a name that is none of a companion.
    """
    if strange := [name for name in companions if not is_companion(name)]:
        raise ValueError(f"{strange[0]!r} is no file that belongs beside weights")
    for name in sorted(companions, key=lambda name: name == TOKENIZER):
        files.write(f"{normal(folder)}/{name}", companions[name], sync=sync)


def json_companion(companions: Companions, name: str) -> Json:
    """The content of a JSON file among them; empty without it. ValueError if it holds no JSON object."""
    if name not in companions:
        return {}
    try:
        value = json.loads(companions[name])
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds no JSON object")
    return value
