"""Rows of unequal lengths put into packs of bounded length: a pure function of lengths, seed and epoch.

Rows are taken in the permuted order of the epoch, a window at a time, longest first, each into the fullest pack of the
window that it fits in (best fit decreasing; 98.7 % full for instructions and packs of 1,024). Every row is in exactly
one pack of an epoch. Knows no tokens, no files, no steps and no ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from launchyard.training.data.mixture import Ids
from launchyard.training.data.order import permutation

PACK_WINDOW = 512  # rows; a window of 4,096 fills packs of 1,024 to 99.2 % and keeps less of the epoch's order
ROWS_STREAM = 6  # keys of permutations: of the rows of an epoch, and of its packs
PACKS_STREAM = 7


@dataclass(frozen=True)
class Packs:
    """The packs of one epoch. Pack i holds rows[starts[i] : starts[i + 1]]."""

    rows: Ids  # (n_rows,)
    starts: Ids  # (n_packs + 1,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> Ids:
        return self.rows[self.starts[number] : self.starts[number + 1]]


def pack_rows(
    lengths: Ids, *, capacity: int, seed: int, epoch: int, shuffle: bool = True, packing: bool = True
) -> Packs:
    """The packs of an epoch: of at most `capacity` positions each, or of one row each without `packing`.

    Without `shuffle` rows are taken as they lie, and every epoch is the same. ValueError for a row that fits no pack.
    """
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= capacity:
        raise ValueError(f"rows have {lengths.min()} to {lengths.max()} positions; a pack has 1 to {capacity}")
    order = permutation(len(lengths), seed, ROWS_STREAM, epoch) if shuffle else np.arange(len(lengths))
    if not packing:
        return Packs(order, np.arange(len(lengths) + 1))
    pack_of = _best_fit(lengths[order], capacity)
    by_pack = np.argsort(pack_of, kind="stable")
    sizes = np.bincount(pack_of)
    if shuffle:  # else the long packs of each window came first
        places = permutation(len(sizes), seed, PACKS_STREAM, epoch)
        by_pack = np.argsort(places[pack_of], kind="stable")
        sizes = np.bincount(places[pack_of])
    return Packs(order[by_pack], np.concatenate([[0], np.cumsum(sizes)]))


def count_packs(
    lengths: Ids, *, epochs: float, capacity: int, seed: int, shuffle: bool = True, packing: bool = True
) -> tuple[int, ...]:
    """The packs of each epoch that is begun in so many."""
    pack = partial(pack_rows, lengths, capacity=capacity, seed=seed, shuffle=shuffle, packing=packing)
    return tuple(len(pack(epoch=epoch)) for epoch in range(math.ceil(epochs)))


def _best_fit(lengths: Ids, capacity: int) -> Ids:
    """The pack of each row. Packs are numbered from 0 on and hold rows of one window."""
    pack_of = np.empty(len(lengths), np.int64)
    n_packs = 0
    for start in range(0, len(lengths), PACK_WINDOW):
        window = lengths[start : start + PACK_WINDOW]
        longest_first = np.argsort(-window, kind="stable")
        chosen, n_packs = _fill_packs(window[longest_first].tolist(), capacity, n_packs)
        pack_of[start + longest_first] = chosen
    return pack_of


def _fill_packs(lengths: list[int], capacity: int, n_packs: int) -> tuple[list[int], int]:
    """The pack of each row of a window, longest first, and the number of packs with those of earlier windows.

    Bit i of `free` is set where a pack has room for i more, so the fullest pack that fits is found by one shift.
    """
    free = 0
    packs_with: dict[int, list[int]] = {}
    chosen = []
    for length in lengths:
        fitting = free >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = packs_with[room].pop()
            if not packs_with[room]:
                free ^= 1 << room
        else:
            room = capacity
            pack = n_packs
            n_packs += 1
        chosen.append(pack)
        left = packs_with.setdefault(room - length, [])
        left.append(pack)
        if room > length:
            free |= 1 << (room - length)
    return chosen, n_packs
