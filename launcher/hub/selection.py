"""Which files of a repository are fetched: those that we read, each kind once. Pure."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launchyard.errors import UserError
from launchyard.storage.hub_cache import GGUF_SUFFIX, match_gguf, parts_of_gguf

# Small files beside the weights: facts of the model, its tokenizer, its template, its licence.
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "vocab.bpe", "encoder.json", "tokenizer.model*", "*.tiktoken", "spiece.model",
    "sentencepiece*.model", "tekken.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
_FACTS = (
    "config.json", "generation_config.json", "quantize_config.json", "adapter_config.json", "README.md", "LICENSE*",
    "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*",
)  # fmt: skip
# Kinds of weights, the first that a repository holds is taken.
_WEIGHTS = (
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"[^/]+\.safetensors(\.index\.json)?",
    r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?",
)


@dataclass(frozen=True)
class Choice:
    """`file`: that file only, or the GGUF files with this in their name. `include` replaces the usual choice.

    `max_files`, `max_bytes`: of those that hold data, the first by name that are no more in all.
    """

    tokenizer_only: bool = False
    file: str | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    max_files: int | None = None
    max_bytes: int | None = None


def choose(paths: Sequence[str], choice: Choice, *, repo: str) -> list[str]:
    """Returns those of the repository's paths to fetch, sorted. UserError if there is nothing that we read."""
    chosen = _included(paths, choice, repo)
    kept = sorted(path for path in chosen if not _fits(path, choice.exclude))
    if not kept:
        listed = ", ".join(sorted(paths)[:20]) or "nothing"
        asked = "that these options choose" if choice != Choice() else "that can be read here"
        raise UserError(
            f"{repo} holds no file {asked}; it holds {listed}{' …' if len(paths) > 20 else ''}",
            hint="--include PATTERN takes the files whose path fits",
        )
    return kept


def keep_to_limits(sizes: Mapping[str, int], choice: Choice, *, repo: str) -> list[str]:
    """Returns the first of these files by name that keep to the limits; what says what they are comes along.

    UserError if not even the first of them does.
    """
    beside = [path for path in sizes if _fits(path, _FACTS)]
    data = sorted(path for path in sizes if path not in beside)[: choice.max_files]
    total = 0
    kept = []
    for path in data:
        total += sizes[path]
        if choice.max_bytes is not None and total > choice.max_bytes:
            break
        kept.append(path)
    if data and not kept:
        raise UserError(
            f"--max-bytes {choice.max_bytes:,}: the first file of {repo}, {data[0]}, has {sizes[data[0]]:,}",
            hint="files are fetched whole; give that much, or name smaller ones with --include",
        )
    return sorted([*beside, *kept])


def _included(paths: Sequence[str], choice: Choice, repo: str) -> list[str]:
    if choice.include:
        return [path for path in paths if _fits(path, choice.include)]
    if choice.file is not None:
        return _named(paths, choice.file, repo)
    if choice.tokenizer_only:
        return [path for path in paths if _fits(path, (*_TOKENIZER, "config.json"))]
    beside = [path for path in paths if _fits(path, _TOKENIZER + _FACTS)]
    return beside + _weights(paths, repo)


def _weights(paths: Sequence[str], repo: str) -> list[str]:
    for kind in _WEIGHTS:
        found = [path for path in paths if re.fullmatch(kind, path)]
        if any(not path.endswith(".json") for path in found):
            return found
    models = match_gguf(paths, None)
    if len(models) > 1:
        listed = "\n  ".join(f"{repo}:{path}" for path in models)
        raise UserError(f"{repo} holds several GGUF files; name one of them:\n  {listed}")
    if models:
        return parts_of_gguf(paths, models[0])
    others = sorted(
        {posixpath.splitext(path)[1] for path in paths if path.endswith((".bin", ".h5", ".msgpack", ".pth"))}
    )
    if others:
        raise UserError(
            f"{repo} holds weights as {', '.join(others)} only; read are .safetensors, pytorch_model.bin and .gguf",
            hint="--tokenizer-only takes its tokenizer",
        )
    raise UserError(f"{repo} holds no weights", hint="--tokenizer-only takes its tokenizer, --include PATTERN any file")


def _named(paths: Sequence[str], file: str, repo: str) -> list[str]:
    if file in paths and not file.endswith(GGUF_SUFFIX):
        return [file]
    found = match_gguf(paths, file)
    if len(found) == 1:
        return parts_of_gguf(paths, found[0])
    ggufs = found or match_gguf(paths, None)
    listed = "\n  ".join(ggufs) if ggufs else "no GGUF files"
    what = "fits several files" if found else "is no file there"
    raise UserError(f"{repo}: {file} {what}; it holds\n  {listed}")


def _fits(path: str, patterns: Sequence[str]) -> bool:
    """A pattern without a slash is for the files at the top, as those of a folder are other things."""
    return any(
        fnmatch.fnmatchcase(path, pattern) and ("/" in pattern or "/" not in path or pattern.startswith("**"))
        for pattern in patterns
    )
