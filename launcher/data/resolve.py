"""From a recipe's `data` section to tokens: those prepared already, the place of the rest, and preparing it.

Light: readers of text and numpy are imported only when text is prepared. Knows no run, and of a model its tokenizer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from launchyard.errors import LaunchError, MissingDataError, UserError
from launchyard.host.folders import user_cache_folder
from launchyard.host.locks import exclusive
from launchyard.launcher.data.epochs import with_epochs
from launchyard.launcher.data.masked import check_prompts
from launchyard.launcher.data.places import is_there, locate, places_of
from launchyard.model.text.companions import TOKENIZER as TOKENIZER_JSON
from launchyard.model.text.find import TAKEN, read_tokenizer_files
from launchyard.model.text.special_tokens import tokenizer_vocab_size
from launchyard.model.weights.source import find_source
from launchyard.storage import files
from launchyard.training.data.dataset_spec import (
    mix,
    open_dataset,
    vocab_size_of,
    with_sets,
    with_validation,
)
from launchyard.training.data.index import (
    ENCODING,
    TOKENIZER,
    Dataset,
    Encoding,
    RowOptions,
    find_tokenizer,
    is_prepared,
    read_dataset,
)
from launchyard.training.sections.data import DataConfig, DataKind
from launchyard.training.spec import DataSpec, RowFacts, TokenSource

if TYPE_CHECKING:
    from launchyard.training.data.prepare.journal import PrepareProgress
    from launchyard.training.data.prepare.sources import TextSource


ROW_TOKENS = 200  # of instructions; only for the estimate before they are prepared
BYTES_PER_TOKEN = 4  # English text under a usual vocabulary; only for the estimate before text is prepared
SETS = "validation.sets"
HASHED_BYTES = 64 << 20  # text up to this is known by its content, more of it by names, sizes and times


@dataclass(frozen=True)
class TextCache:
    """The place of prepared text, the user's own if None, and how that text becomes ids."""

    folder: str | None
    encoding: Encoding


@dataclass(frozen=True)
class Preparation:
    """Text that must be prepared before a run can read it, and how."""

    sources: tuple[str, ...]
    tokenizer: str
    out: str
    validation: float
    encoding: Encoding
    rows: RowsWanted | None = None


@dataclass(frozen=True)
class RowsWanted:
    """How conversations become rows, and which of their epochs are counted."""

    options: RowOptions
    data: DataConfig
    epochs: float | None


@dataclass(frozen=True)
class Part:
    """One source. Unless it is prepared, counts and digest of `spec` are estimates. `key`: its key in the recipe."""

    key: str
    spec: DataSpec
    vocab_size: int | None  # None: not known for a bare litdata folder
    weight: float = 1.0
    preparation: Preparation | None = None


@dataclass(frozen=True)
class Resolved:
    """The tokens that a plan is made with, of all its sources together. `validation` is data.validation, located;
    `sets` are those of validation.sets.
    """

    parts: tuple[Part, ...]
    validation: float | str | None
    spec: DataSpec
    sets: dict[str, Part] = field(default_factory=dict)

    @property
    def _all(self) -> tuple[Part, ...]:
        return (*self.parts, *self.sets.values())

    @property
    def prepared(self) -> bool:
        return all(part.preparation is None for part in self._all)

    @property
    def vocab_size(self) -> int | None:
        """The largest of any source."""
        return max((part.vocab_size for part in self._all if part.vocab_size is not None), default=None)


