"""The format of a sharded set of tensors: safetensors files, and a manifest.json that makes them one thing.

Every saved piece is one entry of one safetensors file, named `key@offset,offset`; the last entry of a file holds their
xxh3 hashes. The manifest holds the hash of those, and who wrote which part of each tensor (storage/layouts.py). Its
first format listed every piece itself, and is read as well. No pickle anywhere: JSON and bytes.
Light: pydantic, xxhash and stdlib; torch only where tensors are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from launchyard.storage import files, layouts
from launchyard.storage.at_once import at_once
from launchyard.storage.errors import CorruptError, StoreError
from launchyard.storage.layouts import HASH_BYTES, Extent, FilePlaces, Part, PartList
from launchyard.storage.safetensors import DTYPE_BYTES, torch_dtype

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 2
READ_TRIES = 3
_SEAL = ',"xxh3":"'
_END = '"}'
_HEAD_BYTES = 512
_HEAD = re.compile(
    rb'\{"format":\d+,"step":\d+,"attempt":(\d+),(?:"run_id":"([^"\\]*)",)?"world_size":(\d+),"kind":"(\w+)"'
)
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
    """One tensor; its parts, or pieces, cover it without overlap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str = Field(description="As safetensors call it: F32, BF16 …")
    shape: tuple[int, ...] = Field(description="Of the whole tensor.")
    layout: int | None = Field(default=None, description="Its number among `layouts`, from 0; none in format 1.")
    pieces: tuple[TensorPiece, ...] = Field(default=(), description="In format 1 alone: each written by one rank.")


class FileEntry(BaseModel):
    """One safetensors file beside the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(description="Its whole size.")
    header_xxh3: str = Field(description="xxh3_64 of all that precedes the first piece.")
    header_bytes: int = Field(description="Bytes that precede it.")
    pieces: int = Field(default=0, description="Number of its pieces; their hashes end the file. 0 in format 1.")
    hashes_xxh3: str = Field(default="", description="xxh3_64 of those hashes, in hex; empty in format 1.")


class LogEntry(BaseModel):
    """The beginning of a file of rows, as it was when the checkpoint was begun."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: int = Field(description="Number of its lines.")
    xxh3: str = Field(description="xxh3_64 of them.")


