"""From folders of tokens to the facts that a plan freezes: counts, digest, vocabulary. Light; reads no token."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence

from launchyard.storage.files import exists, normal
from launchyard.training.data.index import (
    DATASET,
    DIGESTS,
    INDEX,
    TOKENIZER,
    Dataset,
    Digests,
    SplitEntry,
    read_dataset,
    read_index,
    read_model,
)
from launchyard.training.sections.data import DataKind
from launchyard.training.spec import OWN_BATCHES, DataSpec, RowFacts, TokenSource


class OtherTokensError(ValueError):
    """Data was replaced or has grown under the same path or URL."""


def open_dataset(source: str) -> DataSpec:
    """The tokens of a prepared folder or a bare litdata folder, local or URL.

    ValueError names the missing file and the command that makes it.
    """
    folder = normal(source)
    dataset = read_dataset(folder)
    if dataset is not None:
        return _prepared(folder, dataset)
    if exists(f"{folder}/{INDEX}"):
        return _bare(folder)
    raise ValueError(_missing(folder))


def _missing(folder: str) -> str:
    if exists(f"{folder}/.prepare"):
        return f"{folder} is not finished: its `launch prepare` was interrupted; run the same command again, it goes on"
    what = "holds no tokens" if exists(folder) else "does not exist"
    make = f"make it with `launch prepare TEXT --tokenizer tokenizer.json --out {folder}`"
    return f"{folder} {what} (neither {DATASET} nor {INDEX}); {make}"


def _prepared(folder: str, dataset: Dataset) -> DataSpec:
    held_out = dataset.splits.get("validation")
    return DataSpec(
        train=(_split(folder, "train", dataset.splits["train"], dataset.kind),),
        validation=(_split(folder, "validation", held_out, dataset.kind),) if held_out else (),
        tokenizer=f"{folder}/{TOKENIZER}",
        digest=dataset.digest,
    )


def _split(folder: str, name: str, entry: SplitEntry, kind: DataKind) -> TokenSource:
    source = TokenSource(folder=f"{folder}/{name}", n_tokens=entry.tokens, digest=entry.digest)
    if entry.labels is None or entry.longest is None:
        return source
    together = 2 if kind == "preference" else 1
    rows = RowFacts(rows=entry.documents, labels=entry.labels, longest=entry.longest, together=together)
    return source.model_copy(update={"instruct": rows})


def _bare(folder: str) -> DataSpec:
    index = read_index(folder)
    if index.n_tokens < 1:
        raise ValueError(f"{folder}/{INDEX} lists no tokens")
    digest = source_digest(folder)
    train = TokenSource(folder=folder, n_tokens=index.n_tokens, digest=digest)
    return DataSpec(train=(train,), validation=(), tokenizer=None, digest=digest)


def source_digest(folder: str) -> str:
    """Returns the digest of the tokens in a folder of chunks as its own lists have it; reads no token.

    Raises FileNotFoundError without lists.
    """
    if exists(f"{folder}/{DIGESTS}"):
        return read_model(f"{folder}/{DIGESTS}", Digests).digest
    index = read_index(folder)
    entries = [[chunk.filename, chunk.chunk_bytes, chunk.chunk_size, chunk.dim] for chunk in index.chunks]
    return hashlib.sha256(json.dumps([index.dtype, entries]).encode()).hexdigest()


def check_unchanged(spec: DataSpec) -> None:
    """Raises OtherTokensError if a folder holds other tokens than when `spec` was made; FileNotFoundError if none."""
    for source in spec.every_source:
        if source.digest is not None and (found := source_digest(source.folder)) != source.digest:
            raise OtherTokensError(
                f"{source.folder}: other tokens lie there now (digest {found[:12]}) than those of this run "
                f"({source.digest[:12]}); a run goes on only with its own: bring them back, name the place where they "
                "lie now (launch resume RUN data.source=PLACE), or make a new run"
            )


def mix(specs: Sequence[DataSpec], weights: Sequence[float]) -> DataSpec:
    """Several sources as one set of data: mixed by weight in training, held-out parts end to end in validation.

    One alone stays unchanged. ValueError for a source named twice, and for sources of different tokenizers.
    """
    if len(specs) == 1:
        return specs[0]
    train = [(source, weight) for spec, weight in zip(specs, weights, strict=True) for source in spec.train]
    folders = [source.folder for source, _ in train]
    if twice := [folder for number, folder in enumerate(folders) if folder in folders[:number]]:
        raise ValueError(f"{twice[0]} is named twice; give it once, with the sum of its weights")
    _check_same_tokenizer(folders)
    parts = [[spec.digest, float(weight)] for spec, weight in zip(specs, weights, strict=True)]
    return DataSpec(
        train=tuple(source.model_copy(update={"weight": float(weight)}) for source, weight in train),
        validation=tuple(source for spec in specs for source in spec.validation),
        tokenizer=next((spec.tokenizer for spec in specs if spec.tokenizer is not None), None),
        digest=hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
    )


def with_validation(spec: DataSpec, source: str) -> DataSpec:
    """The same, validated on another folder of tokens: on its held-out part if it has one, else on all of it."""
    validation = open_dataset(source)
    _check_same_tokenizer([one.folder for one in (*spec.train, *validation.train)])
    if len({1 if one.instruct is None else one.instruct.together for one in (*spec.train, *validation.train)}) > 1:
        raise ValueError(f"{source} and {spec.train[0].folder}: one holds pairs of answers and the other does not")
    digest = hashlib.sha256(f"{spec.digest} {validation.digest}".encode()).hexdigest()
    return spec.model_copy(update={"validation": validation.validation or validation.train, "digest": digest})


def with_sets(spec: DataSpec, sets: Mapping[str, DataSpec]) -> DataSpec:
    """The same with more held-out data by name: the whole of each. ValueError names one that is of another kind."""
    if not sets:
        return spec
    for name, one in sets.items():
        try:
            _check_same_tokenizer([source.folder for source in (*spec.train, *one.train)])
        except ValueError as error:
            raise ValueError(f"validation.sets.{name}: {error}") from error
    digests = [[name, one.digest] for name, one in sorted(sets.items())]
    digest = hashlib.sha256(json.dumps([spec.digest, digests]).encode()).hexdigest()
    held = {name: (*one.train, *one.validation) for name, one in sets.items()}
    return spec.model_copy(update={"sets": held, "digest": digest})


def _check_same_tokenizer(folders: Sequence[str]) -> None:
    """ValueError names two folders whose tokens were made by different tokenizers, if both record theirs."""
    recorded = [(folder, made_by) for folder in folders if (made_by := _tokenizer_of(folder)) is not None]
    for folder, made_by in recorded[1:]:
        if made_by != recorded[0][1]:
            raise ValueError(
                f"{folder} was made by another tokenizer than {recorded[0][0]}; prepare both with the same one"
            )


def _tokenizer_of(split_folder: str) -> str | None:
    if split_folder == OWN_BATCHES:
        return None
    dataset = read_dataset(os.path.dirname(split_folder))
    return dataset.tokenizer.sha256 if dataset else None


def vocab_size_of(source: str) -> int | None:
    """The vocabulary of a prepared folder; None for bare litdata folders, which do not record it."""
    dataset = read_dataset(source)
    return dataset.vocab_size if dataset else None
