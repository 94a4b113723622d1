"""From a recipe's `data` section to tokens: what is prepared already, where the rest will be, and preparing it.

Light: reading text and numpy come in only where text is really prepared. Knows no model and no run.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.errors import LaunchError, UserError
from model import files
from training.config import Data, DataSpec
from training.data.index import (
    TOKENIZER,
    Dataset,
    find_tokenizer,
    is_prepared,
    open_dataset,
    read_dataset,
    tokenizer_vocab_size,
    vocab_size_of,
)

if TYPE_CHECKING:
    from training.data.prepare import Progress
    from training.data.sources import Source

BYTES_PER_TOKEN = 4  # English text under a usual vocabulary; only for the estimate before text is prepared
HASHED_BYTES = 64 << 20  # text up to this is known by its content, more of it by names, sizes and times


@dataclass(frozen=True)
class Preparation:
    """Text that must be prepared before a run can read it, and how."""

    sources: tuple[str, ...]
    tokenizer: str
    out: str
    validation: float


@dataclass(frozen=True)
class Resolved:
    """The tokens that a plan is made with. Unless `prepared`, counts and digest of `spec` are estimates."""

    spec: DataSpec
    vocab_size: int | None  # None: a bare litdata folder does not say
    preparation: Preparation | None = None

    @property
    def prepared(self) -> bool:
        return self.preparation is None


def resolve(data: Data, tokenizer: str | None, *, base: str | None = None, cache: str | None = None) -> Resolved:
    """Find the tokens of a recipe without preparing or writing anything. UserError names the key to mend.

    Relative paths are looked for beside the recipe (`base`), then in the working directory. `cache` replaces the
    user's cache folder.
    """
    given = [data.source] if isinstance(data.source, str) else list(data.source or [])
    if not given:
        raise UserError("data.source is missing", hint="name a folder made by `launch prepare`, or text files")
    sources = [_locate(source, base) for source in given]
    if len(sources) == 1 and is_prepared(sources[0]):
        return _prepared(data, sources[0], tokenizer and _locate(tokenizer, base), base)
    if any(is_prepared(source) for source in sources):
        raise UserError(
            "data.source lists a prepared folder among others; only one can be read",
            hint="prepare all the text into one folder with `launch prepare`",
        )
    return _text(data, sources, tokenizer and _locate(tokenizer, base), cache)


def _locate(path: str, base: str | None) -> str:
    """A path as the recipe means it: beside the recipe if it is there, else from the working directory."""
    if "://" in path or os.path.isabs(path):
        return path.removeprefix("file://")
    if base is not None and "://" in base:
        return f"{base.rstrip('/')}/{path}" if not _is_there(path) else os.path.abspath(path)
    beside = os.path.join(base, path) if base is not None else path
    return os.path.abspath(beside if _is_there(beside) else path)


def _is_there(path: str) -> bool:
    return os.path.exists(path) or bool(glob.glob(path, recursive=True))


# -- tokens that exist -----------------------------------------------------------------------------------------------
def _prepared(data: Data, source: str, tokenizer: str | None, base: str | None) -> Resolved:
    held = _locate(data.validation, base) if isinstance(data.validation, str) else None
    with _key("data.source" if held is None else "data"):
        spec = open_dataset(source, validation=held)
        dataset = read_dataset(source)
    if isinstance(data.validation, float) and data.validation and spec.validation is None:
        raise UserError(
            f"data.validation: {data.validation} is a share of text to hold out, but {source} is prepared already and "
            "holds nothing out",
            hint="prepare it again with --validation, name a prepared folder, or set data.validation=null",
        )
    if data.validation == 0:
        spec = spec.model_copy(update={"validation": None, "n_validation_tokens": 0})
    if tokenizer is not None:
        spec = spec.model_copy(update={"tokenizer": _same_tokenizer(tokenizer, source, dataset)})
    return Resolved(spec, vocab_size_of(source))


def _same_tokenizer(tokenizer: str, source: str, dataset: Dataset | None) -> str:
    with _key("tokenizer"):
        path = find_tokenizer(tokenizer)
    if dataset is not None and hashlib.sha256(files.read(path)).hexdigest() != dataset.tokenizer.sha256:
        raise UserError(
            f"tokenizer: {path} is not the one that made the tokens of {source}",
            hint="leave `tokenizer` out: the folder has its own; or prepare the text again",
        )
    return path


# -- text ------------------------------------------------------------------------------------------------------------
def _text(data: Data, given: list[str], tokenizer: str | None, cache: str | None) -> Resolved:
    from training.data.sources import find_sources

    with _key("data.source"):
        try:
            sources = find_sources(given)
        except ValueError as error:
            raise ValueError(
                f"{error}. Tokens are made with `launch prepare TEXT --tokenizer FILE --out FOLDER`"
            ) from error
    if tokenizer is None:
        raise UserError(
            f"tokenizer is missing: data.source is text ({given[0]}), which needs one",
            hint="tokenizer: a tokenizer.json, or a folder with one",
        )
    if isinstance(data.validation, str):
        raise UserError(
            f"data.validation: {data.validation} is a path, but data.source is text that is not prepared yet",
            hint="give a share such as 0.05, or prepare the text with `launch prepare` and name that folder",
        )
    with _key("tokenizer"):
        path = find_tokenizer(tokenizer)
        raw = files.read(path)
        vocab_size = tokenizer_vocab_size(raw, name=path)
    share = float(data.validation or 0.0)
    digest = _digest(sources, hashlib.sha256(raw).hexdigest(), share)
    out = os.path.join(cache or _cache_folder(), "data", digest[:32])
    if is_prepared(out):
        return Resolved(open_dataset(out), vocab_size_of(out))
    spec = _estimate(out, sum(source.bytes for source in sources), share, digest)
    return Resolved(spec, vocab_size, Preparation(tuple(given), path, out, share))


def _estimate(out: str, n_bytes: int, share: float, digest: str) -> DataSpec:
    tokens = max(2, n_bytes // BYTES_PER_TOKEN)
    held = int(tokens * share)
    return DataSpec(
        train=f"{out}/train",
        validation=f"{out}/validation" if share else None,
        tokenizer=f"{out}/{TOKENIZER}",
        n_tokens=max(1, tokens - held),
        n_validation_tokens=held,
        digest=digest,
    )


def _digest(sources: list[Source], tokenizer_sha256: str, share: float) -> str:
    """Changes with the text, the tokenizer and the share; not with where the text lies, if it is small."""
    from training.data.sources import digest_of

    small = sum(source.bytes for source in sources) <= HASHED_BYTES
    facts: list[Any] = [1, tokenizer_sha256, share]
    for source in sources:
        by_content = small and "://" not in source.path
        kind = [source.kind, source.compression, source.bytes]
        facts.append([*kind, digest_of(source)] if by_content else [*kind, source.path, source.stamp])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _cache_folder() -> str:
    import platformdirs

    return platformdirs.user_cache_dir("launchyard")


def ensure_prepared(resolved: Resolved, *, on_progress: Callable[[Progress], None] | None = None) -> DataSpec:
    """The exact tokens, prepared now if they are not yet. A second launch of the same text waits for the first."""
    made = resolved.preparation
    if made is None:
        return resolved.spec
    from training.data.encode import PrepareError
    from training.data.prepare import prepare

    with _lock(f"{made.out}.lock"):
        if not is_prepared(made.out):
            with _key("data.source"):
                try:
                    prepare(
                        list(made.sources),
                        tokenizer=made.tokenizer,
                        out=made.out,
                        validation=made.validation,
                        on_progress=on_progress,
                    )
                except PrepareError as error:
                    raise LaunchError(f"preparing the text failed: {error}") from error
        return open_dataset(made.out)


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
    """Wait until no other process holds the file; it is free again when its process ends, however it ends."""
    import fcntl

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _key(key: str) -> Iterator[None]:
    """Say which key of the recipe an error of the data rooms is about."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{key}: {error}") from error
