"""The start from the agents' memory: which step all ranks hold whole, and whether it is ahead of what is saved.

All of it is agreed on; rank 0 alone asks the run directory. Knows no policy of when to copy.
"""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from launchyard.run import events
from launchyard.run.append import complete_lines
from launchyard.run.checkpoints import RunCheckpoints
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.checkpoint.commit import Identity
from launchyard.training.checkpoint.slots import NODE_SHARE, SlotHeader
from launchyard.training.checkpoint.snapshots import Snapshots, open_slots
from launchyard.training.checkpoint.state import Shard
from launchyard.training.distributed import World, from_all_ranks, from_rank_zero
from launchyard.training.telemetry.events import OnEvent


def open_snapshots(
    world: World, identity: Identity, shards: dict[str, Shard], on_event: OnEvent, *, insists: bool
) -> Snapshots | None:
    """The slots of this rank; None on all ranks if one of them has none, or if they are too large for its node.

    insists: the recipe names the steps, and takes whatever memory that needs.
    """

    def say(message: str) -> None:
        on_event(events.SNAPSHOTS_OFF, message=f"rank {world.rank}: {message}")

    opened: Snapshots | None = None
    why = ""
    if world.slots:
        try:
            opened = Snapshots(open_slots(world.slots), _facts(world, identity), world.attempt, shards, say)
            why = "" if insists else _too_large(opened.bytes * world.local_world_size)
        except OSError as error:
            why = f"the agent's memory cannot be opened: {error}"
    elif world.scratch is not None:  # there is an agent
        why = "the agent has no memory for them, which takes Linux"
    reasons = from_all_ranks((opened is not None, why))
    if all(has and not reason for has, reason in reasons):
        return opened
    said = next(((rank, reason) for rank, (_, reason) in enumerate(reasons) if reason), None)
    if said is not None and world.is_main:
        on_event(events.SNAPSHOTS_OFF, message=f"rank {said[0]}: {said[1]}")
    return None


def _facts(world: World, identity: Identity) -> JsonObject:
    return {
        "run_id": identity.run_id,
        "recipe_hash": identity.recipe_hash,
        "data_digest": identity.data_digest,
        "model": identity.model,
        "frozen": identity.frozen,
        "base": identity.base,
        "world_size": world.world_size,
        "rank": world.rank,
    }


def _too_large(slot_bytes: int) -> str:
    memory = psutil.virtual_memory().total
    wanted = 2 * slot_bytes
    if wanted * NODE_SHARE <= memory:
        return ""
    return (
        f"two slots of each worker's state are {wanted} bytes, more than a quarter of the {memory} of this machine; "
        "checkpoint.snapshot_steps=N makes them all the same"
    )


def load_newest_snapshot(
    run: RunDir, world: World, snapshots: Snapshots, shards: dict[str, Shard], on_event: OnEvent
) -> SlotHeader | None:
    """Fill `shards` from memory; None if nothing is there that all ranks have, or that is ahead of the checkpoints."""
    offers = snapshots.offers()
    told = from_all_ranks(([offer.place for offer in offers], snapshots.other_worlds()))
    held = [places for places, _ in told]
    common = set.intersection(*(set(places) for places in held))
    if not common:
        others = sorted({number for _, numbers in told for number in numbers})
        if world.is_main and (why := why_none(held, others, world.world_size)):
            on_event(events.SNAPSHOTS_LOST, message=why)
        return None
    wanted = [offer for offer in offers if offer.place in common]
    steps = from_rank_zero(list(worth_taking(RunCheckpoints(run), wanted)) if world.is_main else None)
    for step in steps or ():
        faults = from_all_ranks(snapshots.fault(step))
        if not any(faults):
            header = snapshots.load(step, shards)
            if world.is_main:  # a state must never be ahead of the history
                for stem, lines in header.lines.items():
                    complete_lines(run, stem, lines)
            return header
        for rank, fault in enumerate(faults):
            if fault:
                on_event(events.SNAPSHOT_DAMAGED, step=step, message=f"rank {rank}: {fault}")
    return None


def why_none(held: list[list[tuple[int, int, int]]], others: list[int], workers: int) -> str:
    """Empty if no memory holds anything: then nothing was lost."""
    steps = sorted({step for places in held for step, _, _ in places})
    if not steps:
        return f"memory holds a state of {others[-1]} workers, and there are {workers} now" if others else ""
    listed = " and ".join(str(step) for step in steps[-2:])
    if without := [str(rank) for rank, places in enumerate(held) if not places]:
        ranks = f"rank {without[0]}" if len(without) == 1 else f"ranks {', '.join(without)}"
        return (
            f"nothing in memory is of {ranks}: its node was lost, and no neighbour had a copy (others: step {listed})"
        )
    return f"no step is in the memory of all ranks (steps there are {listed})"


def worth_taking(checkpoints: RunCheckpoints, offers: list[SlotHeader]) -> Iterator[int]:
    """Steps that are not behind the newest checkpoint, newest first, without those that skip one which was due.

    Where one that was due was never committed, the state of that very step is taken: its save is made again there.
    """
    saved = checkpoints.newest() or 0
    for offer in sorted(offers, key=lambda offer: -offer.step):
        if offer.step < saved or (offer.owed is not None and offer.owed > saved):
            continue
        if not checkpoints.left_behind(offer.step, offer.attempt, offer.time):
            yield offer.step
