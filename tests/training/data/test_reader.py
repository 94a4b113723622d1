from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.storage.errors import CorruptError
from launchyard.training.batching import count_samples
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.index import ChunkDigest, Digests
from launchyard.training.data.reader import Batch, Prefetcher, TokenReader
from launchyard.training.data.token_store import TokenStore
from launchyard.training.spec import IGNORE_INDEX
from tests.support.litdata_reader import write_chunks


@pytest.fixture(scope="module")
def stream() -> list[int]:
    return random.Random(1).choices(range(60_000), k=5003)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, stream: list[int]) -> Path:
    place = tmp_path_factory.mktemp("chunks") / "train"
    write_chunks(place, stream, chunk=700)
    sign(place, 700, len(stream))
    return place


def sign(place: Path, chunk: int, total: int) -> None:
    """Add digests.json."""
    chunks = {}
    for number, start in enumerate(range(0, total, chunk)):
        raw = (place / f"chunk-0-{number}.bin").read_bytes()
        tokens = min(chunk, total - start)
        chunks[f"chunk-0-{number}.bin"] = ChunkDigest(bytes=len(raw), tokens=tokens, xxh3=xxhash.xxh3_64_hexdigest(raw))
    (place / "digests.json").write_text(Digests(chunks=chunks).model_dump_json())


def reader(folder: Path, **changes: object) -> TokenReader:
    settings = {"seq_len": 33, "global_batch_size": 24, "seed": 4} | changes
    return TokenReader([TokenStore(str(folder))], **settings)


def test_read_across_chunks(folder: Path, stream: list[int]) -> None:
    store = TokenStore(str(folder))
    assert store.n_tokens == len(stream)
    assert store.verifiable
    draw = random.Random(2)
    for _ in range(200):
        start = draw.randrange(len(stream) + 1)
        length = draw.randrange(len(stream) - start + 1)
        assert store.read(start, length).tolist() == stream[start : start + length]
    with pytest.raises(IndexError):
        store.read(1, len(stream))


@pytest.mark.parametrize("data_format", ["no_header_numpy:2", "no_header_tensor:16", "no_header_tensor:20"])
def test_element_types(tmp_path: Path, data_format: str) -> None:
    largest = 65_535 if data_format.endswith(":20") else 199_999
    write_chunks(tmp_path / "x", [5, largest, 7], chunk=2, data_format=data_format)
    assert TokenStore(str(tmp_path / "x")).read(0, 3).tolist() == [5, largest, 7]


