"""The files of a folder of tokens: schemas of litdata's index.json and of our files beside it. Light: no numpy.

    OUT/  dataset.json                      content and sources; written last: without it there is no dataset
          tokenizer/tokenizer.json          the tokenizer that made the tokens
          tokenizer/…                       what lay beside it: see model/text/companions.py
          rejects.jsonl                     invalid documents that were left out on request: file, line, reason
          train/{index.json, chunk-0-0.bin …, digests.json}    litdata's format, and the hash of each chunk
          train/rows.npy                    of instructions: the tokens of each row
          validation/…                      the same for the held-out part; absent when there is none

Knows nothing of making or reading tokens.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Literal, TypedDict, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launchyard.model.text.find import TAKEN, find_carrier
from launchyard.storage import files
from launchyard.storage.damage import JsonObject
from launchyard.storage.files import exists, normal
from launchyard.storage.hub_cache import find_downloaded, hub_advice
from launchyard.training.sections.data import DataKind

FORMAT = 1
# How text becomes ids. 1: control tokens written in documents become control ids; nothing is put before a document.
# 2: control tokens in documents stay text; documents begin as the tokenizer's own post-processor has it.
Encoding = Literal[1, 2]
ENCODING: Encoding = 2
DATASET = "dataset.json"
REJECTS = "rejects.jsonl"
INDEX = "index.json"
DIGESTS = "digests.json"
ROWS = "rows.npy"
TOKENIZER = "tokenizer/tokenizer.json"
# litdata numbers element types differently for its two raw serializers; only those that can hold token ids.
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
ELEMENT_TYPES = {
    "no_header_numpy": dict(enumerate(INTEGERS)),
    "no_header_tensor": {
        11: "uint8",
        12: "int8",
        13: "int16",
        14: "int16",
        15: "int32",
        16: "int32",
        17: "int64",
        18: "int64",
        20: "uint16",
    },
}
ITEM_BYTES = {"uint16": 2, "int32": 4, "uint32": 4, "int64": 8}  # of tokens that we write
TOKENS_LOADER = "TokensLoader"  # how litdata names a folder of tokens
# Kinds of litdata's items that hold no tokens, and what they are.
TEXT_ITEMS = ("str", "string", "bytes", "json", "no_header_json", "pickle")
Model = TypeVar("Model", bound=BaseModel)


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChunkEntry(BaseModel):
    """One chunk in litdata's words: `chunk_size` counts items, `dim` counts tokens."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    filename: str
    chunk_bytes: int
    chunk_size: int = Field(ge=0)
    dim: int | None = None


class ChunkConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    data_format: list[str] | None
    item_loader: str | None = None
    compression: str | None = None
    compression_level: str | None = None
    encryption: Any = None


