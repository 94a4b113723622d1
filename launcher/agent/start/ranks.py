"""The rank of a node among those of an attempt: the one that its owner gave it, and not the place of its host's name.

So what an agent keeps in memory is of use to the workers that it starts next. Knows no memory, and no owner.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters

BACKEND = "launchyard"  # c10d, but for the ranks


def register_backend(node_rank: int) -> None:
    """From now on torchrun knows the backend, in which this node has that rank."""
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    rendezvous_handler_registry.register(BACKEND, partial(_make, node_rank))


def _make(node_rank: int, parameters: RendezvousParameters) -> RendezvousHandler:
    from torch.distributed.elastic.rendezvous import RendezvousInfo, c10d_rendezvous_backend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    backend, store = c10d_rendezvous_backend.create_backend(parameters)
    handler = create_handler(store, backend, parameters)
    meet = handler.next_rendezvous

    def meet_by_rank() -> RendezvousInfo:
        found = meet()
        if not handler.use_agent_store:  # then the workers of rank 0 must be where c10d put them
            return found
        return RendezvousInfo(found.store, node_rank, found.world_size, found.bootstrap_store_info)

    handler.next_rendezvous = meet_by_rank
    handler.get_backend = lambda: BACKEND
    return handler
