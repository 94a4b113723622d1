"""Sums over ranks on the host: those of whole numbers are made by pairs, and are the sums that gloo has."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from launchyard.training.distributed import connect, disconnect, read_world, sum_over_ranks
from tests.support.ranks import run_ranks


def sums_are_those_of_gloo() -> None:
    connect(read_world(), torch.device("cpu"))
    draw = torch.Generator().manual_seed(dist.get_rank())
    for length in (1, 12, 500):
        mine = torch.randint(-(2**63), 2**63 - 1, (length,), generator=draw)  # most sums wrap
        theirs = mine.clone()
        dist.all_reduce(theirs)
        assert torch.equal(sum_over_ranks(mine), theirs)
        fractions = torch.rand(length, generator=draw)
        gathered = fractions.clone()
        dist.all_reduce(gathered)
        assert torch.equal(sum_over_ranks(fractions), gathered)  # to the bit, so in gloo's order
    disconnect()


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 6, 8])
def test_sums_are_those_of_gloo(ranks: int) -> None:
    run_ranks(ranks, sums_are_those_of_gloo)


def messages_are_few() -> None:
    connect(read_world(), torch.device("cpu"))
    sent = []
    isend = dist.isend
    dist.isend = lambda tensor, to: sent.append(to) or isend(tensor, to)
    sum_over_ranks(torch.ones(8, dtype=torch.int64))
    assert sorted(to ^ dist.get_rank() for to in sent) == [1, 2, 4], "of 8 ranks, each sends to 3"
    dist.isend = isend
    disconnect()


def test_messages_are_few() -> None:
    run_ranks(8, messages_are_few)