class Index(BaseModel):
    """index.json of litdata."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    chunks: list[ChunkEntry]
    config: ChunkConfig

    @property
    def dtype(self) -> str:
        """Element type of the tokens; ValueError if these are not plain tokens."""
        formats = self.config.data_format or []
        serializer, _, number = (formats[0] if len(formats) == 1 else "").partition(":")
        types = ELEMENT_TYPES.get(serializer, {})
        if not number.isdigit() or int(number) not in types:
            raise ValueError(f"data_format is {formats}: {_no_tokens(formats)}")
        return types[int(number)]

    @property
    def n_tokens(self) -> int:
        return sum(chunk.dim or 0 for chunk in self.chunks)


def _no_tokens(formats: list[str]) -> str:
    """Why items of these types are no stream of tokens, and what to do about it."""
    write = "write it again from items that are one array each, with item_loader=TokensLoader()"
    if len(formats) > 1:
        return f"an item has {len(formats)} parts, and a stream of tokens has no labels or masks beside it; {write}"
    kind = formats[0].partition(":")[0] if formats else "nothing"
    if kind in TEXT_ITEMS:
        return "items are text or objects; write them as lines of .jsonl and make tokens with `launch prepare`"
    if kind in ELEMENT_TYPES:
        return f"numbers of another type than {', '.join(INTEGERS)} are no tokens; {write}"
    return f"tokens are one array of whole numbers with one dimension an item; {write}"


class ChunkDigest(FrozenModel):
    bytes: int
    tokens: int
    xxh3: str = Field(description="xxh3_64 of the whole file, in hex.")


class RowsDigest(FrozenModel):
    rows: int
    xxh3: str = Field(description="xxh3_64 of rows.npy, in hex.")


class Digests(FrozenModel):
    """digests.json: the digest of every chunk, by file name, and of rows.npy where there is one."""

    format: Literal[1] = 1
    chunks: dict[str, ChunkDigest]
    rows: RowsDigest | None = None

    @property
    def digest(self) -> str:
        lines = [f"{name} {chunk.bytes} {chunk.tokens} {chunk.xxh3}" for name, chunk in self.chunks.items()]
        if self.rows is not None:
            lines.append(f"{ROWS} {self.rows.rows} {self.rows.xxh3}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class SourceEntry(FrozenModel):
    """One file that was read. `bytes` and `xxh3` are of the file as it lies, compressed if it is."""

    name: str
    bytes: int
    documents: int | None = Field(description="None in data of instructions: they are counted all together.")
    xxh3: str


class TokenizerEntry(FrozenModel):
    file: str
    sha256: str
    eos: str
    eos_id: int
    bos: str | None = Field(None, description="Token before every document, as the tokenizer itself has it.")
    bos_id: int | None = None


class OptionArguments(TypedDict, total=False):
    """The same as arguments of a call."""

    validation: float
    seed: int
    chunk_tokens: int
    text_key: str
    eos: str | None
    encoding: Encoding


class Options(FrozenModel):
    """The options of `launch prepare`; together with sources and tokenizer they decide every byte."""

    validation: float = 0.0
    seed: int = 0
    chunk_tokens: int
    text_key: str = "text"
    eos: str | None = None
    encoding: Encoding = 1  # of data sets that do not say: they are older than the key


class RowOptions(FrozenModel):
    """How conversations become rows; with the options, the sources and the tokenizer these decide every byte."""

    kind: Literal["instruct", "preference"] = "instruct"
    seq_len: int = Field(ge=1, description="A row has at most one token more; of pairs each of both together.")
    too_long: Literal["drop", "cut-prompt", "cut-answer"] = "drop"
    style: str | None = None
    template: str | None = None
    columns: dict[str, str] | None = None
    mask_prompt: bool = True

    def deciding(self) -> JsonObject:
        """As JSON; that of data sets which are older than a key, where it has its default."""
        return self.model_dump(exclude=None if not self.mask_prompt else {"mask_prompt"})


class RowsMade(RowOptions):
    """What became of the conversations."""

    made_from: str = Field(description="Digest of sources, tokenizer, templates and options.")
    dropped: dict[str, int] = Field(default={}, description="Conversations left out, by reason.")
    counts: dict[str, int] = Field(default={}, description="What else happened to them.")


class HoldOut(FrozenModel):
    """The rule by which the held-out part was chosen, see training/data/prepare/split.py."""

    unit: Literal["nothing", "documents", "sections", "rows"]
    section_chars: int | None = None


class SplitEntry(FrozenModel):
    tokens: int
    documents: int = Field(description="Document ends, so also the ends of parts of a document cut by the hold-out.")
    chunks: int
    digest: str
    labels: int | None = Field(None, description="Of instructions: tokens that are trained for.")
    longest: int | None = Field(None, description="Of instructions: tokens of the longest row.")


class Dataset(FrozenModel):
    """dataset.json: the whole story of a prepared folder."""

    format: Literal[1] = 1
    kind: DataKind = "tokens"
    digest: str = Field(description="Of all chunks and the tokenizer.")
    tokenizer: TokenizerEntry
    vocab_size: int = Field(description="Every token id is below it.")
    dtype: Literal["uint16", "int32", "uint32"]
    documents: int
    empty_documents: int = Field(description="Documents without a character; they are left out.")
    rejected_documents: int = Field(0, description="Invalid documents, left out by --skip-invalid; see rejects.jsonl.")
    control_tokens: int = Field(0, description="Control tokens written in documents, which stayed text.")
    tokens: int
    holdout: HoldOut
    options: Options
    sources: list[SourceEntry]
    instruct: RowsMade | None = None
    splits: dict[str, SplitEntry]


def dataset_digest(digests: dict[str, str], tokenizer_sha256: str) -> str:
    """Of the digests of all splits and of the tokenizer."""
    lines = [f"{name} {digest}" for name, digest in sorted(digests.items())] + [f"tokenizer {tokenizer_sha256}"]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# -- reading ---------------------------------------------------------------------------------------------------------
def read_model(path: str, schema: type[Model]) -> Model:
    """A file of ours. FileNotFoundError without it; ValueError names the file if it cannot be read."""
    try:
        return schema.model_validate_json(files.read(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path}: {key + ': ' if key else ''}{first['msg']}; is it damaged, or of another version?"
        ) from error


def read_index(folder: str) -> Index:
    """index.json of a folder of chunks, checked. FileNotFoundError without one; ValueError if it is unsupported."""
    index = read_model(f"{folder}/{INDEX}", Index)
    try:
        _refuse(index)
        index = _counted(index)
    except ValueError as error:
        raise ValueError(f"{folder}/{INDEX}: {error}") from error
    return index


def _refuse(index: Index) -> None:
    if index.config.encryption:
        raise ValueError("encrypted chunks cannot be read; write them without encryption")
    assert index.dtype  # raises if these are not plain tokens
    codec = (index.config.compression or "zstd").partition(":")[0]  # its level may follow
    if codec != "zstd":
        raise ValueError(f"compression is {index.config.compression!r}; plain chunks and whole files of zstd are read")
    if index.config.compression_level not in (None, "chunk"):
        raise ValueError(
            f"compression_level is {index.config.compression_level!r}: frames inside a chunk; whole files of zstd are "
            'read, so write it again with compression_level="chunk", or without compression'
        )
    for chunk in index.chunks:
        if os.path.basename(chunk.filename) != chunk.filename:
            raise ValueError(f"{chunk.filename!r} is no file name inside the folder")


def _counted(index: Index) -> Index:
    """The same with a count of tokens in every chunk; litdata leaves it out where the first item is empty."""
    return index.model_copy(update={"chunks": [_counted_chunk(index, chunk) for chunk in index.chunks]})


def _counted_chunk(index: Index, chunk: ChunkEntry) -> ChunkEntry:
    if chunk.dim is not None:
        return chunk
    if index.config.item_loader != TOKENS_LOADER:
        raise ValueError(
            f"{chunk.filename} has no count of tokens (dim): it was not written with a TokensLoader; write it again "
            "with item_loader=TokensLoader()"
        )
    item_bytes = int(index.dtype.removeprefix("u").removeprefix("int")) // 8
    return chunk.model_copy(update={"dim": (chunk.chunk_bytes - 4 * (chunk.chunk_size + 2)) // item_bytes})


def is_prepared(source: str) -> bool:
    """Returns True if a folder or URL holds tokens: one of `launch prepare`, or bare litdata chunks."""
    folder = normal(source)
    return exists(f"{folder}/{DATASET}") or exists(f"{folder}/{INDEX}")


def read_dataset(source: str) -> Dataset | None:
    """dataset.json of a prepared folder; None without one."""
    path = f"{normal(source)}/{DATASET}"
    return read_model(path, Dataset) if exists(path) else None


# -- tokenizers ------------------------------------------------------------------------------------------------------
def find_tokenizer(tokenizer: str) -> str:
    """The file with the vocabulary that a file, folder, URL or downloaded model of the hub means; see find_carrier.

    ValueError if there is none.
    """
    path = normal(tokenizer)
    there = "://" in path or os.path.exists(path)
    if not there:
        path = find_downloaded(tokenizer) or path
    found = find_carrier(path)
    if found is not None:
        return found
    advice = "" if there or path.endswith(".json") else hub_advice(tokenizer, " --tokenizer-only")
    what = f"no tokenizer at {path}: give {TAKEN}"
    raise ValueError(f"{what}; {advice}" if advice else what)
