"""Our shard format (storage/shards.py) under torch's Distributed Checkpoint: planners, writer and reader of a rank.

DCP coordinates the ranks, cuts and joins for any number of them, and gathers errors. Its own storage is not used:
its metadata is a pickle and nothing in it is hashed. Knows no run directory and no policy.
"""

from __future__ import annotations

import concurrent.futures
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from launchyard.storage import files, options
from launchyard.storage.errors import CorruptError
from launchyard.storage.safetensors import DTYPE_BYTES, dtype_code, safetensors_header, torch_dtype
from launchyard.storage.shards import FileEntry, Manifest, TensorEntry, TensorPiece, check_header, read_pieces
from launchyard.training.checkpoint.state import Shard

# Largest piece with one hash: small enough that a resized run reads little more than it needs.
PIECE_BYTES = 32 << 20
Entries = dict[str, tuple[str, tuple[int, ...]]]  # dtype and sizes of each piece of a file
Hash = concurrent.futures.Future[str]
READERS = 4
HASHED_BEHIND = 4  # pieces whose hash may still be computed while the next one is written


def row_ranges(shard: Shard) -> Iterable[tuple[int, int]]:
    """(first row, rows) of each piece of this rank's part; a scalar is one piece."""
    tensor = shard.tensor
    if tensor.ndim == 0:
        yield 0, 1
        return
    row_bytes = max(1, tensor.element_size() * math.prod(tensor.shape[1:]))
    rows = max(1, PIECE_BYTES // row_bytes)
    for start in range(0, tensor.shape[0], rows):
        yield start, min(rows, tensor.shape[0] - start)


class ShardSavePlanner(SavePlanner):
    """Every rank plans its own writes, so the global plan only joins the lists."""

    def set_up_planner(
        self, state_dict: dict[str, Shard], storage_meta: object = None, is_coordinator: bool = False
    ) -> None:
        self._shards = state_dict

    def create_local_plan(self) -> SavePlan:
        return SavePlan(
            [
                self._item(key, shard, start, rows)
                for key, shard in self._shards.items()
                if shard.writes and shard.tensor.numel()
                for start, rows in row_ranges(shard)
            ]
        )

    @staticmethod
    def _item(key: str, shard: Shard, start: int, rows: int) -> WriteItem:
        scalar = shard.tensor.ndim == 0
        offsets = () if scalar else (shard.offsets[0] + start, *shard.offsets[1:])
        sizes = () if scalar else (rows, *shard.tensor.shape[1:])
        return WriteItem(
            index=MetadataIndex(key, torch.Size(offsets)),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
                properties=TensorProperties(dtype=shard.tensor.dtype),
                size=torch.Size(shard.shape),
            ),
        )

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return all_plans, Metadata({})  # the manifest is made from the results of the writes

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        shard = self._shards[write_item.index.fqn]
        data = write_item.tensor_data
        assert data is not None
        if shard.tensor.ndim == 0:
            return shard.tensor
        start = data.chunk.offsets[0] - shard.offsets[0]
        return shard.tensor[start : start + data.chunk.sizes[0]]


Commit = Callable[[dict[str, FileEntry], dict[str, TensorEntry]], None]


class ShardWriter(StorageWriter):
    """One safetensors file a rank, hashed while it is written. `commit` gets (files, tensors) on rank 0, last."""

    def __init__(self, folder: str, name: str, commit: Commit) -> None:
        self._folder = folder
        self._name = name
        self._commit = commit
        self.seconds = 0.0  # in which this rank's file was written

    def reset(self, checkpoint_id: object = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: object, **kwargs: object) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        done: Future[list[WriteResult]] = Future()
        began = time.perf_counter()
        done.set_result(self._write(plan, planner) if plan.items else [])
        self.seconds = time.perf_counter() - began
        return done

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        entries = {_entry_name(item): _entry(item) for item in plan.items}
        header = safetensors_header(entries)
        results = []
        at = len(header)
        path = f"{self._folder}/{self._name}"
        file = files.open_write(path, size=at + sum(_length(item) for item in plan.items))
        try:
            file.write(header)
            for result in self._write_pieces(file, plan, planner, entries, at):
                results.append(result)
                at += result.size_in_bytes
            file.close()
        except BaseException:
            file.discard()
            raise
        written = files.size(path)
        if written != at:
            raise OSError(f"{path} holds {written} bytes after {at} were written")
        entry = FileEntry(bytes=at, header_bytes=len(header), header_xxh3=xxhash.xxh3_64_hexdigest(header))
        results.append(WriteResult(MetadataIndex(self._name), len(header), entry))
        return results

    def _write_pieces(
        self, file: options.Writer, plan: SavePlan, planner: SavePlanner, entries: Entries, at: int
    ) -> Iterator[WriteResult]:
        with ThreadPoolExecutor(
            1
        ) as hasher:  # of the priority of this thread: as a save aside, or one that is waited for
            hashed: deque[tuple[WriteItem, int, int, Hash]] = deque()  # written, and their hash perhaps not yet known
            for item in plan.items:
                raw = as_bytes(planner.resolve_data(item))
                hashed.append((item, at, len(raw), hasher.submit(xxhash.xxh3_64_hexdigest, raw)))
                file.write(raw)
                at += len(raw)
                if len(hashed) > HASHED_BEHIND:
                    yield self._result(entries, *hashed.popleft())
            for piece in hashed:
                yield self._result(entries, *piece)

    def _result(self, entries: Entries, item: WriteItem, start: int, length: int, digest: Hash) -> WriteResult:
        dtype, sizes = entries[_entry_name(item)]
        piece = TensorPiece(
            offsets=tuple(item.index.offset or ()),
            sizes=sizes,
            file=self._name,
            start=start,
            length=length,
            xxh3=digest.result(),
        )
        assert item.tensor_data is not None
        return WriteResult(item.index, length, (dtype, tuple(item.tensor_data.size), piece))

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        written: dict[str, FileEntry] = {}
        found: dict[str, tuple[str, tuple[int, ...], list[TensorPiece]]] = {}
        for result in (result for of_rank in results for result in of_rank):
            if isinstance(result.storage_data, FileEntry):
                written[result.index.fqn] = result.storage_data
            else:
                dtype, shape, piece = result.storage_data
                found.setdefault(result.index.fqn, (dtype, shape, []))[2].append(piece)
        self._commit(
            written,
            {
                key: TensorEntry(dtype=dtype, shape=shape, pieces=tuple(sorted(pieces, key=lambda p: p.offsets)))
                for key, (dtype, shape, pieces) in sorted(found.items())
            },
        )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        return True


