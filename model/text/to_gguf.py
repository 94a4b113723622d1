"""The `tokenizer.*` keys of a GGUF file from the tokenizer.json and the files beside it: the inverse of from_gguf."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, NotRequired, TypedDict, cast

from launchyard.model.text.companions import GENERATION, TOKENIZER, TOKENIZER_CONFIG, Companions, json_companion
from launchyard.model.text.from_gguf import TEMPLATE, TOKENIZER_KEYS
from launchyard.model.text.splits import pre_of
from launchyard.model.text.tokenizer_json import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

_Part = Literal["normalizer", "pre_tokenizer"]


class GgufValue(NamedTuple):
    """`kind`: the name of a GGUFValueType; of a list, that of its items."""

    kind: str
    value: object


class _Step(TypedDict, total=False):
    """Of a normalizer or pre-tokenizer; `normalizers` and `pretokenizers` are the steps of a sequence."""

    type: str
    pattern: dict[str, str]
    content: str
    prepend_scheme: str
    precompiled_charsmap: str
    normalizers: list[_Step]
    pretokenizers: list[_Step]


class _Bpe(TypedDict, total=False):
    type: str
    vocab: dict[str, int]
    merges: list[str | list[str]]
    unk_token: str | None
    ignore_merges: bool
    byte_fallback: bool


class _Unigram(TypedDict):
    vocab: list[tuple[str, float]]
    unk_id: int | None


class _Added(TypedDict):
    id: int
    content: str
    special: NotRequired[bool]


class _Content(TypedDict):
    """Of a tokenizer.json."""

    model: _Bpe
    added_tokens: NotRequired[list[_Added] | None]
    normalizer: NotRequired[_Step | None]
    pre_tokenizer: NotRequired[_Step | None]


class _Tokens(NamedTuple):
    """Of the rows of a vocabulary, in their order."""

    texts: list[str]
    types: list[int]


def gguf_tokenizer_keys(companions: Companions, n_rows: int) -> dict[str, GgufValue]:
    """Key -> value of a file whose embedding has `n_rows` rows; none without a tokenizer.json.

    ValueError if the rows are fewer than the ids, or where llama.cpp would give other ids than this tokenizer.
    """
    if TOKENIZER not in companions:
        return {}
    content = cast("_Content", json_companion(companions, TOKENIZER))
    engine = _engine(companions[TOKENIZER])
    keys = _model_keys(content, engine, n_rows)
    keys |= _special_keys(companions, engine)
    return keys | _template_keys(companions)


def _model_keys(content: _Content, engine: Engine, n_rows: int) -> dict[str, GgufValue]:
    model = content["model"]
    kind = model.get("type")
    if kind == "Unigram":
        return _unigram_keys(content, n_rows)
    if kind not in ("BPE", None) or "merges" not in model:
        raise ValueError(f"{TOKENIZER} is a {kind} tokenizer; GGUF files hold BPE and Unigram")
    for knob in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if value := dict(model).get(knob):
            raise ValueError(f"{TOKENIZER} has {knob} {value!r}, which GGUF files cannot say")
    byte_level = any(step.get("type") == "ByteLevel" for step in _steps(content, "pre_tokenizer"))
    return _byte_level_keys(content, engine, n_rows) if byte_level else _sentencepiece_keys(content, n_rows)


def _byte_level_keys(content: _Content, engine: Engine, n_rows: int) -> dict[str, GgufValue]:
    """NFC, which llama.cpp lacks, is dropped as its own converter does: ids differ only on decomposed text."""
    _only(content, "normalizer", ("NFC",))
    model = content["model"]
    ignore_merges = bool(model.get("ignore_merges"))
    pre = pre_of(engine, ignore_merges=ignore_merges, all_reachable=lambda: _all_reachable(content))
    tokens = _tokens(content, n_rows)
    return {
        f"{TOKENIZER_KEYS}model": GgufValue("STRING", "gpt2"),
        f"{TOKENIZER_KEYS}pre": GgufValue("STRING", pre),
        **_token_keys(tokens),
        f"{TOKENIZER_KEYS}merges": GgufValue("ARRAY STRING", _merges(model)),
    }


def _sentencepiece_keys(content: _Content, n_rows: int) -> dict[str, GgufValue]:
    """As scores: a token's is the lower, the later the merges form it."""
    steps = _only(content, "normalizer", ("Replace", "Prepend"))
    model = content["model"]
    spaces = [step for step in steps if step["type"] == "Replace"]
    if [(step["pattern"], step["content"]) for step in spaces] != [({"String": " "}, SPACE)]:
        raise ValueError(
            f"{TOKENIZER} is a BPE over neither bytes nor sentencepiece's {SPACE}; GGUF files hold only those"
        )
    vocab = model["vocab"]
    scores = _merge_scores(vocab, [_pair(merge) for merge in model["merges"]])
    tokens = _tokens(content, n_rows, unknown=model.get("unk_token"))
    return {
        f"{TOKENIZER_KEYS}model": GgufValue("STRING", "llama"),
        f"{TOKENIZER_KEYS}pre": GgufValue("STRING", "default"),
        **_token_keys(tokens),
        f"{TOKENIZER_KEYS}scores": GgufValue("ARRAY FLOAT32", [scores.get(text, 0.0) for text in tokens.texts]),
        f"{TOKENIZER_KEYS}add_space_prefix": GgufValue("BOOL", any(step["type"] == "Prepend" for step in steps)),
    }