def resolve(
    data: DataConfig,
    tokenizer: str | None,
    *,
    init_from: str | None = None,
    base: str | None = None,
    epochs: float | None = None,
    cache: str | None = None,
    encoding: Encoding = ENCODING,
    sets: Mapping[str, str | list[str]] | None = None,
) -> Resolved:
    """Find the tokens of a recipe without preparing or writing anything. UserError names the key to fix.

    Text for which no `tokenizer` is named takes that of the weights to start from (`init_from`). Relative paths are
    looked for beside the recipe (`base`), then in the working directory. `epochs` of instructions are put into packs,
    and counted. `cache` replaces the user's cache folder; `encoding` is that of text. `sets` are validation.sets.
    """
    with _key("tokenizer"):
        located = tokenizer and locate(tokenizer, base)
        if located and ("://" in located or os.path.exists(located)):
            tokenizer = located  # else it may be a model of the hub
    asked = _Asked(data, tokenizer, init_from, base, epochs, TextCache(cache, encoding))
    parts = [replace(_source(key, given, kind, asked), weight=weight) for key, given, weight, kind in _named(data)]
    with _key("data.validation"):
        validation = locate(data.validation, base) if isinstance(data.validation, str) else data.validation
    return _joined(parts, validation, _held_out(sets or {}, parts, asked))


@dataclass(frozen=True)
class _Asked:
    """What is the same for all sources; see `resolve`."""

    data: DataConfig
    tokenizer: str | None
    init_from: str | None
    base: str | None
    epochs: float | None
    place: TextCache


def _source(key: str, given: list[str], kind: DataKind, asked: _Asked) -> Part:
    tokenizer = asked.tokenizer
    with _key(key):
        sources = [place for source in given for place in places_of(source, asked.base, kind)]
    is_text = not any(map(is_prepared, sources))
    if is_text and asked.init_from and not tokenizer:
        tokenizer = _tokenizer_of(asked.init_from)
    if kind != "tokens" and is_text:
        with _key("data.template"):
            rows = RowsWanted(_row_options(kind, asked.data, asked.base), asked.data, asked.epochs)
        part = _conversations(key, sources, tokenizer, rows, asked.place)
    else:
        part = _part(key, sources, tokenizer, asked.data.validation, asked.place)
        check_prompts(key, sources, asked.data)
    return replace(part, spec=_counted(part, asked.data, asked.epochs, kind))


def _held_out(sets: Mapping[str, str | list[str]], parts: Sequence[Part], asked: _Asked) -> dict[str, Part]:
    """The sources of validation.sets, all of whose documents are held out; text by the tokenizer of the data."""
    theirs = (part.preparation.tokenizer if part.preparation else part.spec.tokenizer for part in parts)
    made_by = asked.tokenizer or next(filter(None, theirs), None)
    alone = replace(asked, data=asked.data.model_copy(update={"validation": None}), tokenizer=made_by, epochs=None)
    found = {}
    for name, given in sets.items():
        key = f"{SETS}.{name}"
        try:
            found[name] = _source(key, _listed(given), asked.data.kind, alone)
        except UserError as error:  # of the tokenizer, or of the kind
            if key in str(error):
                raise
            raise UserError(f"{key}: {error}", hint=error.hint) from error
    return found


def _named(data: DataConfig) -> Iterator[tuple[str, list[str], float, DataKind]]:
    """Key, paths, weight and kind of every source."""
    if data.mixture is not None:
        for number, one in enumerate(data.mixture):
            yield f"data.mixture.{number}.source", _listed(one.source), one.weight, one.kind or data.kind
    elif given := _listed(data.source):
        yield "data.source", given, 1.0, data.kind
    else:
        raise UserError("data.source is missing", hint="name a folder made by `launch prepare`, or text files")


def _listed(source: str | list[str] | None) -> list[str]:
    return [source] if isinstance(source, str) else list(source or [])


def _part(
    key: str, sources: list[str], tokenizer: str | None, validation: float | str | None, cache: TextCache
) -> Part:
    if not sources:
        raise UserError(f"{key} is empty", hint="name a folder made by `launch prepare`, or text files")
    if len(sources) == 1 and is_prepared(sources[0]):
        return _prepared(key, sources[0], tokenizer)
    if any(is_prepared(source) for source in sources):
        raise UserError(
            f"{key} lists a prepared folder among others; a source is one of them, or text",
            hint="read several with data.mixture, or prepare all the text into one folder with `launch prepare`",
        )
    return _text(key, sources, tokenizer, validation, cache)