@settings(max_examples=25, deadline=None)
@given(seq_len=st.sampled_from([1, 2, 7, 33, 500, 5001, 5002, 5003, 9000]), size=st.sampled_from([1, 4, 24]))
def test_samples_join_to_the_stream(folder: Path, stream: list[int], seq_len: int, size: int) -> None:
    """Nothing is lost, not even the short tail, and labels are the inputs one later."""
    found = reader(folder, seq_len=seq_len, global_batch_size=size, shuffle=False)
    assert found.n_samples == count_samples(len(stream), seq_len)
    inputs, labels = [], []
    for step in range(-(-found.n_samples // size)):
        samples = found.batch(step)
        assert samples.inputs.shape == samples.labels.shape == (size, seq_len)
        assert samples.inputs.dtype == samples.labels.dtype == torch.int64
        assert samples.n_valid == int((samples.labels != IGNORE_INDEX).sum())
        for row in range(min(size, found.n_samples - step * size)):
            valid = samples.labels[row] != IGNORE_INDEX
            inputs += samples.inputs[row][valid].tolist()
            labels += samples.labels[row][valid].tolist()
    assert inputs == stream[:-1]
    assert labels == stream[1:]


def test_padding_is_at_the_end_and_harmless(folder: Path, stream: list[int]) -> None:
    samples = reader(folder, seq_len=5000, global_batch_size=2, shuffle=False).batch(0)
    assert samples.n_valid == 5002
    assert (samples.labels[1, 2:] == IGNORE_INDEX).all()
    assert samples.inputs[1].tolist() == [*stream[5000:5002], *[0] * 4998]


def test_hash_of_a_step_does_not_depend_on_the_cut(folder: Path) -> None:
    """For any number of workers and any micro batch; and it is what its definition says."""
    whole = reader(folder)
    for step in (0, 7, 63, 64, 1000):
        every = whole.batch(step)
        for share in (1, 2, 3, 4, 6, 8, 12, 24):  # of a worker, or of one pass of it
            cut = reader(folder)
            parts = [cut.batch(step, slot, share) for slot in range(0, 24, share)]
            assert torch.equal(torch.cat([part.inputs for part in parts]), every.inputs)
            assert torch.equal(torch.cat([part.labels for part in parts]), every.labels)
            assert sum(part.n_valid for part in parts) == every.n_valid
            assert int(torch.tensor([part.data_hash for part in parts]).sum()) == every.data_hash
        assert -(2**63) <= every.data_hash < 2**63
        total = 0
        for inputs, labels in zip(every.inputs, every.labels, strict=True):
            valid = int((labels != IGNORE_INDEX).sum())
            ids = [*inputs[:valid].tolist(), int(labels[valid - 1]), valid]
            total += xxhash.xxh3_64_intdigest(np.array(ids, dtype="<i4").tobytes())
        assert total % 2**64 == every.data_hash % 2**64


def test_the_tokens_of_each_source_are_counted(tmp_path: Path, folder: Path) -> None:
    """Those of a mixture sum up to what its batches hold; the last sample of a source is short."""
    write_chunks(tmp_path / "other", list(range(900)), chunk=250)
    stores = [TokenStore(str(folder)), TokenStore(str(tmp_path / "other"))]
    mixed = TokenReader(
        stores, weights=[0.8, 0.2], later=[(9, [0, 1]), (70, [1, 1])], seq_len=64, global_batch_size=8, seed=4
    )
    tokens = 0
    counts = mixed.tokens_read(0)
    assert counts == [0, 0]
    for step in range(120):
        tokens += mixed.batch(step).n_tokens
        before, counts = counts, mixed.tokens_read(step + 1)
        assert sum(counts) == tokens
        assert (counts[0] == before[0]) == (9 <= step < 70)
    assert counts[1] > 3 * 900
    with pytest.raises(ValueError, match="end to end"):
        TokenReader(stores, seq_len=64, global_batch_size=8).tokens_read(1)


def test_a_mixture_reads_each_source_as_it_is(tmp_path: Path, stream: list[int], folder: Path) -> None:
    """Every sample is the one that the plan names, whatever the cut; and both sources' tokens come complete."""
    other = [token + 60_000 for token in range(900)]
    write_chunks(tmp_path / "other", other, chunk=250)
    stores = [TokenStore(str(folder)), TokenStore(str(tmp_path / "other"))]
    read = TokenReader(stores, weights=[0.8, 0.2], seq_len=33, global_batch_size=24, seed=4)
    seen: tuple[set[int], set[int]] = (set(), set())
    sources, samples = read.plan(0, 0, 24, 40)
    for step in range(40):
        whole = read.batch(step)
        parts = [read.batch(step, slot, 8) for slot in (0, 8, 16)]
        assert sum(part.data_hash for part in parts) % 2**64 == whole.data_hash % 2**64
        for row in range(24):
            source, sample = int(sources[step, row]), int(samples[step, row])
            tokens = (stream, other)[source][33 * sample : 33 * sample + 34]
            count = len(tokens) - 1
            assert whole.inputs[row, :count].tolist() == tokens[:-1]
            assert whole.labels[row, :count].tolist() == tokens[1:]
            assert (whole.labels[row, count:] == IGNORE_INDEX).all()
            seen[source].update(tokens)
        assert read.sample_ids(step, 8, 8) == list(
            zip(sources[step, 8:16].tolist(), samples[step, 8:16].tolist(), strict=True)
        )
    assert seen[1] == set(other)
    assert seen[0] == set(stream)


def test_without_weights_sources_are_read_end_to_end(tmp_path: Path, stream: list[int], folder: Path) -> None:
    write_chunks(tmp_path / "other", [7, 8, 9], chunk=2)
    stores = [TokenStore(str(folder)), TokenStore(str(tmp_path / "other"))]
    read = TokenReader(stores, seq_len=33, global_batch_size=4, shuffle=False)
    assert read.n_samples == 153
    ids = [found for step in range(39) for found in read.sample_ids(step, 0, 4)]
    assert ids[:153] == [(0, sample) for sample in range(152)] + [(1, 0)]
    last = read.batch(38)
    assert last.inputs[0, :2].tolist() == [7, 8]


def test_hash_sees_every_token(tmp_path: Path, stream: list[int]) -> None:
    write_chunks(tmp_path / "a", stream, chunk=700)
    hashes = set()
    for place in (0, 33, 34, 5002):
        changed = list(stream)
        changed[place] ^= 1
        write_chunks(tmp_path / f"b{place}", changed, chunk=700)
        read = reader(tmp_path / f"b{place}", shuffle=False, global_batch_size=152)
        assert read.n_samples == 152
        hashes.add(read.batch(0).data_hash)
    assert len(hashes | {reader(tmp_path / "a", shuffle=False, global_batch_size=152).batch(0).data_hash}) == 5


@pytest.mark.parametrize("fault", ["flip", "flip header", "cut", "longer", "missing"])
@pytest.mark.parametrize("signed", [True, False])
def test_damage_is_named(tmp_path: Path, stream: list[int], fault: str, signed: bool) -> None:
    write_chunks(tmp_path / "t", stream, chunk=700)
    if signed:
        sign(tmp_path / "t", 700, len(stream))
    victim = tmp_path / "t" / "chunk-0-3.bin"
    raw = bytearray(victim.read_bytes())
    if fault == "missing":
        victim.unlink()
    elif fault == "cut":
        victim.write_bytes(raw[:-2])
    elif fault == "longer":
        victim.write_bytes(raw + b"\0\0")
    else:
        raw[4 if fault == "flip header" else 900] ^= 16
        victim.write_bytes(raw)
    store = TokenStore(str(tmp_path / "t"))
    assert store.read(0, 2100).tolist() == stream[:2100]
    if fault == "flip" and not signed:
        assert not store.verifiable
        return
    words = {"cut": "it is cut", "missing": "is missing"}.get(fault, "changed")
    with pytest.raises(CorruptError, match=rf"chunk-0-3\.bin .*{words}"):
        store.read(2099, 2)


def test_digests_of_other_chunks(tmp_path: Path, stream: list[int]) -> None:
    write_chunks(tmp_path / "t", stream, chunk=700)
    sign(tmp_path / "t", 700, 2100)
    with pytest.raises(CorruptError, match=r"digests\.json"):
        TokenStore(str(tmp_path / "t"))


def test_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    write_chunks(tmp_path / "t", [1, 2, 9, 3], chunk=4)
    assert TokenStore(str(tmp_path / "t"), vocab_size=10).read(0, 4).tolist() == [1, 2, 9, 3]
    with pytest.raises(CorruptError, match=r"chunk-0-0\.bin holds token id 9; the vocabulary has ids 0 to 8"):
        TokenStore(str(tmp_path / "t"), vocab_size=9).read(0, 1)
    write_chunks(tmp_path / "n", [1, -2], chunk=4, data_format="no_header_numpy:2")
    with pytest.raises(CorruptError, match="token id -2"):
        TokenStore(str(tmp_path / "n")).read(0, 1)


def test_more_chunks_than_stay_open(tmp_path: Path, stream: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launchyard.training.data.token_store.MAX_OPEN_CHUNKS", 3)
    write_chunks(tmp_path / "t", stream, chunk=100)
    store = TokenStore(str(tmp_path / "t"))
    for start in (0, 4000, 100, 4900, 0):
        assert store.read(start, 103).tolist() == stream[start : start + 103]


def test_too_few_tokens(tmp_path: Path) -> None:
    write_chunks(tmp_path / "t", [1], chunk=4)
    with pytest.raises(ValueError, match="has 1 tokens; a sample needs at least 2"):
        reader(tmp_path / "t")


def test_slots_outside_the_batch(folder: Path) -> None:
    for bad in [(0, 20, 5), (0, -1, 2), (-1, 0, 2), (0, 3, 0)]:
        with pytest.raises(IndexError, match="a global batch has 24"):
            reader(folder).batch(*bad)


def test_remote_chunks_come_verified_through_the_cache(tmp_path: Path, stream: list[int]) -> None:
    """memory:// stands for an object store: any fsspec URL goes the same way."""
    import fsspec

    write_chunks(tmp_path / "t", stream, chunk=700)
    sign(tmp_path / "t", 700, len(stream))
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "t"), f"/{tmp_path.name}", recursive=True)
    url, cache = f"memory://{tmp_path.name}", tmp_path / "cache"
    try:
        store = TokenStore(url, cache=ChunkCache(str(cache)))
        assert store.read(600, 900).tolist() == stream[600:1500]
        assert len(list(cache.glob("*/*.bin"))) == 3
        fs.pipe_file(f"/{tmp_path.name}/chunk-0-5.bin", b"x" * 1412)
        with pytest.raises(CorruptError, match=rf"{url}/chunk-0-5\.bin is changed"):
            store.read(3500, 1)
        fs.rm(f"/{tmp_path.name}/chunk-0-0.bin")
        assert TokenStore(url, cache=ChunkCache(str(cache))).read(0, 10).tolist() == stream[:10]  # kept
        fs.rm(f"/{tmp_path.name}/chunk-0-6.bin")
        with pytest.raises(CorruptError, match=r"chunk-0-6\.bin is missing"):
            store.read(4200, 1)
    finally:
        fs.rm(f"/{tmp_path.name}", recursive=True)


def test_chunks_compressed_as_a_whole(tmp_path: Path, stream: list[int]) -> None:
    import json

    import zstandard

    place = tmp_path / "t"
    write_chunks(place, stream, chunk=700)
    index = json.loads((place / "index.json").read_text())
    index["config"]["compression"] = "zstd"
    for chunk in index["chunks"]:
        plain = place / chunk["filename"]
        chunk["filename"] = plain.name.replace(".bin", ".zstd.bin")
        (place / chunk["filename"]).write_bytes(zstandard.compress(plain.read_bytes()))
        plain.unlink()
    (place / "index.json").write_text(json.dumps(index))
    assert TokenStore(str(place), cache=ChunkCache(str(tmp_path / "c"))).read(0, 5003).tolist() == stream
    victim = place / "chunk-0-2.zstd.bin"
    victim.write_bytes(victim.read_bytes()[:-9])
    with pytest.raises(CorruptError, match=r"chunk-0-2\.zstd\.bin"):
        TokenStore(str(place), cache=ChunkCache(str(tmp_path / "d"))).read(0, 5003)


# -- prefetching -----------------------------------------------------------------------------------------------------
def same(one: Batch, two: Batch) -> bool:
    return (
        torch.equal(one.inputs, two.inputs) and torch.equal(one.labels, two.labels) and one.data_hash == two.data_hash
    )


def test_prefetcher_goes_on_from_any_step(folder: Path) -> None:
    with Prefetcher(reader(folder), start_step=62, stop_step=67, first_slot=8, n=8) as feed:
        found = list(feed)
    assert [step for step, _ in found] == [62, 63, 64, 65, 66]
    assert all(same(samples, reader(folder).batch(step, 8, 8)) for step, samples in found)
    assert not alive()


def test_prefetcher_hands_on_errors(tmp_path: Path, stream: list[int]) -> None:
    write_chunks(tmp_path / "t", stream, chunk=700)
    (tmp_path / "t" / "chunk-0-7.bin").unlink()
    feed = Prefetcher(reader(tmp_path / "t", shuffle=False))
    with pytest.raises(CorruptError, match=r"chunk-0-7\.bin is missing"):
        list(feed)
    assert not alive()
    with pytest.raises(StopIteration):
        next(feed)


def test_prefetcher_closes_while_its_queue_is_full(folder: Path) -> None:
    feed = Prefetcher(reader(folder), depth=1)
    next(feed)
    feed.close()
    feed.close()
    assert not alive()


def alive() -> bool:
    return any(thread.name == "prefetch-tokens" for thread in threading.enumerate())