def _merge_scores(vocab: Mapping[str, int], merges: list[tuple[str, str]]) -> dict[str, float]:
    """ValueError if joining by score would join other tokens than these merges do."""
    scores: dict[str, float] = {}
    last = None
    for number, (left, right) in enumerate(merges):
        token = left + right
        if token != last and token in scores:
            break  # formed early in one way and late in another: one score cannot say it
        scores.setdefault(token, -float(number + 1))
        last = token
    else:
        known = set(merges)
        ways = ((token[:cut], token[cut:]) for token in scores for cut in range(1, len(token)))
        if all(way in known for way in ways if way[0] in vocab and way[1] in vocab):
            return scores
    raise ValueError(
        f"the merges of {TOKENIZER} follow from no scores, which is what GGUF files hold of a BPE with sentencepiece's "
        "spaces, so that a GGUF file of it would give other ids; write a Hugging Face folder with --to hf instead"
    )


def _unigram_keys(content: _Content, n_rows: int) -> dict[str, GgufValue]:
    steps = _only(content, "normalizer", ("Precompiled", "Strip", "Replace"))
    spaces = _only(content, "pre_tokenizer", ("Metaspace", "WhitespaceSplit"))
    model = cast("_Unigram", content["model"])
    vocab = model["vocab"]
    unknown = model.get("unk_id")
    tokens = _tokens(content, n_rows, unknown=None if unknown is None else vocab[unknown][0])
    scores = [float(score) for _, score in vocab]
    charsmap = next((b64decode(step["precompiled_charsmap"]) for step in steps if step["type"] == "Precompiled"), b"")
    replaced = [step["pattern"] for step in steps if step["type"] == "Replace"]
    if any(pattern != {"Regex": " {2,}"} for pattern in replaced):
        raise ValueError(f"the normalizer of {TOKENIZER} replaces {replaced[0]}, which llama.cpp cannot do")
    squeeze = bool(replaced) or any(step["type"] == "WhitespaceSplit" for step in spaces)
    prefix = any(step.get("prepend_scheme", "always") != "never" for step in spaces if step["type"] == "Metaspace")
    keys = {
        f"{TOKENIZER_KEYS}model": GgufValue("STRING", "t5"),
        f"{TOKENIZER_KEYS}pre": GgufValue("STRING", "default"),
        **_token_keys(tokens),
        f"{TOKENIZER_KEYS}scores": GgufValue("ARRAY FLOAT32", scores + [0.0] * (n_rows - len(scores))),
        f"{TOKENIZER_KEYS}add_space_prefix": GgufValue("BOOL", prefix),
        f"{TOKENIZER_KEYS}remove_extra_whitespaces": GgufValue("BOOL", squeeze),
    }
    return keys | (
        {f"{TOKENIZER_KEYS}precompiled_charsmap": GgufValue("ARRAY UINT8", list(charsmap))} if charsmap else {}
    )


def _tokens(content: _Content, n_rows: int, *, unknown: str | None = None) -> _Tokens:
    """Rows without a token are [PADn] of type unused."""
    ids = _ids(content["model"]["vocab"])
    added = {token["content"]: token for token in content.get("added_tokens") or []}
    ids |= {text: token["id"] for text, token in added.items()}
    if max(ids.values()) >= n_rows:
        raise ValueError(f"{TOKENIZER} has ids up to {max(ids.values())}, the model {n_rows} rows")
    texts = [f"[PAD{row}]" for row in range(n_rows)]
    types = [UNUSED] * n_rows
    bytes_of_pieces = {f"<0x{byte:02X}>" for byte in range(256)} if content["model"].get("byte_fallback") else set()
    for text, number in ids.items():
        texts[number] = text
        types[number] = BYTE if text in bytes_of_pieces else NORMAL
        if text in added:
            types[number] = CONTROL if added[text].get("special") else USER_DEFINED
        if text == unknown:
            types[number] = UNKNOWN
    return _Tokens(texts, types)


def _ids(vocab: dict[str, int] | list[tuple[str, float]]) -> dict[str, int]:
    """Of a BPE, or of a Unigram, whose ids are the places of its pieces."""
    return dict(vocab) if isinstance(vocab, dict) else {text: number for number, (text, _) in enumerate(vocab)}


def _token_keys(tokens: _Tokens) -> dict[str, GgufValue]:
    return {
        f"{TOKENIZER_KEYS}tokens": GgufValue("ARRAY STRING", tokens.texts),
        f"{TOKENIZER_KEYS}token_type": GgufValue("ARRAY INT32", tokens.types),
    }


