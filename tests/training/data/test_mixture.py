from __future__ import annotations

import subprocess
import sys
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.training.data.mixture import PERIOD, STRIDE, Mixture, counts_of
from launchyard.training.data.order import Order, _key, permute, unpermute

a_weight = st.floats(0.01, 1) | st.integers(1, 20)
some_weights = st.lists(a_weight, min_size=2, max_size=6)


@st.composite
def mixed_orders(draw: st.DrawFn, *, shuffled: bool | None = None) -> tuple[Order, dict[str, Any]]:
    weights = draw(some_weights)
    sizes = st.integers(1, 60) | st.integers(60, 3000)
    said: dict[str, Any] = {
        "n_samples": [draw(sizes) for _ in weights],
        "global_batch_size": draw(st.integers(1, 96)),
        "weights": weights,
        "seed": draw(st.integers(0, 2**64)),
        "shuffle": draw(st.booleans()) if shuffled is None else shuffled,
        "block_samples": draw(st.sampled_from([1, 3, 100, 16384])),
        "later": draw(later_weights(len(weights))),
    }
    return Order(**said), said


@st.composite
def later_weights(draw: st.DrawFn, n_sources: int) -> list[tuple[int, list[float]]]:
    """None in most cases; else changes at some early steps, also to nothing of a source."""
    steps = draw(st.just([]) | st.lists(st.integers(0, 40), unique=True, max_size=3).map(sorted))
    some = st.lists(a_weight | st.just(0), min_size=n_sources, max_size=n_sources).filter(any)
    return [(step, draw(some)) for step in steps]


# -- weights ---------------------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(some_weights, st.integers(0, 2**32), st.integers(1, 64), st.integers(0, 10**12))
def test_any_period_holds_exactly_the_weights(weights: list[float], seed: int, streams: int, start: int) -> None:
    """From any position on, in any stream; and each rank follows the one before it."""
    mixture = Mixture(weights, seed=seed, n_streams=streams)
    stream = np.full(PERIOD, start % streams)
    source, rank = mixture.at(stream, start + np.arange(PERIOD))
    counts = np.bincount(source, minlength=len(weights))
    exact = [Fraction(weight) * PERIOD / sum(map(Fraction, weights)) for weight in weights]
    assert all(abs(count - want) < 1 for count, want in zip(counts.tolist(), exact, strict=True))
    assert counts.tolist() == counts_of(weights).tolist()
    for number in range(len(weights)):
        assert (np.diff(rank[source == number]) == 1).all()
    _, first = mixture.at(np.arange(streams), np.zeros(streams, np.int64))
    assert (first == 0).all()


