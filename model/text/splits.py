"""How a byte-level BPE cuts text before it merges: the regexes behind each `tokenizer.ggml.pre` of a GGUF file.

The name is all that a GGUF file has of them. They are written as the tokenizer.json files of those models have them.
Light: only the inverse needs the tokenizers package.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from launchyard.model.text.companions import Json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # can't, we'LL
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SYMBOLS_AND_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

LLAMA3 = rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
QWEN2 = rf"{_SHORT}|{_WORDS}|\p{{N}}|{_SYMBOLS}|{_SPACES}"


def _by_case(lead: str, upper: str, lower: str, suffix: str) -> str:
    """Words that end where a new one begins with a capital."""
    return f"{lead}{upper}*{lower}+{suffix}|{lead}{upper}+{lower}*{suffix}"


_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CASED = _by_case(_LEAD, _UPPER, _LOWER, f"{_SHORT}?")
O200K = rf"{_CASED}|\p{{N}}{{1,3}}|{_SYMBOLS_AND_SLASH}|{_SPACES}"
_HAN = r"&&[^\p{Han}]]"
_KIMI_WORDS = _by_case(_LEAD, _UPPER[:-1] + _HAN, _LOWER[:-1] + _HAN, f"{_SHORT}?")
_PUNCTUATED = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_CJK_AND_MORE = "[一-龥ࠀ-一가-퟿]+"
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_THREES = r"\d{1,3}(?=(?:\d{3})*\b)"
# Letters with a case, as DeepSeek LLM lists them.
_DEEPSEEK_LETTERS = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
BYTES: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2_BYTES: Json = {**BYTES, "use_regex": True}


def split_step(regex: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _digits(*, one_by_one: bool) -> Json:
    return {"type": "Digits", "individual_digits": one_by_one}


@dataclass(frozen=True, eq=False)
class Splits:
    """`ignore_merges`: a word that is a token is that token, whatever the merges say; `add_bos`: where no key says."""

    steps: tuple[Json, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    @property
    def pre_tokenizer(self) -> Json:
        return {"type": "Sequence", "pretokenizers": list(self.steps)}


def _regexes(*regexes: str, ignore_merges: bool = False, add_bos: bool = False) -> Splits:
    return Splits((*map(split_step, regexes), BYTES), ignore_merges=ignore_merges, add_bos=add_bos)


# Names, those first that an export writes, with what they mean.
_TABLE: tuple[tuple[str, Splits], ...] = (
    (
        "gpt-2 mpt olmo exaone4 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe "
        "gigachat a.x-4.0 mellum modern-bert jais trillion granite-docling",
        Splits((_GPT2_BYTES,)),
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        Splits((_digits(one_by_one=True), _GPT2_BYTES)),
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        _regexes(LLAMA3, ignore_merges=True, add_bos=True),
    ),
    ("smaug-bpe dbrx chatglm-bpe", _regexes(LLAMA3)),
    ("glm4 glm5", _regexes(LLAMA3, ignore_merges=True)),
    (
        "qwen2 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2",
        _regexes(QWEN2),
    ),
    (
        "qwen35",
        _regexes(
            rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
        ),
    ),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", _regexes(O200K)),
    (
        "tekken",
        _regexes(
            rf"{_by_case(_LEAD, _UPPER, _LOWER, '')}|\p{{N}}|{_SYMBOLS_AND_SLASH}|{_SPACES}",
            ignore_merges=True,
            add_bos=True,
        ),
    ),
    ("tiny_aya cohere2moe", _regexes(_THREES, O200K)),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        _regexes(r"\p{N}{1,3}", _CJK, rf"{_PUNCTUATED}[\r\n]*|{_SPACES}"),
    ),
    (
        "deepseek-llm",
        _regexes(
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _CJK_AND_MORE,
            r"\p{N}+",
        ),
    ),
    ("deepseek-coder", _regexes(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_AND_MORE, r"\p{N}")),
    (
        "falcon",
        Splits(
            (
                {"type": "Punctuation", "behavior": "Contiguous"},
                _GPT2_BYTES,
                _digits(one_by_one=False),
                split_step("[0-9][0-9][0-9]"),
            )
        ),
    ),
    ("spark2_5", _regexes(r"\p{N}{1,3}", _CJK, rf"{_PUNCTUATED}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    (
        "youtu",
        _regexes(
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            rf"{_CASED}|\p{{N}}|{_SYMBOLS_AND_SLASH}|{_SPACES}",
            ignore_merges=True,
        ),
    ),
    ("poro-chat bloom gpt3-finnish", _regexes(_BLOOM)),
    ("viking", _regexes(_BLOOM, r"\p{N}")),
    (
        "bailingmoe bailingmoe2 llada-moe",
        _regexes(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
            r"|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
    ),
    ("seed-coder", _regexes(rf"{_SHORT}|{_WORDS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}")),
    ("ufakzeka", _regexes(rf"{_WORDS}|\p{{N}}|{_SYMBOLS}|{_SPACES}")),
    (
        "exaone-moe",
        _regexes(
            rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
    ),
    ("laguna", _regexes(r"[^\n]+|[\n]+", QWEN2)),
    (
        "minicpm5",
        _regexes(r"\p{N}{1,3}", rf"{_SHORT}|{_WORDS}|\p{{N}}+|{_SYMBOLS}|{_SPACES}", ignore_merges=True),
    ),
    (
        "jais-2",
        _regexes(
            rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS}|\s*[\r\n]+"
            + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
            + r"|\s{1}"
        ),
    ),
    ("superbpe", _regexes(r"\p{N}+", r"\d{1,3}(?=(?:\d{3})*(?!\d))")),
    ("afmoe", _regexes(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", _ASIAN, rf"{_PUNCTUATED}[\r\n]*|{_SPACES}")),
    ("kimi-k2", _regexes(rf"\p{{Han}}+|{_KIMI_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}")),
    (
        "chameleon",
        Splits(
            (
                *map(split_step, (r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )")),
                *map(split_step, (r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]")),
                _GPT2_BYTES,
            ),
            add_bos=True,
        ),
    ),
    ("default", _regexes(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
)
WORD_SPLITS = {name: splits for names, splits in _TABLE for name in names.split()}


def splits_of(pre: str) -> Splits:
    """What a `tokenizer.ggml.pre` means; ValueError that names one that is unknown."""
    if pre not in WORD_SPLITS:
        raise ValueError(
            f"tokenizer.ggml.pre is {pre!r}, whose way to cut text is not known here; another would give other ids in "
            f"silence. Known: {' '.join(sorted(WORD_SPLITS))}. Give the model's own tokenizer.json instead"
        )
    return WORD_SPLITS[pre]


def pre_of(engine: Engine, *, ignore_merges: bool, all_reachable: Callable[[], bool]) -> str:
    """The first `tokenizer.ggml.pre` that cuts text as a tokenizer does: found by trying both on many short texts.

    `all_reachable` tells whether the merges give every token, so that `ignore_merges` makes no difference. ValueError
    if there is none.
    """
    cuts = {text: _cut(engine, text) for text in _probes()}
    same = [
        (names.split()[0], splits)
        for names, splits in _TABLE
        if all(_cut(_engine(splits), text) == cut for text, cut in cuts.items())
    ]
    for name, splits in same:
        if splits.ignore_merges == ignore_merges:
            return name
    if same and all_reachable():
        return same[0][0]
    why = f" (as {same[0][0]}, but its merges do not give all its tokens)" if same else ""
    raise ValueError(
        f"no tokenizer.ggml.pre of llama.cpp cuts text as this tokenizer.json does{why}, so that a GGUF file of it "
        "would give other ids; write a Hugging Face folder with --to hf instead"
    )


@cache
def _engine(splits: Splits) -> Engine:
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps({"version": "1.0", "pre_tokenizer": splits.pre_tokenizer, "model": model}))


def _cut(engine: Engine, text: str) -> object:
    return None if engine.pre_tokenizer is None else engine.pre_tokenizer.pre_tokenize_str(text)


def _probes() -> Iterator[str]:
    """Texts that tell the ways apart: runs of each kind of character, and short mixtures of all kinds."""
    kinds = ["a", "B", "é", "Ω", "ǅ", "ʰ", "\u0301", "我", "あ", "가", "ㄅ", "ก", "1", "23", "٣", "²", "Ⅷ"]
    kinds += [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", ".", ",", "(", "|", "'", "$", "+", "`", "/", "_", "¿"]
    kinds += ["…", "€", "🎉", "'s", "'LL", "'ſ", "؟", "。", "\u200d", "=", "-", "<", "K", "<sentinel:3>", "IMGIMGABZ"]
    yield from (kind * n for kind in kinds for n in (1, 2, 3, 4, 5, 7, 8, 20))
    draw = random.Random(0)
    for _ in range(1500):
        yield "".join(draw.choices(kinds, k=draw.randint(2, 6)))
