"""Sends the newest state of a node's workers to the keeper of another node, aside from training; one after another.

Workers wait with their next copy until this one has arrived, and no longer once it cannot. Takes no decision on where
it goes.
"""

from __future__ import annotations

import threading
import time
from functools import partial

from launchyard.host.priority import step_back
from launchyard.launcher.agent.fleet.stream import call_keeper
from launchyard.launcher.agent.fleet.wire import CopyAnswer, CopyRequest, NodePart, NodeState
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.launcher.agent.signals import log_line
from launchyard.training.checkpoint.slots import Slot

_LOOK_SECONDS = 0.05  # between two looks at the slots
AGAIN_SECONDS = 2.0  # after a copy that failed
_LEAVE_SECONDS = 1.0  # for a copy under way, which then ends with its process


class Copier:
    """Sends nothing until `begin` says where to."""

    def __init__(self, memory: AgentMemory, secret: str, place: str) -> None:
        self._memory = memory
        self._secret = secret
        self._place = place
        self._part: NodePart | None = None
        self._sent: tuple[NodePart, tuple[str, ...]] | None = None
        self._trouble = ""
        self._again_at = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)
        self._thread.start()

    def begin(self, part: NodePart) -> None:
        """From now on the slots are of that part, and go to its buddy, if it has one."""
        self._trouble = ""
        self._again_at = 0.0
        self._memory.forget_copies()
        self._memory.await_copies(part.buddy is not None)
        self._part = part

    def stop(self) -> None:
        """Nothing is sent until the next part begins."""
        self._part = None

    def close(self) -> None:
        self._over.set()
        self._thread.join(_LEAVE_SECONDS)

    # -- in the thread -------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        step_back()
        while not self._over.wait(_LOOK_SECONDS):
            part = self._part
            if part is None or part.buddy is None or time.monotonic() < self._again_at:
                continue
            steps = self._memory.whole_steps()
            if steps:
                self._copy(part, steps)

    def _copy(self, part: NodePart, steps: list[int]) -> None:
        slots, state = self._state(part, steps[-1])
        if state is None or self._sent == (part, state.seals):
            return
        keep = tuple(other.seals[0] for step in steps[:-1] if (other := self._state(part, step)[1]) is not None)
        request = CopyRequest(attempt=part.attempt, offer=state, keep=keep)
        why = ""
        try:
            why = self._deliver(part, slots, request)
        except ConnectionAbortedError:  # it was overwritten, and there is a newer one soon
            return
        except (OSError, ValueError) as error:
            why = str(error) or type(error).__name__
        if part != self._part or (why and self._state(part, state.step)[1] != state):  # or overwritten meanwhile
            return
        if why:
            self._hold_up_nobody(part, why)
            return
        for slot, seal in zip(slots, state.seals, strict=True):
            slot.note_copy(bytes.fromhex(seal))
        self._sent = (part, state.seals)
        if self._trouble:
            self._trouble = ""
            log_line("copies of snapshots reach another node again")
            self._memory.await_copies(True)

    def _state(self, part: NodePart, step: int) -> tuple[list[Slot], NodeState | None]:
        """The slots of a step, and their seals; None if they are not there any more."""
        slots = self._memory.slots_of(step)
        seals = [slot.sealed_by() for slot in slots]
        steps = {slot.step() for slot in slots}
        stays = steps == {step} and [slot.sealed_by() for slot in slots] == seals  # so the step is of these seals
        if len(slots) != part.shape.nproc_per_node or not stays:
            return slots, None
        return slots, NodeState(node_rank=part.node_rank, step=step, seals=tuple(seal.hex() for seal in seals))

    def _deliver(self, part: NodePart, slots: list[Slot], request: CopyRequest) -> str:
        """Returns why it is not there; empty if it is."""
        assert part.buddy is not None
        assert request.offer is not None
        with call_keeper(part.buddy, self._secret, self._place) as stream:
            stream.write(request)
            answer = stream.read(CopyAnswer)
            if answer.said == "send":
                for slot, text in zip(slots, request.offer.seals, strict=True):
                    seal = bytes.fromhex(text)
                    stream.send(slot, seal, partial(self._stays, part, slot, seal))
                stream.be_patient()
                answer = stream.read(CopyAnswer)
        return "" if answer.said == "have" else answer.why or "it did not want them"

    def _stays(self, part: NodePart, slot: Slot, seal: bytes) -> bool:
        return not self._over.is_set() and part == self._part and slot.sealed_by() == seal

    def _hold_up_nobody(self, part: NodePart, why: str) -> None:
        self._again_at = time.monotonic() + AGAIN_SECONDS
        self._memory.await_copies(False)
        if why != self._trouble:
            self._trouble = why
            log_line(f"no copy of this node's snapshots is on another node ({part.buddy}): {why}. Training goes on")
