"""A rank's parts as one safetensors file, hashed while it is written, and back from the files of any number of ranks.

The format is that of storage/shards.py. Knows no other rank, no run directory and no policy.
"""

from __future__ import annotations

import concurrent.futures
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from launchyard.storage import files, layouts, options
from launchyard.storage.errors import CorruptError
from launchyard.storage.layouts import HASH_BYTES, HASHES, Extent
from launchyard.storage.safetensors import dtype_code, safetensors_header
from launchyard.storage.shards import FileEntry, Manifest, OpenShards, TensorPiece, open_shards, read_pieces
from launchyard.training.checkpoint.state import Shard

# Largest piece with one hash: small enough that a resized run reads little more than it needs.
PIECE_BYTES = 32 << 20
READERS = 4
HASHED_BEHIND = 4  # pieces whose hash may still be computed while the next one is written

Hash = concurrent.futures.Future[bytes]


# -- writing ---------------------------------------------------------------------------------------------------------
def written_parts(shards: Mapping[str, Shard]) -> dict[str, tuple[str, Extent, Extent, Extent]]:
    """(dtype, shape of the whole tensor, offsets, sizes) of what this rank writes, by key, in order."""
    return {
        key: (dtype_code(shard.tensor.dtype), tuple(shard.shape), tuple(shard.offsets), tuple(shard.tensor.shape))
        for key, shard in sorted(shards.items())
        if shard.writes and shard.tensor.numel()
    }


def write_parts(folder: str, name: str, shards: Mapping[str, Shard]) -> FileEntry | None:
    """Writes this rank's file, and returns what the manifest says of it; None if there is nothing to write."""
    pieces = list(_pieces(shards))
    if not pieces:
        return None
    entries = {layouts.piece_name(key, offsets): (dtype, tuple(part.shape)) for key, offsets, dtype, part in pieces}
    entries[HASHES] = ("U8", (len(pieces), HASH_BYTES))
    header = safetensors_header(entries)
    n_bytes = len(header) + sum(part.nbytes for *_, part in pieces) + HASH_BYTES * len(pieces)
    path = f"{folder}/{name}"
    file = files.open_write(path, size=n_bytes)
    try:
        file.write(header)
        hashes = b"".join(_write_pieces(file, (part for *_, part in pieces)))
        file.write(hashes)
        file.close()
    except BaseException:
        file.discard()
        raise
    found = files.size(path)
    if found != n_bytes:
        raise OSError(f"{path} holds {found} bytes after {n_bytes} were written")
    return FileEntry(
        bytes=n_bytes,
        header_bytes=len(header),
        header_xxh3=xxhash.xxh3_64_hexdigest(header),
        pieces=len(pieces),
        hashes_xxh3=xxhash.xxh3_64_hexdigest(hashes),
    )


def _pieces(shards: Mapping[str, Shard]) -> Iterator[tuple[str, Extent, str, Tensor]]:
    """(key, offsets, dtype, tensor) of each piece, in the order of the file."""
    for key, (dtype, _, offsets, sizes) in written_parts(shards).items():
        tensor = shards[key].tensor
        for first, rows in layouts.cut_rows(dtype, sizes, PIECE_BYTES):
            if sizes:
                yield key, (offsets[0] + first, *offsets[1:]), dtype, tensor[first : first + rows]
            else:
                yield key, (), dtype, tensor


def _write_pieces(file: options.Writer, pieces: Iterable[Tensor]) -> Iterator[bytes]:
    """Writes pieces one after the other, and yields the hash of each."""
    with ThreadPoolExecutor(1) as hasher:  # of the priority of this thread: as a save aside, or one that is waited for
        hashed: deque[Hash] = deque()  # of those that are written, perhaps not yet known
        for piece in pieces:
            raw = as_bytes(piece)
            hashed.append(hasher.submit(xxhash.xxh3_64_digest, raw))
            file.write(raw)
            if len(hashed) > HASHED_BEHIND:
                yield hashed.popleft().result()
        for one in hashed:
            yield one.result()