class Manifest(BaseModel):
    """manifest.json. Written last: a folder without it does not exist.

    Those up to `kind` stay its first: read_head finds them in its first bytes.
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
    piece_bytes: int = Field(default=0, description="Parts are cut into pieces of so many bytes at most, or of a row.")
    files: dict[str, FileEntry] = Field(description="By name.")
    tensors: dict[str, TensorEntry] = Field(description="By key: `model.` weights, `optimizer.` moments.")
    layouts: tuple[PartList, ...] = Field(
        default=(),
        description="Ways in which tensors are cut: of each part the number of its file among `files`, the first "
        "element of each axis, and the elements of each axis.",
    )
    _open: dict[str, OpenShards] = PrivateAttr(default_factory=dict)

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
    world_size: int
    kind: str


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
    if found is None:
        return None
    return ManifestHead(int(found[1]), (found[2] or b"").decode(), int(found[3]), found[4].decode())


def read_checked_head(folder: str) -> ManifestHead | None:
    """The same of the whole manifest, whose seal is checked; None if it is damaged."""
    try:
        whole = read_manifest(folder)
    except CorruptError:
        return None
    return ManifestHead(whole.attempt, whole.run_id, whole.world_size, whole.kind)


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


def check_file(folder: str, name: str, entry: FileEntry) -> bytes:
    """Returns the hashes of the pieces of a file; nothing for one of format 1.

    Raises CorruptError if it is missing, of another size, or begins or ends with other bytes than were saved.
    """
    path = f"{folder}/{name}"

    def check() -> bytes:
        found = dict[str, bytes]()
        try:
            at_once(
                path,
                lambda: found.update(header=files.read(path, 0, entry.header_bytes)),
                lambda: found.update(tail=_tail(path, entry)),
            )
        except FileNotFoundError as error:
            raise CorruptError(f"{path} is missing") from error
        except StoreError:
            raise
        except OSError as error:
            raise CorruptError(f"{path} cannot be read: {error.strerror}") from error
        if _hash(found["header"]) != entry.header_xxh3:
            raise CorruptError(f"{path} is changed: the hash of its header is not what was saved")
        if entry.pieces and _hash(found["tail"]) != entry.hashes_xxh3:
            raise CorruptError(f"{path} is changed: the hash of the hashes of its pieces is not what was saved")
        return found["tail"]

    return again_if_remote(path, check)


def _tail(path: str, entry: FileEntry) -> bytes:
    """The hashes at the end of a file, in the request that shows that it ends there. CorruptError if it does not."""
    length = entry.pieces * HASH_BYTES
    tail = files.read(path, entry.bytes - length, length + 1) if entry.pieces else b""
    if not entry.pieces or len(tail) != length:
        size = files.size(path)
        if size != entry.bytes:
            fault = "cut" if size < entry.bytes else "changed"
            raise CorruptError(f"{path} has {size} bytes instead of {entry.bytes}: it is {fault}")
    return tail


class OpenShards:
    """The pieces of a sharded set. Of each file that holds some, header and hashes are read once, and checked."""

    def __init__(self, folder: str, manifest: Manifest) -> None:
        self._folder = folder
        self.manifest = manifest
        self._names = list(manifest.files)
        self._number = {key: number for number, key in enumerate(manifest.tensors)}
        self._parts: dict[int, dict[int, Part]] = {}  # of a layout, by the number of their file
        self._overlaps: dict[tuple[int, Extent, Extent], list[Part]] = {}
        self._files: dict[str, tuple[FilePlaces, bytes]] = {}

    def names(self, key: str, offsets: Extent, sizes: Extent) -> set[str]:
        """The files that hold something of a box of a tensor."""
        entry = self.manifest.tensors[key]
        if entry.layout is None:
            return {piece.file for piece in _within(entry.pieces, offsets, sizes)}
        return {self._names[part[0]] for part in self._overlapping(entry.layout, offsets, sizes)}

    def open(self, name: str) -> None:
        """Reads and checks what a file says of itself, if that was not done before. CorruptError if it is damaged."""
        if name not in self._files:
            entry = self.manifest.files[name]
            hashes = check_file(self._folder, name, entry)
            self._files[name] = (self._places(name, entry), hashes)

    def _places(self, name: str, entry: FileEntry) -> FilePlaces:
        manifest = self.manifest
        number = self._names.index(name)
        parts = ((one.dtype, self._part_in(one, number)) for one in manifest.tensors.values())
        found = layouts.part_places(parts, header_bytes=entry.header_bytes, piece_bytes=manifest.piece_bytes)
        end = entry.bytes - HASH_BYTES * entry.pieces
        if entry.pieces and (found.starts[-1], found.pieces[-1]) != (end, entry.pieces):
            raise CorruptError(f"{self._folder}/{name}: its parts are not as long as {MANIFEST} says")
        return found

    def _part_in(self, entry: TensorEntry, number: int) -> Part | None:
        if entry.layout is None:
            return None
        if entry.layout not in self._parts:
            self._parts[entry.layout] = {part[0]: part for part in self.manifest.layouts[entry.layout]}
        return self._parts[entry.layout].get(number)

    def _overlapping(self, layout: int, offsets: Extent, sizes: Extent) -> list[Part]:
        asked = (layout, offsets, sizes)
        if asked not in self._overlaps:
            parts = self.manifest.layouts[layout]
            self._overlaps[asked] = [part for part in parts if layouts.common(offsets, sizes, part[1], part[2])]
        return self._overlaps[asked]

    def pieces(self, key: str, offsets: Extent, sizes: Extent) -> Iterator[TensorPiece]:
        """The pieces that hold something of a box of a tensor."""
        entry = self.manifest.tensors[key]
        if entry.layout is None:
            yield from _within(entry.pieces, offsets, sizes)
            return
        for part in self._overlapping(entry.layout, offsets, sizes):
            self.open(self._names[part[0]])
            yield from _within(self._cut(key, entry, part), offsets, sizes)

    def pieces_in(self, name: str) -> Iterator[tuple[str, TensorPiece]]:
        """(key, piece) of all that a file holds."""
        number = self._names.index(name)
        for key, entry in self.manifest.tensors.items():
            yield from ((key, piece) for piece in entry.pieces if piece.file == name)
            if (part := self._part_in(entry, number)) is not None:
                self.open(name)
                yield from ((key, piece) for piece in self._cut(key, entry, part))

    def _cut(self, key: str, entry: TensorEntry, part: Part) -> Iterator[TensorPiece]:
        number, offsets, sizes = part
        places, hashes = self._files[self._names[number]]
        at = self._number[key]
        start = places.starts[at]
        row_bytes = DTYPE_BYTES[entry.dtype] * math.prod(sizes[1:])
        cuts = layouts.cut_rows(entry.dtype, sizes, self.manifest.piece_bytes)
        for hashed, (first, rows) in enumerate(cuts, start=places.pieces[at]):
            yield TensorPiece.model_construct(
                offsets=(offsets[0] + first, *offsets[1:]) if sizes else (),
                sizes=(rows, *sizes[1:]) if sizes else (),
                file=self._names[number],
                start=start + first * row_bytes,
                length=rows * row_bytes,
                xxh3=hashes[hashed * HASH_BYTES : (hashed + 1) * HASH_BYTES].hex(),
            )


def _within(pieces: Iterable[TensorPiece], offsets: Extent, sizes: Extent) -> Iterator[TensorPiece]:
    return (piece for piece in pieces if layouts.common(offsets, sizes, piece.offsets, piece.sizes))


def open_shards(folder: str, manifest: Manifest) -> OpenShards:
    """The pieces of a folder; what has been read of them is kept as long as the manifest is."""
    opened = manifest._open.get(folder)
    if opened is None or opened.manifest is not manifest:  # of a manifest that this one was copied from
        opened = manifest._open[folder] = OpenShards(folder, manifest)
    return opened


def verify(folder: str, manifest: Manifest) -> Iterator[str]:
    """Yields every fault of a sharded set as a message; nothing if it is intact. Reads all of it."""
    opened = OpenShards(folder, manifest)
    for name in manifest.files:
        try:
            opened.open(name)
        except CorruptError as error:
            yield str(error)
            continue
        for key, piece in opened.pieces_in(name):
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
    offsets = (rows.start, *(0 for _ in entry.shape[1:])) if entry.shape else ()
    for piece in open_shards(folder, manifest).pieces(key, offsets, shape):
        part = torch.frombuffer(read_piece(folder, key, piece), dtype=tensor.dtype).view(piece.sizes)
        if not entry.shape:
            return part
        first = max(rows.start, piece.offsets[0])
        last = min(rows.stop, piece.offsets[0] + piece.sizes[0])
        across = tuple(slice(at, at + size) for at, size in zip(piece.offsets[1:], piece.sizes[1:], strict=True))
        inside = part[first - piece.offsets[0] : last - piece.offsets[0]]
        tensor[(slice(first - rows.start, last - rows.start), *across)] = inside
    return tensor