class ShardLoadPlanner(LoadPlanner):
    """This rank's parts, cut from whatever parts were saved."""

    def set_up_planner(
        self, state_dict: dict[str, Shard], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        self._shards = state_dict
        self._metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        saved = self._metadata.state_dict_metadata
        missing = sorted(self._shards.keys() - saved.keys())
        if missing:
            raise CorruptError(f"the checkpoint lacks {len(missing)} tensors, {missing[0]} among them")
        items = []
        for key, shard in self._shards.items():
            entry = saved[key]
            assert isinstance(entry, TensorStorageMetadata)
            if tuple(entry.size) != shard.shape or entry.properties.dtype != shard.tensor.dtype:
                raise CorruptError(f"{key} is {tuple(entry.size)} in the checkpoint and {shard.shape} in the model")
            if shard.tensor.numel():
                mine = ChunkStorageMetadata(torch.Size(shard.offsets), shard.tensor.shape)
                items += create_read_items_for_chunk_list(key, entry, [mine])
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: object) -> None:
        raise AssertionError("our checkpoints hold tensors only")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        target = self._shards[read_item.dest_index.fqn].tensor
        return target[_slices(read_item.dest_offsets, read_item.lengths)] if target.ndim else target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None: ...


class ShardReader(StorageReader):
    """Reads pieces, a few at a time, and returns only bytes that match their hash."""

    def __init__(self, folder: str, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._pieces = {
            (key, piece.offsets): piece for key, tensor in manifest.tensors.items() for piece in tensor.pieces
        }

    def reset(self, checkpoint_id: object = None) -> None: ...

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        return Metadata(
            {
                key: TensorStorageMetadata(
                    TensorProperties(dtype=torch_dtype(entry.dtype)),
                    torch.Size(entry.shape),
                    [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in entry.pieces],
                )
                for key, entry in self._manifest.tensors.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: object, **kwargs: object
    ) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        names = sorted({self._piece_of(item).file for item in plan.items})
        with ThreadPoolExecutor(READERS) as pool:
            # Headers are asked for first and not waited for: what they find wrong is told before what a piece tells.
            headers = pool.map(lambda name: check_header(self._folder, name, self._manifest.files[name]), names)
            pieces = pool.map(lambda run: self._read(run, planner), self._runs(plan.items))
            for _ in chain(headers, pieces):
                pass
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _piece_of(self, item: ReadItem) -> TensorPiece:
        return self._pieces[item.storage_index.fqn, tuple(item.storage_index.offset)]

    def _runs(self, items: Iterable[ReadItem]) -> list[list[ReadItem]]:
        """Items whose pieces follow each other in a file, about PIECE_BYTES together: a request has its price."""
        runs: list[list[ReadItem]] = []
        file = ""
        end = 0
        budget = 0
        for item in sorted(items, key=lambda item: (self._piece_of(item).file, self._piece_of(item).start)):
            piece = self._piece_of(item)
            if (piece.file, piece.start) != (file, end) or piece.length > budget:
                runs.append([])
                budget = PIECE_BYTES
            runs[-1].append(item)
            file = piece.file
            end = piece.start + piece.length
            budget = budget - piece.length
        return runs

    @torch.no_grad()
    def _read(self, run: list[ReadItem], planner: LoadPlanner) -> None:
        """Straight into a tensor's memory where a whole piece belongs there, else through a buffer."""
        requests = []
        buffered = []
        for item in run:
            piece = self._piece_of(item)
            target = planner.resolve_tensor(item)
            if tuple(item.lengths) == piece.sizes and target.device.type == "cpu" and target.is_contiguous():
                memory = as_bytes(target)
            else:
                memory = memoryview(bytearray(piece.length))
                buffered.append((item, piece, target, memory))
            requests.append((item.storage_index.fqn, piece, memory))
        read_pieces(f"{self._folder}/{requests[0][1].file}", *requests)
        for item, piece, target, memory in buffered:
            source = torch.frombuffer(memory, dtype=target.dtype).view(piece.sizes)
            target.copy_(source[_slices(item.storage_offsets, item.lengths)] if piece.sizes else source)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        return True


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a CPU tensor, without a copy if it is contiguous."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _entry_name(item: WriteItem) -> str:
    return f"{item.index.fqn}@{','.join(map(str, item.index.offset or ()))}"


def _entry(item: WriteItem) -> tuple[str, tuple[int, ...]]:
    assert item.tensor_data is not None
    return dtype_code(item.tensor_data.properties.dtype), tuple(item.tensor_data.chunk.sizes)


def _length(item: WriteItem) -> int:
    dtype, sizes = _entry(item)
    return DTYPE_BYTES[dtype] * math.prod(sizes)


def _slices(offsets: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(at, at + length) for at, length in zip(offsets, lengths, strict=True))