@settings(max_examples=40, deadline=None)
@given(some_weights, st.integers(0, 2**64), st.integers(1, 600), st.integers(0, 10**6))
def test_weights_are_met_early_and_everywhere(weights: list[float], seed: int, size: int, step: int) -> None:
    """In any run of consecutive samples each source is within a few samples of its share."""
    order = Order([5000] * len(weights), size, weights=weights, seed=seed)
    steps = max(2, 3000 // size)
    source = order.split(order.slots(step, first=0, n=size, steps=steps))[0].ravel()
    ordinal = np.arange(1, len(source) + 1)
    for number, share in enumerate(np.array(weights) / sum(weights)):
        off = np.cumsum(source == number) - share * ordinal
        assert np.abs(off[:1000]).max() <= 12
        assert np.abs(off).max() <= 16


def test_how_uneven_it_is() -> None:
    """The figures that the docs give, over 64 streams and the batch of 1,024."""
    weights = [0.5, 0.3, 0.15, 0.05]
    order = Order([10**7] * 4, 1024, weights=weights, seed=1)
    source = order.split(order.slots(0, first=0, n=1024, steps=1000))[0]
    each = np.stack([(source == number).sum(1) for number in range(4)])
    assert np.abs(each - 1024 * np.array(weights)[:, None]).max() <= 16
    assert np.abs(each.sum(1) - 1_024_000 * np.array(weights)).max() <= 20


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [float("nan"), 1], [float("inf"), 1], [1, 1e-9]])
def test_weights_that_cannot_be(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        Mixture(weights, seed=0, n_streams=1)
    with pytest.raises(ValueError, match="weights"):
        Order([5], 1, weights=[1, 2])


def test_stride_walks_around_the_whole_circle() -> None:
    assert np.gcd(PERIOD, STRIDE) == 1


# -- order -----------------------------------------------------------------------------------------------------------
@settings(max_examples=50, deadline=None)
@given(mixed_orders())
def test_nothing_repeats_or_is_skipped_within_an_epoch(made: tuple[Order, dict[str, Any]]) -> None:
    """At any step no sample has been read more than twice more often than another of its source.

    Streams whose sizes differ by one sample drift apart, by an epoch in 64 or more; so only the first ones are counted.
    """
    order, said = made
    sizes, size = said["n_samples"], order.global_batch_size
    source, sample = order.split(order.slots(0, first=0, n=size, steps=60_000 // size + 1))
    for number, n in enumerate(sizes):
        read = np.cumsum((source == number).sum(1))
        for epochs in (0.4, 1, 3.1, 12):
            if read[-1] < epochs * n:  # its weight became 0
                continue
            steps = int(np.searchsorted(read, epochs * n))
            seen = np.bincount(sample[:steps][source[:steps] == number], minlength=n)
            assert len(seen) == n
            assert seen.max() - seen.min() <= (2 if said["shuffle"] else 1)


@settings(max_examples=40, deadline=None)
@given(mixed_orders(), st.data())
def test_each_epoch_of_a_stream_is_the_whole_stream(made: tuple[Order, dict[str, Any]], data: st.DataObject) -> None:
    order, said = made
    number = data.draw(st.integers(0, len(said["n_samples"]) - 1))
    n, own = said["n_samples"][number], order._sources[number].n_streams
    found = []
    for stream in range(own):
        length = (stream + 1) * n // own - stream * n // own
        at = order._sources[number].at(np.full(2 * length, stream), np.arange(2 * length))
        once, again = at[:length].tolist(), at[length:].tolist()
        assert len(set(once)) == length
        assert set(once) == set(again)
        found += once
    assert sorted(found) == list(range(n))


@settings(max_examples=40, deadline=None)
@given(mixed_orders())
def test_ranks_of_a_stream_are_counted(made: tuple[Order, dict[str, Any]]) -> None:
    """What is computed for a position is what counting from position 0 would give."""
    order, said = made
    mixture = order._mixture
    assert mixture is not None
    for stream in {0, order.n_streams - 1}:
        source, rank = mixture.at(np.full(4000, stream), np.arange(4000))
        seen = [0] * len(said["weights"])
        for number, found in zip(source.tolist(), rank.tolist(), strict=True):
            assert found == seen[number]
            seen[number] += 1


# -- weights that change ---------------------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(mixed_orders())
def test_a_change_touches_no_step_before_it_and_no_source(made: tuple[Order, dict[str, Any]]) -> None:
    """Up to it all is as without it; after it every stream reads each source in the order it had."""
    order, said = made
    size = order.global_batch_size
    fixed = Order(**{**said, "later": []})
    first = min((step for step, _ in said["later"]), default=100)
    if first:
        assert (order.slots(0, first=0, n=size, steps=first) == fixed.slots(0, first=0, n=size, steps=first)).all()
    width = size // order.n_streams
    mine, theirs = (one.slots(0, first=0, n=width, steps=3000 // width + 1).ravel() for one in (order, fixed))
    for number in range(len(said["n_samples"])):
        own, like = (ids[order.split(ids)[0] == number] for ids in (mine, theirs))
        both = min(len(own), len(like))
        assert (own[:both] == like[:both]).all()


def test_new_weights_are_met_at_once_and_everywhere() -> None:
    stages = {0: [0.6, 0.3, 0.1], 40: [0.1, 0.9, 0.0], 41: [0.0, 0.0, 1.0], 90: [1, 1, 1]}
    order = Order([9000] * 3, 96, weights=stages[0], later=[*stages.items()][1:], seed=7)
    source = order.split(order.slots(0, first=0, n=96, steps=150))[0]
    bounds = [*stages, 150]
    for begin, end, weights in zip(bounds, bounds[1:], stages.values(), strict=False):
        share = np.array(weights) / sum(weights)
        for number in range(3):
            off = np.cumsum(source[begin:end] == number) - share[number] * np.arange(1, 96 * (end - begin) + 1)
            assert np.abs(off).max() <= 12
            assert share[number] or not (source[begin:end] == number).any()


@pytest.mark.parametrize("later", [[(5, [1, 1]), (5, [1, 2])], [(5, [1, 1]), (4, [1, 2])], [(5, [1])], [(5, [0, 0])]])
def test_changes_that_cannot_be(later: list[tuple[int, list[float]]]) -> None:
    with pytest.raises(ValueError, match=r"stages|stage has|weights"):
        Order([50, 50], 4, weights=[1, 1], later=later)


@settings(max_examples=30, deadline=None)
@given(mixed_orders(), st.integers(0, 200))
def test_the_ledger_is_what_counting_gives(made: tuple[Order, dict[str, Any]], steps: int) -> None:
    order, said = made
    read = order.slots(0, first=0, n=order.global_batch_size, steps=steps) if steps else np.empty((0, 1), np.int64)
    source, sample = order.split(read.ravel())
    for number, n in enumerate(said["n_samples"]):
        assert order.samples_read(steps)[number] == (source == number).sum()
        assert order.last_samples_read(steps)[number] == ((source == number) & (sample == n - 1)).sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**64), st.integers(0, 9))
def test_the_way_back_through_a_permutation(size: int, seed: int, part: int) -> None:
    key = _key(seed, part)
    assert (unpermute(permute(np.arange(size), np.array(size), key), size, key) == np.arange(size)).all()


@settings(max_examples=40, deadline=None)
@given(mixed_orders(), st.integers(0, 10**9), st.data())
def test_any_cut_from_any_step_reads_the_same(
    made: tuple[Order, dict[str, Any]], step: int, data: st.DataObject
) -> None:
    """Whatever the workers and whichever step a resume begins with."""
    order, said = made
    whole, size = order.sample_ids(step), order.global_batch_size
    assert ((whole >= 0) & (whole < sum(said["n_samples"]))).all()
    workers = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    share = size // workers
    fresh = Order(**said)
    parts = [fresh.slots(step, first=rank * share, n=share)[0] for rank in range(workers)]
    assert (np.concatenate(parts) == whole).all()
    before = data.draw(st.integers(0, min(step, 5)))
    ahead = order.slots(step - before, first=0, n=size, steps=before + 2)
    assert (ahead[before] == whole).all()
    assert (ahead[before + 1] == order.sample_ids(step + 1)).all()


@settings(max_examples=30, deadline=None)
@given(mixed_orders(shuffled=False))
def test_unshuffled_sources_are_read_as_they_lie(made: tuple[Order, dict[str, Any]]) -> None:
    order, said = made
    source, sample = order.split(order.slots(0, first=0, n=order.global_batch_size, steps=200))
    for number, n in enumerate(said["n_samples"]):
        mine = sample[source == number]
        assert (mine == np.arange(len(mine)) % n).all()


def test_a_trillion_tokens_are_instant() -> None:
    order = Order([10**12 // 2048, 10**11 // 2048], 1024, weights=[3, 1], seed=5)
    order.sample_ids(0)
    began = time.perf_counter()
    late, early = order.sample_ids(10**9), order.sample_ids(3)
    assert time.perf_counter() - began < 1
    assert len(set(late.tolist()) | set(early.tolist())) == 2048


def test_weights_of_any_sum() -> None:
    one = Order([700, 900], 24, weights=[0.75, 0.25], seed=3).slots(5, first=0, n=24, steps=90)
    assert (one == Order([700, 900], 24, weights=[3, 1], seed=3).slots(5, first=0, n=24, steps=90)).all()


def test_equal_sources_are_read_in_different_orders() -> None:
    order = Order([4000, 4000], 8, weights=[1, 1])
    source, sample = order.split(order.slots(0, first=0, n=8, steps=100).ravel())
    one, two = sample[source == 0][:390], sample[source == 1][:390]
    assert (one == two).mean() < 0.05
    assert np.mean(np.isin(one, two)) < 0.5


def test_a_small_source_takes_no_locality_from_a_large_one() -> None:
    """Streams of a source that has too few samples for all of them are shared, and only its own."""
    order = Order([2_000_000, 600], 256, weights=[9, 1], seed=3, block_samples=4096)
    assert (order.n_streams, [source.n_streams for source in order._sources]) == (64, [64, 8])
    source, sample = order.split(order.slots(0, first=0, n=64, steps=3000))  # a quarter of the machines
    mine = sample[source == 0]
    assert len(np.unique(mine // 1953)) / (2_000_000 / 1953) < 0.3


def test_another_process_agrees() -> None:
    made = "Order([5000, 70, 900], 24, weights=[5, 0.3, 2], seed=9)"
    program = f"from launchyard.training.data.order import Order; print({made}.sample_ids(777).tolist())"
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    here = Order([5000, 70, 900], 24, weights=[5, 0.3, 2], seed=9).sample_ids(777).tolist()
    assert there.strip() == str(here)


def test_the_order_never_changes() -> None:
    """Whoever changes the order breaks the resumption of every run there is."""
    order = Order([1000, 300], 8, weights=[0.7, 0.3], seed=1)
    assert order.sample_ids(12).tolist() == PINNED
    plain = Order([1000, 300], 8, weights=[0.7, 0.3], seed=1, shuffle=False)
    assert plain.sample_ids(130).tolist() == PLAIN


PINNED = [878, 389, 341, 1251, 462, 475, 957, 1270]
PLAIN = [1012, 728, 1013, 729, 730, 1014, 731, 732]
