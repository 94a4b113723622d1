"""`python -m launchyard.training.profile.digest RAW.json FOLDER FACTS`: packs torch's trace and sums it up.

A process of its own, so that the trainer's steps do not wait for Python. Light; knows no torch and no run.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from launchyard.run import layout
from launchyard.storage.damage import JsonObject
from launchyard.training.profile.tables import table_text
from launchyard.training.telemetry.phases import PHASES

MODULE_RANGE = "module "  # before the name of a module in a trace
NAMES_KEPT = 40  # operators and modules in a summary
OPERATOR = "cpu_op"
RANGE = "user_annotation"
DEVICE_RANGE = "gpu_user_annotation"
DEVICE_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}
MEMORY_EVENT = "[memory]"
GPU = 1  # "Device Type" of an event of memory


@dataclass
class Spent:
    """By all calls of one name: seconds, the device's too; bytes that remain allocated, less those of what it calls."""

    name: str
    calls: int = 0
    seconds: float = 0.0
    self_seconds: float = 0.0
    device_seconds: float = 0.0
    self_bytes: int = 0


def main(argv: Sequence[str]) -> int:
    raw, folder, facts = argv[1:]
    os.nice(10)
    with open(raw, "rb") as file:
        trace = json.load(file)
    os.unlink(raw)
    told = json.loads(facts)
    summary = {**told, **summed(trace["traceEvents"])}
    with open(os.path.join(folder, layout.TRACE_SUMMARY), "w") as file:
        json.dump(summary, file)
    with open(os.path.join(folder, layout.TRACE_TABLE), "w") as file:
        file.write(table_text(summary))
    with gzip.open(os.path.join(folder, layout.TRACE), "wt", compresslevel=6) as file:
        json.dump(labelled(trace, told), file, separators=(",", ":"))
    return 0


# -- for Perfetto ----------------------------------------------------------------------------------------------------
def labelled(trace: JsonObject, facts: JsonObject) -> JsonObject:
    """The trace, with what tells it from those of other ranks, and with memory as a curve."""
    events = trace["traceEvents"]
    host = {event["pid"] for event in events if event.get("cat") == OPERATOR}
    for event in events:
        if event.get("name") == "process_name" and event["pid"] in host:
            event["args"]["name"] = f"rank {facts['rank']} ({facts['host']})"
    shared = {key: facts[key] for key in ("rank", "world_size")}
    return {
        **trace,
        "distributedInfo": {**trace.get("distributedInfo", {}), **shared},
        "launchyard": facts,
        "traceEvents": [*events, *_memory_curve(events)],
    }


def _memory_curve(events: Iterable[JsonObject]) -> Iterator[JsonObject]:
    for event in events:
        if event.get("name") == MEMORY_EVENT:
            place = "GPU" if event["args"].get("Device Type") == GPU else "CPU"
            values = {"bytes": max(0, int(event["args"].get("Total Allocated", 0)))}
            yield {"ph": "C", "name": f"{place} memory", "pid": event["pid"], "ts": event["ts"], "args": values}


# -- summed up -------------------------------------------------------------------------------------------------------
def summed(events: Sequence[JsonObject]) -> JsonObject:
    """Phases, operators and modules with their times, those that took longest first."""
    operators: dict[str, Spent] = {}
    modules: dict[str, Spent] = {}
    phases: dict[str, float] = defaultdict(float)
    of_operator: dict[int, str] = {}
    for timeline in _timelines(events):
        _walk(timeline, operators, modules, phases)
    for event in events:
        if event.get("cat") == OPERATOR and "External id" in event.get("args", {}):
            of_operator[event["args"]["External id"]] = event["name"]
    for event in events:
        seconds = float(event.get("dur", 0.0)) / 1e6
        if event.get("cat") in DEVICE_WORK:
            name = of_operator.get(event.get("args", {}).get("External id", -1))
            if name is not None:
                operators[name].device_seconds += seconds
        elif event.get("cat") == DEVICE_RANGE and (name := _module(event["name"])) in modules:
            modules[name].device_seconds += seconds
    return {
        "phases": {phase: round(phases[phase], 6) for phase in PHASES if phase in phases},
        "operators": _longest(operators.values()),
        "modules": _longest(modules.values()),
        "memory": any(event.get("name") == MEMORY_EVENT for event in events),
        "device": any(event.get("cat") in DEVICE_WORK for event in events),
    }


def _longest(found: Iterable[Spent]) -> list[JsonObject]:
    """By the time on the device, where there is one."""
    ordered = sorted(found, key=lambda one: (-one.device_seconds, -one.self_seconds, one.name))
    return [{key: _rounded(value) for key, value in asdict(one).items()} for one in ordered[:NAMES_KEPT]]


def _rounded(value: object) -> object:
    return round(value, 7) if isinstance(value, float) else value


def _timelines(events: Iterable[JsonObject]) -> Iterator[list[JsonObject]]:
    """What each thread of the host did, in order; what encloses others comes before them."""
    threads: dict[tuple[object, object], list[JsonObject]] = defaultdict(list)
    for event in events:
        if event.get("cat") in (OPERATOR, RANGE) or event.get("name") == MEMORY_EVENT:
            threads[event["pid"], event["tid"]].append(event)
    for found in threads.values():
        yield sorted(found, key=lambda event: (event["ts"], -event.get("dur", -1.0)))


def _walk(
    timeline: Iterable[JsonObject], operators: dict[str, Spent], modules: dict[str, Spent], phases: dict[str, float]
) -> None:
    """Add what one thread did. A time counts for the innermost operator, and for the innermost phase."""
    within: list[tuple[float, str | None, str | None]] = []  # until when, in which operator, in which phase
    for event in timeline:
        start = float(event["ts"])
        while within and within[-1][0] <= start:
            within.pop()
        _, operator, phase = within[-1] if within else (0.0, None, None)
        if event["name"] == MEMORY_EVENT:
            if operator is not None:
                operators[operator].self_bytes += int(event["args"].get("Bytes", 0))
            continue
        seconds = float(event.get("dur", 0.0)) / 1e6
        name = str(event["name"])
        if event["cat"] == OPERATOR:
            _add(operators, name, seconds, outer=operator)
            operator = name
        elif name in PHASES:
            phases[name] += seconds
            if phase is not None:
                phases[phase] -= seconds
            phase = name
        elif (module := _module(name)) is not None:
            _add(modules, module, seconds, outer=None)
        within.append((start + float(event.get("dur", 0.0)), operator, phase))


def _add(found: dict[str, Spent], name: str, seconds: float, *, outer: str | None) -> None:
    spent = found.setdefault(name, Spent(name))
    spent.calls += 1
    spent.seconds += seconds
    spent.self_seconds += seconds
    if outer is not None:
        found[outer].self_seconds -= seconds


def _module(name: str) -> str | None:
    """Its place in the network, the same for all layers; None of another range."""
    if not name.startswith(MODULE_RANGE):
        return None
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name.removeprefix(MODULE_RANGE))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
