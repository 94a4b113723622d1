from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.training.data.order import Order, permute

orders = st.builds(
    Order,
    n_samples=st.tuples(st.integers(1, 3000)),
    global_batch_size=st.integers(1, 96),
    seed=st.integers(0, 2**64),
    shuffle=st.just(True),
    block_samples=st.sampled_from([1, 3, 16, 100, 16384]),
)


def stream_of(order: Order, stream: int, *, epochs: int) -> list[list[int]]:
    """What one stream reads, epoch by epoch."""
    (n,), streams = order.n_samples, order.n_streams
    width = order.global_batch_size // streams
    size = (stream + 1) * n // streams - stream * n // streams
    steps = -(-epochs * size // width)
    ids = order.slots(0, first=stream * width, n=width, steps=steps).ravel().tolist()
    return [ids[epoch * size : (epoch + 1) * size] for epoch in range(epochs)]


@settings(max_examples=60, deadline=None)
@given(orders)
def test_each_epoch_reads_every_sample_once(order: Order) -> None:
    first = [stream_of(order, stream, epochs=3) for stream in range(order.n_streams)]
    for epochs in first:
        assert len(set(epochs[0])) == len(epochs[0])
        assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert sorted(sample for epochs in first for sample in epochs[0]) == list(range(order.n_samples[0]))


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(0, 10**6), st.data())
def test_any_cut_of_the_slots_reads_the_same(order: Order, step: int, data: st.DataObject) -> None:
    whole = order.sample_ids(step)
    assert whole.shape == (order.global_batch_size,)
    assert whole.dtype == np.int64
    assert ((whole >= 0) & (whole < order.n_samples)).all()
    first = data.draw(st.integers(0, order.global_batch_size - 1))
    n = data.draw(st.integers(1, order.global_batch_size - first))
    before = data.draw(st.integers(0, min(step, 5)))
    cut = order.slots(step - before, first=first, n=n, steps=before + 2)
    assert (cut[before] == whole[first : first + n]).all()
    assert (cut[before + 1] == order.sample_ids(step + 1)[first : first + n]).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    found = permute(np.arange(size), np.full(size, size), np.array([key], dtype=np.uint64))
    assert sorted(found.tolist()) == list(range(size))


def test_a_trillion_tokens_are_instant() -> None:
    order = Order([10**12 // 2048], 1024, seed=5)
    began = time.perf_counter()
    late, early = order.sample_ids(10**9), order.sample_ids(3)
    assert time.perf_counter() - began < 1
    assert len(set(late.tolist()) | set(early.tolist())) == 2048


def test_another_process_agrees() -> None:
    """No hash seeds, no global random state."""
    program = (
        "from launchyard.training.data.order import Order; print(Order([5000], 24, seed=9).sample_ids(777).tolist())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(Order([5000], 24, seed=9).sample_ids(777).tolist())


def test_the_order_never_changes() -> None:
    """Whoever changes the order breaks the resumption of every run there is."""
    assert Order([1000], 8, seed=1).sample_ids(12).tolist() == PINNED
    assert Order([1000], 8, seed=1, shuffle=False).sample_ids(130).tolist() == [40, 41, 42, 43, 44, 45, 46, 47]


PINNED = [725, 458, 733, 61, 971, 393, 757, 440]


def test_it_looks_random() -> None:
    """First samples over many seeds are uniform; neighbours in time are not neighbours in the data."""
    firsts = [int(Order([100], 1, seed=seed).sample_ids(0)[0]) for seed in range(1000)]
    counts = np.bincount(firsts, minlength=100)
    chi2 = ((counts - 10) ** 2 / 10).sum()
    assert chi2 < 160  # 99 degrees of freedom: above with a chance of 1e-4
    order = Order([20000], 8, seed=1)
    steps = order.slots(0, first=0, n=8, steps=1000)
    for stream in range(8):
        follows = np.diff(steps[:, stream])
        assert (follows == 1).mean() < 0.02
        assert abs(np.corrcoef(steps[:-1, stream], steps[1:, stream])[0, 1]) < 0.15


def test_epochs_and_seeds_differ() -> None:
    order = Order([2000], 4, seed=0)
    one, two = stream_of(order, 1, epochs=2)
    assert one != two
    assert (Order([2000], 4, seed=1).sample_ids(0) != order.sample_ids(0)).any()


def test_a_machine_reads_only_its_share() -> None:
    """Contiguous slots belong to few streams, and these to few blocks of the data."""
    order = Order([2_000_000], 256, seed=3, block_samples=4096)
    assert order.n_streams == 64
    mine = order.slots(0, first=0, n=64, steps=3000)  # a quarter of the machines
    blocks = len(np.unique(mine // 1953)) / (2_000_000 / 1953)
    assert blocks < 0.3


def test_reading_is_nearly_sequential() -> None:
    """A stream stays inside a window of neighbours before it goes to the next."""
    order = Order([64 * 16 * 512 * 4], 64, seed=3, block_samples=512)
    one = order.slots(0, first=5, n=1, steps=512).ravel()
    assert len(np.unique(one // 512)) <= 2


@pytest.mark.parametrize("field", ["n_samples", "global_batch_size", "block_samples"])
def test_nothing_to_order(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Order(**{"n_samples": [1], "global_batch_size": 1, field: [0] if field == "n_samples" else 0})
