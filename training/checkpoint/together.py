"""One save or load of all ranks: each does its part, rank 0 hears how it went and says the last word.

Rank 0 hears of each rank a few numbers a save, and once in its life how its tensors are cut: no list of pieces ever
goes over the network. Knows no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from launchyard.storage.errors import CorruptError
from launchyard.storage.layouts import Extent, Joined, RankParts, join, told_parts
from launchyard.storage.shards import FileEntry
from launchyard.training.distributed import from_rank_zero, is_connected, to_rank_zero

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Value = TypeVar("_Value")


class Together:
    """All ranks, over a process group of their own (None: the usual one)."""

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self._group = group
        self._reference: tuple[str, ...] | None = None  # the keys of rank 0
        self._told: RankParts | None = None
        self._heard: list[RankParts] = []  # on rank 0
        self._joined: Joined | None = None

    def save(
        self,
        held: list[str],
        written: Mapping[str, tuple[str, Extent, Extent, Extent]],
        write: Callable[[], FileEntry | None],
        commit: Callable[[dict[int, FileEntry], Joined], None],
    ) -> None:
        """Each rank writes; rank 0 commits if all have, with what the manifest says of the files, by their rank.

        held: the keys of this rank in order; written: what it writes of them. Raises on every rank the error of the
        first that failed.
        """
        if self._reference is None:
            self._reference = from_rank_zero(tuple(held), group=self._group)
        else:  # rank 0 is here, so it cleans up no more: it would take what a rank writes for a leftover
            from_rank_zero(None, group=self._group)
        parts = told_parts(held, dict(written), reference=self._reference)
        entry, error = _outcome(write)
        heard = to_rank_zero((entry, error, None if parts == self._told else parts), group=self._group)
        self._told = parts
        if heard is not None:
            error = _first_error([failed for _, failed, _ in heard])
            self._learn([told for _, _, told in heard])
            if error is None:
                entries = {rank: entry for rank, (entry, _, _) in enumerate(heard) if entry is not None}
                _, error = _outcome(lambda: commit(entries, self._join()))
        self._raise(error)

    def _learn(self, told: list[RankParts | None]) -> None:
        if not self._heard:
            self._heard = [one for one in told if one is not None]
        elif any(one is not None for one in told):
            self._heard = [new or old for new, old in zip(told, self._heard, strict=True)]
            self._joined = None

    def _join(self) -> Joined:
        if self._joined is None:
            assert self._reference is not None
            self._joined = join(self._heard, self._reference)
        return self._joined

    def load(self, read: Callable[[], None]) -> None:
        """Each rank reads. Raises on every rank the error of the first that failed; corruption first, since it decides
        which checkpoint is tried next."""
        _, error = _outcome(read)
        heard = to_rank_zero(error, group=self._group)
        self._raise(error if heard is None else _first_error(heard))

    def _raise(self, error: Exception | None) -> None:
        """Rank 0's error, on all."""
        if is_connected():
            error = from_rank_zero(error, group=self._group)
        if error is not None:
            raise error


def _outcome(action: Callable[[], _Value]) -> tuple[_Value | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, error


def _first_error(errors: list[Exception | None]) -> Exception | None:
    found = [error for error in errors if error is not None]
    corrupt = [error for error in found if isinstance(error, CorruptError)]
    return next(iter(corrupt or found), None)