def _joined(parts: Sequence[Part], validation: float | str | None, sets: dict[str, Part]) -> Resolved:
    with _key("data.source" if len(parts) == 1 else "data.mixture"):
        spec = mix([part.spec for part in parts], [part.weight for part in parts])
    if isinstance(validation, str):
        with _key("data.validation"):
            spec = with_validation(spec, validation)
    elif validation == 0:
        spec = spec.model_copy(update={"validation": ()})
    elif validation and not spec.validation:
        there = ", ".join(source.folder for source in spec.train)
        raise UserError(
            f"data.validation: {validation} is a share of text to hold out, but {there} is prepared already and "
            "holds nothing out",
            hint="prepare it again with --validation, name a prepared folder, or set data.validation=null",
        )
    with _key("validation"):
        spec = with_sets(spec, {name: part.spec for name, part in sets.items()})
    return Resolved(tuple(parts), validation, spec, sets)


# -- tokens that exist -----------------------------------------------------------------------------------------------
def _prepared(key: str, source: str, tokenizer: str | None) -> Part:
    with _key(key):
        spec = open_dataset(source)
        dataset = read_dataset(source)
    if tokenizer is not None:
        spec = spec.model_copy(update={"tokenizer": _same_tokenizer(tokenizer, source, dataset)})
    return Part(key, spec, dataset.vocab_size if dataset else None)


def _counted(part: Part, data: DataConfig, epochs: float | None, kind: DataKind) -> DataSpec:
    """The same with the sequences in each epoch of instructions. UserError for another kind of data than asked for."""
    if part.preparation is not None:
        return part.spec
    (source,) = part.spec.train
    found = _kind_of(source)
    if found != kind:
        fix = "it is that of the data, data.kind"
        if part.key.endswith("source"):
            fix = f"{part.key.replace('source', 'kind')}={found}"
        raise UserError(f"{part.key}: {source.folder} holds {found}, and its kind is {kind}", hint=fix)
    if source.instruct is None:
        return part.spec
    from launchyard.training.data.row_store import group_lengths

    together = source.instruct.together
    with _key(part.key):
        longest = max(int(group_lengths(one.folder, together).max()) for one in (source, *part.spec.validation))
    if longest > data.seq_len:
        raise UserError(
            f"data.seq_len: {data.seq_len} is too short for {source.folder}, whose longest "
            f"{'pair' if together > 1 else 'row'} takes {longest}",
            hint=f"data.seq_len={longest}, or prepare the data again for shorter rows",
        )
    return with_epochs(part.spec, data, epochs or 1)


def _kind_of(source: TokenSource) -> DataKind:
    if source.instruct is None:
        return "tokens"
    return "instruct" if source.instruct.together == 1 else "preference"


def _tokenizer_of(model: str) -> str | None:
    with _key("model.init_from"):
        return find_source(model).tokenizer


def _same_tokenizer(tokenizer: str, source: str, dataset: Dataset | None) -> str:
    with _key("tokenizer"):
        path = find_tokenizer(tokenizer)
    if (
        dataset is not None
        and hashlib.sha256(read_tokenizer_files(path)[TOKENIZER_JSON]).hexdigest() != dataset.tokenizer.sha256
    ):
        raise UserError(
            f"tokenizer: {path} is not the one that made the tokens of {source}",
            hint="leave `tokenizer` out: the folder has its own; or prepare the text again",
        )
    return path


