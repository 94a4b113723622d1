"""A worker that comes to harm: `python -m tests.support.hanging RUN_URL`, told in HARM what befalls which rank, when.

The real worker in all else. Kinds: loop (Python, for ever), sleep (for ever), slow (a little longer each step).
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def harm(plan: dict[str, Any]) -> None:
    from launchyard.training.loop import train as loop
    from launchyard.training.loop.parts import Parts

    run_step = loop.run_step

    def harmed(parts: Parts, batch: Any, n_valid: int, number: int, lr: float) -> Any:
        world = parts.context.world
        mine = world.rank == plan["rank"] and world.attempt == plan.get("attempt", 0)
        parts.telemetry.clock.enter("forward_backward")
        if mine and plan["kind"] == "slow" and plan["step"] <= number < plan["until"]:
            time.sleep(plan["seconds"])
        if mine and number == plan["step"] and plan["kind"] == "loop":
            spin_for_ever()
        if mine and number == plan["step"] and plan["kind"] == "sleep":
            time.sleep(1e6)
        return run_step(parts, batch, n_valid, number, lr)

    loop.run_step = harmed


def spin_for_ever() -> None:
    while True:
        pass


if __name__ == "__main__":
    from launchyard.training import worker

    if plan := json.loads(os.environ.get("HARM", "null")):
        harm(plan)
    code = worker.main(sys.argv)
    sys.stdout.flush()
    os._exit(code)