def _special_keys(companions: Companions, engine: Engine) -> dict[str, GgufValue]:
    """Ids of special tokens, and whether the tokenizer itself puts begin and end around a text."""
    settings = json_companion(companions, TOKENIZER_CONFIG)
    rules = json_companion(companions, GENERATION)
    ids = {role: _named_id(settings.get(f"{role}_token"), engine) for role in ("bos", "eos", "unk", "pad", "mask")}
    for role in ("bos", "pad"):
        ids[role] = ids[role] if ids[role] is not None else _first(rules.get(f"{role}_token_id"))
    before, after = _around(engine)
    ids["bos"] = before if before is not None else ids["bos"]
    ends = rules.get("eos_token_id")
    listed = list(dict.fromkeys([ids["eos"], *(ends if isinstance(ends, list) else [ends])]))
    several = dict(zip(("eos", "eot", "eom"), [end for end in listed if isinstance(end, int)], strict=False))
    ids |= several
    if after is not None and after != ids.get("eos"):
        raise ValueError(f"{TOKENIZER} ends every text with id {after}, which is not its eos_token ({ids.get('eos')})")
    written = {"unk": "unknown", "pad": "padding"}
    keys = {
        f"{TOKENIZER_KEYS}{written.get(role, role)}_token_id": GgufValue("UINT32", number)
        for role, number in ids.items()
        if number is not None
    }
    keys[f"{TOKENIZER_KEYS}add_bos_token"] = GgufValue("BOOL", before is not None)
    keys[f"{TOKENIZER_KEYS}add_eos_token"] = GgufValue("BOOL", after is not None)
    return keys


def _around(engine: Engine) -> tuple[int | None, int | None]:
    """Ids that the tokenizer puts before and after a text. ValueError if there are more than one of either."""
    plain = engine.encode("a", add_special_tokens=False).ids
    whole = engine.encode("a", add_special_tokens=True).ids
    at = next(at for at in range(len(whole) + 1) if whole[at : at + len(plain)] == plain)
    before = whole[:at]
    after = whole[at + len(plain) :]
    if len(before) > 1 or len(after) > 1:
        raise ValueError(
            f"{TOKENIZER} puts {before} before and {after} after a text; GGUF files hold one token of each"
        )
    return _first(before), _first(after)


def _template_keys(companions: Companions) -> dict[str, GgufValue]:
    templates = _templates(companions)
    more = sorted(name for name in templates if name != "default")
    keys = {
        TEMPLATE if name == "default" else f"{TEMPLATE}.{name}": GgufValue("STRING", text)
        for name, text in templates.items()
    }
    return keys | ({"tokenizer.chat_templates": GgufValue("ARRAY STRING", more)} if more else {})


def _templates(companions: Companions) -> dict[str, str]:
    given = json_companion(companions, TOKENIZER_CONFIG).get("chat_template")
    found = {"default": given} if isinstance(given, str) else {}
    if isinstance(given, list):
        found |= {one["name"]: one["template"] for one in given}
    for name, raw in companions.items():
        if name.endswith(".jinja"):
            key = name.rpartition("/")[2].removesuffix(".jinja")
            found["default" if name == "chat_template.jinja" else key] = raw.decode()
    return found


def _all_reachable(content: _Content) -> bool:
    """Whether the merges alone give every token of a BPE."""
    from tokenizers import Tokenizer

    model = {**content["model"], "ignore_merges": False}
    bare = Tokenizer.from_str(json.dumps({"version": "1.0", "model": model})).model
    added = {token["content"] for token in content.get("added_tokens") or []}
    words = [text for text in content["model"]["vocab"] if text not in added]
    return all(len(bare.tokenize(word)) == 1 for word in words)


def _engine(raw: bytes) -> Engine:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(raw.decode())
    except Exception as error:  # the package raises bare Exceptions
        raise ValueError(f"{TOKENIZER} cannot be read by the tokenizers package: {error}") from error


def _steps(content: _Content, part: _Part) -> list[_Step]:
    """A normalizer or pre-tokenizer as a flat list of its steps."""
    step = content.get(part)
    return _flat(step) if step else []


def _flat(step: _Step) -> list[_Step]:
    parts = step.get("normalizers") or step.get("pretokenizers")
    return [step] if parts is None else [flat for part in parts for flat in _flat(part)]


def _only(content: _Content, part: _Part, kinds: tuple[str, ...]) -> list[_Step]:
    steps = _steps(content, part)
    if strange := [step["type"] for step in steps if step["type"] not in kinds]:
        raise ValueError(f"the {part} of {TOKENIZER} has a step {strange[0]}, which llama.cpp cannot do")
    return steps


def _merges(model: _Bpe) -> list[str]:
    return [" ".join(_pair(merge)) for merge in model["merges"]]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _named_id(token: object, engine: Engine) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return engine.token_to_id(text) if isinstance(text, str) else None


def _first(ids: object) -> int | None:
    listed = ids if isinstance(ids, list) else [ids]
    return next((number for number in listed if isinstance(number, int)), None)