# -- text ------------------------------------------------------------------------------------------------------------
def _text(key: str, given: list[str], tokenizer: str | None, validation: float | str | None, cache: TextCache) -> Part:
    from launchyard.training.data.prepare.sources import find_sources, kind_of

    for source in given:
        is_glob = any(sign in source for sign in "*?[")
        remote = "://" in source
        if not (is_glob or files.exists(source) if remote else is_there(source)):
            what = "matches no file" if is_glob else "does not exist"
            make = f"launch prepare TEXT --tokenizer FILE --out {'FOLDER' if kind_of(source) else source}"
            raise MissingDataError(
                f"{key}: {source} {what}; sources are text files, folders, globs or URLs. Tokens are made with "
                f"`{make}`",
                source=source,
            )
    with _key(key):
        try:
            sources = find_sources(given)
        except ValueError as error:
            raise ValueError(
                f"{error}. Tokens are made with `launch prepare TEXT --tokenizer FILE --out FOLDER`"
            ) from error
    if tokenizer is None:
        raise UserError(
            f"tokenizer is missing: {key} is text ({given[0]}), which needs one",
            hint=f"tokenizer: {TAKEN}",
        )
    if isinstance(validation, str):
        raise UserError(
            f"data.validation: {validation} is a path, but {key} is text that is not prepared yet",
            hint="give a share such as 0.05, or prepare the text with `launch prepare` and name that folder",
        )
    with _key("tokenizer"):
        path = find_tokenizer(tokenizer)
        raw = read_tokenizer_files(path)[TOKENIZER_JSON]
        vocab_size = tokenizer_vocab_size(raw, name=path)
    share = float(validation or 0.0)
    digest = _digest(sources, hashlib.sha256(raw).hexdigest(), share, cache.encoding)
    out = os.path.join(cache.folder or user_cache_folder(), "data", digest[:32])
    if is_prepared(out):
        return Part(key, open_dataset(out), vocab_size_of(out))
    spec = _estimate(out, sum(source.bytes for source in sources), share, digest)
    return Part(key, spec, vocab_size, preparation=Preparation(tuple(given), path, out, share, cache.encoding))


