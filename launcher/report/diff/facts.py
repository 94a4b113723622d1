"""What differs between sides besides their curves: keys of the recipe, code, data, packages and machines.

Every fact is a name and a value for each side. Reads no file and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launchyard.launcher.report.diff.sides import Side
from launchyard.launcher.submit.changes import flatten
from launchyard.run.frozen import content_digest
from launchyard.storage.damage import JsonObject
from launchyard.storage.redact import redact
from launchyard.training.spec import source_names

Facts = Mapping[str, object]
_NOT_ALIKE = {"executable", "module_files"}  # of environments: where things lie, not what they are


@dataclass(frozen=True)
class Difference:
    """A fact that is not the same on all sides. `values`: one for each, None where it is unset or not known.

    `notes`: the changes that resumes of each side have made of it, in words.
    """

    what: str
    values: tuple[object, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> JsonObject:
        return {"what": self.what, "values": list(self.values), "changed_by_resume": list(self.notes)}


def differing(sides: Sequence[Facts | None]) -> list[Difference]:
    """The facts that differ. A side that is None knows nothing; a key that a side leaves out is unset there."""
    known = [side for side in sides if side is not None]
    keys = dict.fromkeys(key for side in known for key in side)
    return [
        Difference(key, tuple(None if side is None else side.get(key) for side in sides))
        for key in keys
        if any(side.get(key) != known[0].get(key) for side in known)
    ]


# -- the recipe ------------------------------------------------------------------------------------------------------
def recipe_differences(sides: Sequence[Side]) -> list[Difference]:
    """Keys with other values, or with other changes by resumes on the way to the same value."""
    flat = [_without_secrets(flatten(side.recipe.model_dump(mode="json"))) for side in sides]
    changed = [_changes(side) for side in sides]
    found = []
    for key in dict.fromkeys(key for one in flat for key in one):
        values = tuple(one.get(key) for one in flat)
        told = [one.get(key, ()) for one in changed]
        if any(value != values[0] for value in values) or any(one != told[0] for one in told):
            notes = [f"{letter(number)}: {text}" for number, one in enumerate(told) for text in one]
            found.append(Difference(key, values, tuple(notes)))
    return found


def letter(number: int) -> str:
    """The name of a side in tables: a, b, c …"""
    return chr(ord("a") + number)


def _without_secrets(flat: dict[str, object]) -> dict[str, object]:
    return {key: redact(value) if isinstance(value, str) else value for key, value in flat.items()}


def _changes(side: Side) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for one in side.changes:
        text = f"{_shown(one.change.old)} → {_shown(one.change.new)} from attempt {one.attempt} on"
        found[one.change.key] = (*found.get(one.change.key, ()), text)
    return found


def _shown(value: object) -> str:
    return "unset" if value is None else redact(str(value))


# -- code ------------------------------------------------------------------------------------------------------------
def code_facts(side: Side) -> Facts | None:
    code = side.code
    own = None if side.own is None else f"{side.own.name} ({side.own.digest})"
    if code is None:
        return None if own is None else {"own code": own}
    return {
        "own code": own,
        "commit": code.git_sha,
        "branch": code.git_branch,
        "changed files": ", ".join(code.changed_files),
        "uncommitted changes": content_digest(code.diff.encode()) if code.diff else None,
        "launchyard": code.launchyard,
        "launchyard commit": code.launchyard_sha,
        "launchyard files": code.source,
        "other code before a resume": len(code.earlier),
    }


# -- data ------------------------------------------------------------------------------------------------------------
def data_facts(side: Side) -> Facts | None:
    if side.data is None:
        return None
    data = side.data
    facts: dict[str, object] = {
        "digest": data.digest,
        "tokens": data.n_tokens,
        "held-out tokens": data.n_validation_tokens,
    }
    if side.story is not None:
        facts["tokenizer"] = side.tokenizer
    for number, (name, source) in enumerate(zip(source_names(data, side.recipe), data.train, strict=True)):
        where = f"source {number}" if len(data.train) > 1 else "source"
        facts |= {f"{where}": name, f"{where}, tokens": source.n_tokens, f"{where}, digest": source.digest}
        facts[f"{where}, weight"] = source.weight
    return facts


def data_differences(sides: Sequence[Side]) -> list[Difference]:
    """Of a side without a tokenizer's file here nothing is said about it; equal tokens may lie in two places."""
    found = differing([data_facts(side) for side in sides])
    unknown = any(side.story is None for side in sides)
    return [one for one in found if not (unknown and one.what == "tokenizer")]


# -- packages and machines -------------------------------------------------------------------------------------------
def environment_facts(sides: Sequence[Side]) -> list[Facts | None]:
    """Of each side: packages, Python, torch, drivers, machine. From what workers have recorded, if all runs have it."""
    runs = [side for side in sides if side.story is not None]
    recorded = bool(runs) and all(side.environment is not None for side in runs)
    return [dict(_recorded(side) if recorded else _of_launch(side)) or None for side in sides]


def _recorded(side: Side) -> Iterator[tuple[str, object]]:
    if side.environment is None:
        return
    for name, value in side.environment.model_dump().items():
        if isinstance(value, dict):
            yield from ((f"{name.rstrip('s')} {key}", one) for key, one in value.items())
        elif name not in _NOT_ALIKE:
            yield name, ", ".join(value) if isinstance(value, list) else value


def _of_launch(side: Side) -> Iterator[tuple[str, object]]:
    if side.code is None:
        return
    yield "python", side.code.python
    yield "platform", side.code.platform
    yield from ((f"package {name}", version) for name, version in side.code.packages.items())


def worker_facts(side: Side) -> Facts | None:
    """The workers of the newest attempt, and of all attempts if their number has changed."""
    if side.story is None:
        return None
    plan = side.story.plan
    jobs = [one.job for one in side.story.attempts]
    sizes = [job.world_size for job in jobs]
    mesh = plan.get("mesh") or {}
    shape = (
        jobs[-1].shape.model_dump() if jobs else {key: plan.get(key) for key in ("nnodes", "nproc_per_node", "device")}
    )
    return {
        "workers": sizes[-1] if sizes else plan.get("world_size"),
        "nodes": shape["nnodes"],
        "device": shape["device"],
        "workers by attempt": ", ".join(map(str, sizes)) if len(set(sizes)) > 1 else None,
        "mesh as planned": ", ".join(f"{key} {value}" for key, value in mesh.items()) or None,
        "cluster": plan.get("cluster"),
        "scheduler": jobs[-1].backend if jobs else plan.get("scheduler"),
    }
