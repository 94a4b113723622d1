"""The format of a sharded set of tensors: safetensors files, and a manifest.json that makes them one thing.

Every saved piece is one entry of one safetensors file, named `key@offset,offset`; the manifest holds the place of each
piece, its extent in the whole tensor and its xxh3 hash. No pickle anywhere: JSON and bytes.
Light: pydantic, xxhash and stdlib; torch only where tensors are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from launchyard.storage import files
from launchyard.storage.errors import CorruptError, StoreError
from launchyard.storage.safetensors import torch_dtype

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
READ_TRIES = 3
_SEAL = ',"xxh3":"'
_END = '"}'
_HEAD_BYTES = 256
_HEAD = re.compile(rb'\{"format":\d+,"step":\d+,"attempt":(\d+),(?:"run_id":"([^"\\]*)",)?')
_Result = TypeVar("_Result")


class TensorPiece(BaseModel):
    """One rectangular part of a tensor: elements offsets[i] … offsets[i] + sizes[i] of each axis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    offsets: tuple[int, ...] = Field(description="First element of each axis.")
    sizes: tuple[int, ...] = Field(description="Elements of each axis.")
    file: str = Field(description="Name of the file, relative to the manifest.")
    start: int = Field(description="First byte in that file.")
    length: int = Field(description="Bytes.")
    xxh3: str = Field(description="xxh3_64 of those bytes, in hex.")


class TensorEntry(BaseModel):
    """One tensor; its pieces cover it without overlap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str = Field(description="As safetensors call it: F32, BF16 …")
    shape: tuple[int, ...] = Field(description="Of the whole tensor.")
    pieces: tuple[TensorPiece, ...] = Field(description="Each written by one rank.")


class FileEntry(BaseModel):
    """One safetensors file beside the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(description="Its whole size.")
    header_xxh3: str = Field(description="xxh3_64 of all that precedes the first piece.")
    header_bytes: int = Field(description="Bytes that precede it.")


class LogEntry(BaseModel):
    """The beginning of a file of rows, as it was when the checkpoint was begun."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: int = Field(description="Number of its lines.")
    xxh3: str = Field(description="xxh3_64 of them.")


class Manifest(BaseModel):
    """manifest.json. Written last: a folder without it does not exist.

    `format`, `step`, `attempt` and `run_id` stay its first four: read_head finds them in its first bytes.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(default=MANIFEST_FORMAT, description="Version of this format.")
    step: int = Field(description="Finished optimizer steps.")
    attempt: int = Field(description="Attempt that committed it.")
    run_id: str = Field(default="", description="Of its run; empty in those of older versions.")
    world_size: int = Field(description="Ranks that wrote it; any number reads it.")
    kind: Literal["permanent", "temporary", "best"] = Field(description="May a newer checkpoint replace it?")
    created: float = Field(description="Start of the save.")
    train_state: dict[str, Any] = Field(description="State besides tensors: step, tokens_seen …")
    model: dict[str, Any] = Field(description="ModelConfig as JSON.")
    data_digest: str = Field(description="Of the tokens of the run; one of other tokens is not loaded.")
    recipe_hash: str = Field(description="Of the recipe with its overrides; for people.")
    versions: dict[str, str] = Field(description="Of the packages that wrote it.")
    frozen: tuple[str, ...] = Field(default=(), description="Parameters that do not train, and are not saved.")
    base: dict[str, Any] = Field(
        default={}, description="Their origin: init_from, the seed, frozen_dtype, quantize, adapter."
    )
    rows: dict[str, LogEntry] = Field(
        default={}, description="Of this attempt and those it went on from, by `steps-NNNN` and `validation-NNNN`."
    )
    files: dict[str, FileEntry] = Field(description="By name.")
    tensors: dict[str, TensorEntry] = Field(description="By key: `model.` weights, `optimizer.` moments.")

    @property
    def total_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())


def sealed(manifest: Manifest) -> str:
    """Returns the text of manifest.json: its last entry is the hash of all before it."""
    text = manifest.model_dump_json()
    return f"{text[:-1]}{_SEAL}{_hash(text.encode())}{_END}"


def read_manifest(folder: str) -> Manifest:
    """Returns the manifest of a folder, local or URL; a remote one is read again before it is called damaged.

    Raises FileNotFoundError without one, CorruptError if it is not the one that was saved.
    """
    return again_if_remote(folder, lambda: _read_manifest(f"{folder}/{MANIFEST}"))


def _read_manifest(path: str) -> Manifest:
    try:
        raw = files.read(path)
    except (FileNotFoundError, StoreError):
        raise
    except OSError as error:  # a folder, a missing right, a bad sector: an older checkpoint may do
        raise CorruptError(f"{path} cannot be read: {error.strerror}") from error
    text, _, seal = raw.rpartition(_SEAL.encode())
    text += b"}"
    if seal != f"{_hash(text)}{_END}".encode():
        raise CorruptError(f"{path} is changed: its hash is not what was saved")
    try:
        return Manifest.model_validate_json(text)
    except ValueError as error:
        raise CorruptError(f"{path} is no manifest of this version: {error}") from error


@dataclass(frozen=True)
class ManifestHead:
    """Who committed a checkpoint. `run_id` is empty where an older version did."""

    attempt: int
    run_id: str


