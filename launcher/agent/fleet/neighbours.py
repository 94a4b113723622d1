"""What an agent does for the memory of other nodes and they for its own: copies of its slots go to one of them, those
of another come here, and what a new agent lacks is fetched. The owner says from where, and where to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from launchyard.launcher.agent.fleet.copier import Copier
from launchyard.launcher.agent.fleet.copies import Copies
from launchyard.launcher.agent.fleet.keeper import Keeper
from launchyard.launcher.agent.fleet.stream import call_keeper
from launchyard.launcher.agent.fleet.wire import CopyAnswer, CopyRequest, NodePart
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.launcher.agent.signals import log_line

_POLL_SECONDS = 0.05  # between two looks for another order


class Neighbours:
    """Of one agent, for as long as it stays. `host`: by which others reach this machine."""

    def __init__(self, memory: AgentMemory, secret: str, *, place: str, host: str) -> None:
        self._memory = memory
        self._secret = secret
        self._place = place
        self._copies = Copies()
        self._keeper = Keeper(self._copies, secret, host=host)
        self._copier = Copier(memory, secret, place)

    @property
    def address(self) -> str:
        return self._keeper.address

    def steps(self) -> dict[int, tuple[int, ...]]:
        """Of the copies here, by their node."""
        return self._copies.steps()

    def begin(self, part: NodePart, *, on_poll: Callable[[], None]) -> None:
        """Called before the workers of a part start: they find what another node has of theirs."""
        self._copier.stop()
        self._keeper.begin(part.attempt)
        self._copies.begin(part.shape, part.attempt)
        self._memory.make_room(part.shape.nproc_per_node)
        if part.source is not None:
            self._fetch(part, part.source, on_poll)
        self._copier.begin(part)

    def close(self) -> None:
        self._copier.close()
        self._keeper.close()
        self._copies.close()

    def _fetch(self, part: NodePart, source: str, on_poll: Callable[[], None]) -> None:
        """In a thread: an order may come meanwhile."""
        faults: list[str] = []

        def get() -> None:
            try:
                faults.append(self._get(part, source))
            except (OSError, ValueError) as error:
                faults.append(str(error) or type(error).__name__)

        thread = threading.Thread(target=get, name="fetch", daemon=True)
        thread.start()
        while thread.is_alive():
            on_poll()
            thread.join(_POLL_SECONDS)
        what = f"the state of step {part.source_step} of node {part.node_rank}, of which {source} has a copy,"
        log_line(f"{what} could not be fetched: {faults[0]}" if faults[0] else f"{what} is here")

    def _get(self, part: NodePart, source: str) -> str:
        """Returns what is wrong with what came; empty if nothing is."""
        slots = self._memory.oldest_slots()
        for slot in slots:
            slot.break_seal()
        with call_keeper(source, self._secret, self._place) as stream:
            stream.write(CopyRequest(want=(part.node_rank, part.source_step)))
            answer = stream.read(CopyAnswer)
            if answer.state is None:
                return answer.why
            seals = [bytes.fromhex(seal) for seal in answer.state.seals]
            for slot, seal in zip(slots, seals, strict=True):
                stream.receive(slot, seal)
        found = [slot.adopt(seal) for slot, seal in zip(slots, seals, strict=True)]
        return next((fault for fault in found if fault), "")
