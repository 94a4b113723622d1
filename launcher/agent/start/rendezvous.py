"""How the torchruns of an attempt meet: at the store of node 0, each with the rank that the owner gave its node.

Nodes are known, and none joins later. torch's own way finds out who is there: it sorts nodes by name, so that what an
agent keeps in memory may be of no use to its workers, and asks once a second, which a restart would wait for. Knows no
memory, and no owner.
"""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store
    from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters

BACKEND = "launchyard"
TRIED_SECONDS = 0.02  # between two looks whether node 0 listens: its store's own client looks once a second
LISTENS_SECONDS = 5.0  # for one look, where nothing answers
NAMED_NODES = 8  # of the nodes that are missing


def register_backend(node_rank: int) -> None:
    """From now on torchrun knows the backend, in which this node has that rank."""
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    rendezvous_handler_registry.register(BACKEND, partial(Meeting, node_rank))


class Meeting:
    """A `RendezvousHandler` of torch, for one attempt: `join_timeout` of its configuration is in seconds."""

    use_agent_store = True  # workers meet at the same store

    def __init__(self, node_rank: int, parameters: RendezvousParameters) -> None:
        from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

        self._rank = node_rank
        self._n_nodes = parameters.max_nodes
        self._run_id: str = parameters.run_id
        self._seconds = parameters.get_as_int("join_timeout", 600)
        self._host, self._port = parse_rendezvous_endpoint(parameters.endpoint, -1)
        self._server: Store | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Returns once all nodes are there. RendezvousTimeoutError names those that are not."""
        from torch.distributed import PrefixStore
        from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo

        until = time.monotonic() + self._seconds
        if self._server is None:
            self._server = self._open(until)
        store = PrefixStore(self._run_id, self._server)
        self._await_all(store, until)
        return RendezvousInfo(store, self._rank, self._n_nodes, RendezvousStoreInfo(self._host, self._port))

    def _open(self, until: float) -> Store:
        from torch.distributed import TCPStore

        if self._rank != 0:
            self._await_listener(until)
        return TCPStore(
            self._host,
            self._port,
            is_master=self._rank == 0,
            timeout=timedelta(seconds=self._seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )

    def _await_listener(self, until: float) -> None:
        while True:
            try:
                socket.create_connection((self._host, self._port), LISTENS_SECONDS).close()
            except OSError as error:  # also a name that is not known here
                if time.monotonic() >= until:
                    raise self._too_late(f"node 0 does not listen at {self._host}:{self._port} ({error})") from error
                time.sleep(TRIED_SECONDS)
            else:
                return

    def _await_all(self, store: Store, until: float) -> None:
        """Node 0 waits for each, the others for its word: a thousand nodes do not ask for a thousand each."""
        from torch.distributed import DistNetworkError, DistStoreError

        store.set(_joined(self._rank), "")
        others = [_joined(rank) for rank in range(1, self._n_nodes)]
        left = timedelta(seconds=max(0.001, until - time.monotonic()))
        try:
            if self._rank != 0:
                store.wait(["all joined"], left)
                return
            if others:
                store.wait(others, left)
        except (DistStoreError, DistNetworkError) as error:  # also of a node 0 that has given up
            raise self._too_late(self._who_is_missing(store)) from error
        store.set("all joined", "")

    def _who_is_missing(self, store: Store) -> str:
        if self._rank != 0:
            return "node 0 did not say that all are there"
        missing = [str(rank) for rank in range(1, self._n_nodes) if not store.check([_joined(rank)])]
        more = f" and {len(missing) - NAMED_NODES} more" if len(missing) > NAMED_NODES else ""
        return f"missing: node {', '.join(missing[:NAMED_NODES])}{more}"

    def _too_late(self, why: str) -> Exception:
        from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

        error: Exception = RendezvousTimeoutError(
            f"{self._n_nodes} nodes did not meet ({self._seconds} s are allowed): {why}"
        )
        return error

    # -- what torchrun asks besides ------------------------------------------------------------------------------------
    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._run_id

    def num_nodes_waiting(self) -> int:
        return 0

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody joins an attempt again."""

    def shutdown(self) -> bool:
        return True


def _joined(rank: int) -> str:
    return f"joined/{rank}"