def _estimate(out: str, n_bytes: int, share: float, digest: str) -> DataSpec:
    tokens = max(2, n_bytes // BYTES_PER_TOKEN)
    held_tokens = int(tokens * share)
    held_out = TokenSource(folder=f"{out}/validation", n_tokens=max(1, held_tokens))
    return DataSpec(
        train=(TokenSource(folder=f"{out}/train", n_tokens=max(1, tokens - held_tokens)),),
        validation=(held_out,) if share else (),
        tokenizer=f"{out}/{TOKENIZER}",
        digest=digest,
    )


# -- conversations ---------------------------------------------------------------------------------------------------
def _conversations(key: str, given: list[str], tokenizer: str | None, rows: RowsWanted, cache: TextCache) -> Part:
    from launchyard.training.data.instruct.carriers import find_files
    from launchyard.training.data.prepare.encode import open_tokenizer
    from launchyard.training.data.prepare.instruct import general_options, rows_digest
    from launchyard.training.data.prepare.sources import every_file

    if tokenizer is None:
        raise UserError(
            f"tokenizer is missing: {key} is conversations ({given[0]}), which need one", hint=f"tokenizer: {TAKEN}"
        )
    validation = rows.data.validation
    if isinstance(validation, str):
        raise UserError(
            f"data.validation: {validation} is a path, but {key} is not prepared yet",
            hint=f"give a share such as 0.05, or prepare it with `launch prepare --kind {rows.options.kind}`",
        )
    with _key("tokenizer"):
        path = find_tokenizer(tokenizer)
        made = open_tokenizer(path, eos=None)
    with _key(key):
        read = every_file(given)
    share = float(validation or 0.0)
    digest = rows_digest(read, made, rows.options, general_options(share))
    out = os.path.join(cache.folder or user_cache_folder(), "data", digest[:32])
    if is_prepared(out):
        return Part(key, open_dataset(out), vocab_size_of(out))
    spec = _estimate(out, sum(size for _, size, _ in read), share, digest)
    spec = _estimated_rows(spec, rows)
    if not share and find_files(given, "validation"):
        spec = spec.model_copy(update={"validation": (TokenSource(folder=f"{out}/validation", n_tokens=ROW_TOKENS),)})
    later = Preparation(tuple(given), path, out, share, cache.encoding, rows)
    return Part(key, spec, made.vocab_size, preparation=later)


def _row_options(kind: DataKind, data: DataConfig, base: str | None) -> RowOptions:
    keys: dict[str, object] = {"kind": kind}
    keys |= {
        name: getattr(data, name) for name in ("seq_len", "too_long", "style", "columns", "template", "mask_prompt")
    }
    if data.template is not None and data.template.endswith(".jinja"):
        keys["template"] = files.read_text(locate(data.template, base))
    return RowOptions.model_validate(keys)


def _estimated_rows(spec: DataSpec, wanted: RowsWanted) -> DataSpec:
    (source,) = spec.train
    rows = max(1, source.n_tokens // ROW_TOKENS)
    packs = (max(1, source.n_tokens // wanted.data.seq_len),) * math.ceil(wanted.epochs or 1)
    together = 2 if wanted.options.kind == "preference" else 1
    facts = RowFacts(rows=rows, labels=max(1, source.n_tokens // 4), longest=2, packs=packs, together=together)
    return spec.model_copy(update={"train": (source.model_copy(update={"instruct": facts}),)})


def _digest(sources: list[TextSource], tokenizer_sha256: str, share: float, encoding: Encoding) -> str:
    """Changes with the text, the tokenizer, share and encoding; not with where the text lies, if it is small."""
    from launchyard.training.data.prepare.sources import digest_of

    small = sum(source.bytes for source in sources) <= HASHED_BYTES
    facts: list[Any] = [encoding, tokenizer_sha256, share]
    for source in sources:
        by_content = small and "://" not in source.path
        kind = [source.kind, source.compression, source.bytes]
        facts.append([*kind, digest_of(source)] if by_content else [*kind, source.path, source.stamp])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def ensure_prepared(resolved: Resolved, *, on_progress: Callable[[PrepareProgress], None] | None = None) -> Resolved:
    """The exact tokens, prepared now if they are not yet. A second launch of the same text waits for the first."""
    if resolved.prepared:
        return resolved
    sets = {name: _prepared_now(part, on_progress) for name, part in resolved.sets.items()}
    return _joined([_prepared_now(part, on_progress) for part in resolved.parts], resolved.validation, sets)


def _prepared_now(part: Part, on_progress: Callable[[PrepareProgress], None] | None) -> Part:
    made = part.preparation
    if made is None:
        return part
    if made.rows is not None:
        return _rows_now(part, made, made.rows)
    from launchyard.training.data.prepare.encode import PrepareError
    from launchyard.training.data.prepare.journal import remove_unfinished
    from launchyard.training.data.prepare.prepare import KeptWorkError, prepare

    with exclusive(f"{made.out}.lock"):
        if not is_prepared(made.out):
            with _key(part.key):
                try:
                    prepare(
                        list(made.sources),
                        tokenizer=made.tokenizer,
                        out=made.out,
                        validation=made.validation,
                        encoding=made.encoding,
                        on_progress=on_progress,
                    )
                except KeptWorkError:  # of no use to the next launch: text that was mended has another folder
                    remove_unfinished(made.out, remove_root=True)
                    raise
                except PrepareError as error:
                    raise LaunchError(f"preparing the text failed: {error}") from error
        return replace(part, spec=open_dataset(made.out), preparation=None)


def _rows_now(part: Part, made: Preparation, rows: RowsWanted) -> Part:
    from launchyard.training.data.prepare.instruct import prepare_instruct

    with exclusive(f"{made.out}.lock"), _key(part.key):
        if not is_prepared(made.out):
            prepare_instruct(
                list(made.sources),
                tokenizer=made.tokenizer,
                out=made.out,
                options=rows.options,
                validation=made.validation,
            )
        exact = replace(part, spec=open_dataset(made.out), preparation=None)
    return replace(exact, spec=_counted(exact, rows.data, rows.epochs, rows.options.kind))


@contextlib.contextmanager
def _key(key: str) -> Iterator[None]:
    """Puts the key of the recipe before errors about its data."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{key}: {error}") from error