# -- reading ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Wanted:
    """A piece, and what of it belongs into a tensor: places of the piece, and the memory for them."""

    key: str
    piece: TensorPiece
    source: tuple[slice, ...]
    target: Tensor

    @property
    def is_whole(self) -> bool:
        """Does it belong there as it lies in the file?"""
        target = self.target
        return tuple(target.shape) == self.piece.sizes and target.device.type == "cpu" and target.is_contiguous()


@torch.no_grad()
def read_parts(folder: str, manifest: Manifest, shards: Mapping[str, Shard]) -> None:
    """Fills `shards` from whatever parts were saved, a few pieces at a time; every byte that is used matches its hash.

    Raises CorruptError.
    """
    _check_fit(manifest, shards)
    filled = {key: shard for key, shard in shards.items() if shard.tensor.numel()}
    opened = open_shards(folder, manifest)
    names = {
        name for key, one in filled.items() for name in opened.names(key, tuple(one.offsets), tuple(one.tensor.shape))
    }
    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(opened.open, sorted(names)):
            pass
        wanted = [one for key, shard in filled.items() for one in _wanted(opened, key, shard)]
        for _ in pool.map(lambda run: _read(folder, run), _runs(wanted)):
            pass


def _check_fit(manifest: Manifest, shards: Mapping[str, Shard]) -> None:
    missing = sorted(shards.keys() - manifest.tensors.keys())
    if missing:
        raise CorruptError(f"the checkpoint lacks {len(missing)} tensors, {missing[0]} among them")
    for key, shard in shards.items():
        entry = manifest.tensors[key]
        if (entry.shape, entry.dtype) != (tuple(shard.shape), dtype_code(shard.tensor.dtype)):
            raise CorruptError(f"{key} is {entry.shape} in the checkpoint and {shard.shape} in the model")


def _wanted(opened: OpenShards, key: str, shard: Shard) -> Iterator[_Wanted]:
    """What fills a part. CorruptError if the pieces leave a hole in it."""
    offsets = tuple(shard.offsets)
    sizes = tuple(shard.tensor.shape)
    count = 0
    for piece in opened.pieces(key, offsets, sizes):
        both = layouts.common(offsets, sizes, piece.offsets, piece.sizes)
        assert both is not None
        count += math.prod(both[1])
        target = shard.tensor[_slices(both, offsets)] if sizes else shard.tensor
        yield _Wanted(key, piece, _slices(both, piece.offsets), target)
    if count != shard.tensor.numel():
        raise CorruptError(
            f"the checkpoint holds {count} of {shard.tensor.numel()} numbers of this rank's part of {key}"
        )


def _slices(box: tuple[Extent, Extent], origin: Extent) -> tuple[slice, ...]:
    return tuple(slice(at - zero, at - zero + n) for at, n, zero in zip(*box, origin, strict=True))


def _runs(wanted: list[_Wanted]) -> list[list[_Wanted]]:
    """Those whose pieces follow each other in a file, about PIECE_BYTES together: a request has its price."""
    runs: list[list[_Wanted]] = []
    file = ""
    end = 0
    budget = 0
    for one in sorted(wanted, key=lambda one: (one.piece.file, one.piece.start)):
        piece = one.piece
        if (piece.file, piece.start) != (file, end) or piece.length > budget:
            runs.append([])
            budget = PIECE_BYTES
        runs[-1].append(one)
        file = piece.file
        end = piece.start + piece.length
        budget = budget - piece.length
    return runs


@torch.no_grad()
def _read(folder: str, run: list[_Wanted]) -> None:
    """Straight into a tensor's memory where a whole piece belongs there, else through a buffer."""
    memory = [as_bytes(one.target) if one.is_whole else memoryview(bytearray(one.piece.length)) for one in run]
    requests = [(one.key, one.piece, raw) for one, raw in zip(run, memory, strict=True)]
    read_pieces(f"{folder}/{run[0].piece.file}", *requests)
    for one, raw in zip(run, memory, strict=True):
        if not one.is_whole:
            piece = torch.frombuffer(raw, dtype=one.target.dtype).view(one.piece.sizes)
            one.target.copy_(piece[one.source] if one.source else piece)


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a CPU tensor, without a copy if it is contiguous."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