def read_head(folder: str) -> ManifestHead | None:
    """Returns the beginning of the manifest of a folder; None if its manifest is damaged there, or cannot be read.

    Raises FileNotFoundError without one. Reads the first bytes only, and so not the seal: the manifest of a large model
    takes megabytes.
    """
    try:
        head = files.read(f"{folder}/{MANIFEST}", 0, _HEAD_BYTES)
    except (FileNotFoundError, StoreError):
        raise
    except OSError:
        return None
    found = _HEAD.match(head)
    return ManifestHead(int(found[1]), (found[2] or b"").decode()) if found else None


def again_if_remote(path: str, action: Callable[[], _Result]) -> _Result:
    """Returns the value of `action`, called again after a CorruptError if its bytes came over a network."""
    for tries_left in range(READ_TRIES - 1 if files.is_remote(path) else 0, -1, -1):
        try:
            return action()
        except CorruptError:
            if not tries_left:
                raise
    raise AssertionError("not reached")


def _hash(raw: bytes | bytearray | memoryview) -> str:
    import xxhash

    return xxhash.xxh3_64_hexdigest(raw)


def read_pieces(path: str, *pieces: tuple[str, TensorPiece, memoryview]) -> None:
    """Reads pieces that follow each other in a file, in one request: each (key, piece, its memory), verified.

    Raises CorruptError, which names the fault and the file; a remote file is read again before that.
    """
    again_if_remote(path, lambda: _read_pieces(path, pieces))


def _read_pieces(path: str, pieces: Sequence[tuple[str, TensorPiece, memoryview]]) -> None:
    start = pieces[0][1].start
    try:
        count = files.read_into(path, start, *(target for _, _, target in pieces))
    except FileNotFoundError as error:
        raise CorruptError(f"{path} is missing (it holds {pieces[0][0]})") from error
    except StoreError:
        raise
    except OSError as error:
        raise CorruptError(f"{path} cannot be read (it holds {pieces[0][0]}): {error.strerror}") from error
    for key, piece, target in pieces:
        end = piece.start + piece.length
        if end > start + count:
            raise CorruptError(f"{path} is cut: {key} ends at byte {end}, the file before it")
        check_hash(target, path, key, piece)


def read_piece(folder: str, key: str, piece: TensorPiece) -> bytearray:
    """Returns the verified bytes of one piece."""
    raw = bytearray(piece.length)
    read_pieces(f"{folder}/{piece.file}", (key, piece, memoryview(raw)))
    return raw


def check_hash(raw: bytes | bytearray | memoryview, path: str, key: str, piece: TensorPiece) -> None:
    """Raises CorruptError if `raw` differs from the bytes that were written."""
    if _hash(raw) != piece.xxh3:
        end = piece.start + piece.length
        raise CorruptError(f"{path} is changed: the hash of {key} (bytes {piece.start} to {end}) is not what was saved")


def check_header(folder: str, name: str, entry: FileEntry) -> None:
    """Raises CorruptError if a file is missing, of another size, or begins with other bytes than were saved."""
    path = f"{folder}/{name}"

    def check() -> None:
        try:
            size = files.size(path)
            header = files.read(path, 0, entry.header_bytes)
        except FileNotFoundError as error:
            raise CorruptError(f"{path} is missing") from error
        except StoreError:
            raise
        except OSError as error:
            raise CorruptError(f"{path} cannot be read: {error.strerror}") from error
        if size != entry.bytes:
            fault = "cut" if size < entry.bytes else "changed"
            raise CorruptError(f"{path} has {size} bytes instead of {entry.bytes}: it is {fault}")
        if _hash(header) != entry.header_xxh3:
            raise CorruptError(f"{path} is changed: the hash of its header is not what was saved")

    again_if_remote(path, check)


def verify(folder: str, manifest: Manifest) -> Iterator[str]:
    """Yields every fault of a sharded set as a message; nothing if it is intact. Reads all of it."""
    for name, entry in manifest.files.items():
        try:
            check_header(folder, name, entry)
        except CorruptError as error:
            yield str(error)
        else:
            yield from _verify_pieces(folder, name, manifest)


def _verify_pieces(folder: str, name: str, manifest: Manifest) -> Iterator[str]:
    for key, tensor in manifest.tensors.items():
        for piece in tensor.pieces:
            if piece.file == name:
                try:
                    read_piece(folder, key, piece)
                except CorruptError as error:
                    yield str(error)


def read_tensor(folder: str, manifest: Manifest, key: str, rows: range | None = None) -> Any:
    """Returns one tensor, or some places of its first axis, from its verified pieces: a torch.Tensor on the CPU.

    A piece is read whole, as its hash is that of all its bytes; those without any of these rows are not read.
    """
    import torch

    entry = manifest.tensors[key]
    rows = range(entry.shape[0] if entry.shape else 1) if rows is None else rows
    shape = (len(rows), *entry.shape[1:]) if entry.shape else ()
    tensor = torch.empty(shape, dtype=torch_dtype(entry.dtype))
    for piece in entry.pieces:
        if not entry.shape:
            return torch.frombuffer(read_piece(folder, key, piece), dtype=tensor.dtype).view(())
        first = max(rows.start, piece.offsets[0])
        last = min(rows.stop, piece.offsets[0] + piece.sizes[0])
        if first >= last:
            continue
        part = torch.frombuffer(read_piece(folder, key, piece), dtype=tensor.dtype).view(piece.sizes)
        across = tuple(slice(at, at + size) for at, size in zip(piece.offsets[1:], piece.sizes[1:], strict=True))
        inside = part[first - piece.offsets[0] : last - piece.offsets[0]]
        tensor[(slice(first - rows.start, last - rows.start), *across)] = inside
    return tensor
