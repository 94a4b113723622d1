"""A plan as text: the few lines that people read before a run starts, and all of them for a dry run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from launchyard.host.environment import MARK_NODE
from launchyard.launcher.backends.request import Process
from launchyard.launcher.format import count, json_text, size
from launchyard.launcher.plan.plan import Plan
from launchyard.launcher.submit.code import CodeSnapshot
from launchyard.storage.redact import redact
from launchyard.training.batching import shares_over
from launchyard.training.recipe import Recipe
from launchyard.training.spec import source_names


def brief(plan: Plan, recipe: Recipe, code: CodeSnapshot) -> list[str]:
    """One line each for recipe, code, plan and data, then the notes."""
    rows = [
        ("recipe", [plan.name, _parameters(plan), f"{count(plan.total_tokens)} tokens"]),
        ("code", [code.summary()]),
        ("plan", _plan_parts(plan, recipe)),
        ("data", _data_parts(plan)),
    ]
    if (own := code.own_line()) is not None:
        rows.insert(2, ("own code", [own]))
    lines = [f"✓ {label:<8} {' · '.join(parts)}" for label, parts in rows]
    lines += [f"  {'':<8} {' · '.join(parts)}" for parts in (*_source_parts(plan, recipe), *_set_parts(plan))]
    return lines + [f"! {'note':<8} {note}" for note in plan.notes]


def _parameters(plan: Plan) -> str:
    text = f"{count(plan.n_params)} parameters"
    if plan.adapter is None:
        return text
    method = "" if plan.adapter.kind == "none" else f" by {plan.adapter.kind}"
    return f"{text}, {count(plan.n_params_trained)} of them trained{method}"


def full(plan: Plan, recipe: Recipe, raw: dict[str, Any], code: CodeSnapshot, source: str) -> list[str]:
    """The lines of a dry run: everything that a launch would write and start."""
    lines = [*brief(plan, recipe, code), "", f"recipe ({source})"]
    lines += _indent(recipe_text(raw))
    lines += ["", "plan"]
    lines += [f"  {label:<18} {value}" for label, value in _facts(plan, recipe)]
    if plan.script is not None:
        lines += ["", "script", *_indent(plan.script)]
    lines += ["", "processes"]
    for process, nodes in _folded(plan.processes):
        where = f"node {process.node_rank}"
        if len(nodes) > 1:
            where = f"each of {len(nodes)} nodes, {nodes[0]} to {nodes[-1]}; that of {where}:"
        lines.append(f"  {process.role} on {where}")
        lines += [f"    {key}={shlex.quote(value)}" for key, value in process.env.items()]
        lines.append(f"    {shlex.join(process.argv)}")
    return [*lines, "", "dry run: nothing was created or started"]


def _folded(processes: list[Process]) -> list[tuple[Process, list[int]]]:
    """Processes that differ in the number of their node alone are one, the first, with the numbers of all nodes."""
    found: dict[str, tuple[Process, list[int]]] = {}
    for process in processes:
        node = process.node_rank
        argv = [word.replace(f"--node-rank={node}", "--node-rank=") for word in process.argv]
        alike = json.dumps([process.role, argv, {**process.env, MARK_NODE: ""}])
        found.setdefault(alike, (process, []))[1].append(node)
    return list(found.values())


def as_json(plan: Plan, raw: dict[str, Any], code: CodeSnapshot, source: str) -> str:
    """The dry run as one JSON object: source, recipe, code, plan."""
    document = {"source": source, "recipe": raw, "code": code.model_dump(), "plan": plan.model_dump(mode="json")}
    return json_text(document)


def recipe_text(raw: dict[str, Any]) -> str:
    """A resolved recipe as YAML."""
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=110)


def _plan_parts(plan: Plan, recipe: Recipe) -> list[str]:
    kind = "CPU" if plan.device == "cpu" else "GPU"
    where = f"{plan.nproc_per_node} {kind} worker{'s' if plan.nproc_per_node > 1 else ''}"
    parts = [where if plan.nnodes == 1 else f"{plan.nnodes} nodes × {where}"]
    if spares := recipe.resources.spare_nodes:
        parts.append(f"{spares} spare node{'s' if spares > 1 else ''}")
    if plan.mesh.dp_shard > 1:
        parts.append(
            f"FSDP {plan.mesh.dp_shard}" + (f" × {plan.mesh.dp_replicate}" if plan.mesh.dp_replicate > 1 else "")
        )
    if plan.mesh.tp > 1:
        parts.append(f"matrices shared by {plan.mesh.tp}")
    if plan.mesh.cp > 1:
        parts.append(f"sequences shared by {plan.mesh.cp}")
    parts += [f"{plan.max_steps:,} steps", f"{count(plan.batch.tokens_per_step)} tokens/step"]
    of = f" of {size(plan.memory_available)}" if plan.memory_available else ""
    parts.append(f"~{size(plan.memory['total'])}{of} for a worker's tensors")
    if plan.speed is not None:
        parts.append(f"~{count(plan.speed.tokens_per_second)} tokens/s")
    return [*parts, f"checkpoint {size(plan.checkpoint_bytes)}{_every(recipe)}"]


def _every(recipe: Recipe) -> str:
    steps = recipe.checkpoint.every_steps
    minutes = recipe.checkpoint.every_minutes
    given = [f"{steps} steps" if steps else "", f"{minutes:g} min" if minutes else ""]
    interval = " and ".join(part for part in given if part)
    return f" every {interval}" if interval else " at the end"


def _data_parts(plan: Plan) -> list[str]:
    if not plan.epochs:
        return ["not there yet"]
    about = "" if plan.data_prepared else "about "
    parts = [f"{about}{count(plan.data.n_tokens)} tokens"]
    if rows := [source.instruct for source in plan.data.train if source.instruct is not None]:
        labels = sum(one.labels for one in rows)
        tokens = sum(source.n_tokens for source in plan.data.train if source.instruct is not None)
        n = sum(one.rows // one.together for one in rows)
        what = "rows" if rows[0].together == 1 else "pairs"
        parts.append(f"{about}{count(n)} {what}, {labels / tokens:.1%} trained for")
    if len(plan.data.train) > 1:
        parts.append(f"{len(plan.data.train)} sources")
    if plan.data.validation:
        parts.append(f"{about}{count(plan.data.n_validation_tokens)} held out")
    if len(plan.data.train) == 1:
        parts.append(f"{plan.epochs[0]:.3g} epochs")
    return [*parts, "prepared" if plan.data_prepared else "will be tokenized first"]


def _source_parts(plan: Plan, recipe: Recipe) -> Iterator[list[str]]:
    """Of a mixture, one line a source: its share in the whole run, its tokens, and its epochs in the run."""
    names = source_names(plan.data, recipe)
    sources = zip(names, plan.data.train, shares_over(plan.data, recipe, plan.max_steps), plan.epochs, strict=True)
    for name, source, share, epochs in sources if len(names) > 1 else ():
        yield [f"{share:6.2%} {name}", f"{count(source.n_tokens)} tokens", f"{epochs:.3g} epochs"]


def _set_parts(plan: Plan) -> Iterator[list[str]]:
    """One line for each set of validation.sets."""
    about = "" if plan.data_prepared else "about "
    for name, sources in plan.data.sets.items():
        yield [f"validation {name}", f"{about}{count(sum(source.n_tokens for source in sources))} tokens"]


def _facts(plan: Plan, recipe: Recipe) -> Iterator[tuple[str, object]]:
    batch = plan.batch
    yield "run", f"{plan.run_id} -> {redact(plan.run_url)}"
    yield "cluster", f"{plan.cluster} ({plan.scheduler})"
    yield "device", f"{plan.device}, {plan.precision}"
    yield "workers", f"{plan.nnodes} x {plan.nproc_per_node} = {plan.world_size}"
    mesh = plan.mesh
    yield "mesh", f"dp_replicate {mesh.dp_replicate} x dp_shard {mesh.dp_shard} x tp {mesh.tp}; cp {mesh.cp}"
    yield (
        "batch",
        f"{batch.global_batch_size} sequences = {plan.world_size} workers x {batch.grad_accum_steps} micro steps "
        f"x {batch.micro_batch_size}; {batch.seq_len} tokens each",
    )
    epochs = f", {plan.epochs[0]:g} epochs" if len(plan.epochs) == 1 else ""
    yield "length", f"{plan.max_steps:,} steps, {plan.total_tokens:,} tokens{epochs}"
    yield "parameters", f"{plan.n_params:,}"
    if plan.adapter is not None:
        yield "trained", f"{plan.n_params_trained:,}"
        changed = plan.adapter.model_dump(exclude_defaults=True)
        yield "adapter", ", ".join(f"{key} {value}" for key, value in changed.items())
    yield (
        "compute",
        f"{count(plan.flops_per_token)}FLOP/token, {plan.flops_per_token * plan.total_tokens:.3g} FLOP in all",
    )
    yield "tensors per worker", ", ".join(f"{key} {size(value)}" for key, value in plan.memory.items())
    if plan.speed is not None:
        yield "speed", f"{count(plan.speed.tokens_per_second)} tokens/s, {plan.speed.how}"
    yield "checkpoint", size(plan.checkpoint_bytes)
    if (every := recipe.checkpoint.snapshot_steps) is not None:
        often = "as often as costs next to nothing" if every == "auto" else f"every {count(every)} steps"
        yield "snapshots", f"{often}, in 2 x {size(plan.state_bytes)} of its node's memory for each worker"
    model = plan.model.model_dump(exclude_defaults=True)
    yield "model", ", ".join(f"{key} {value}" for key, value in model.items())
    for source in plan.data.train:
        yield "data", redact(source.folder)
    for source in plan.data.validation:
        yield "validation", redact(source.folder)
    for name, sources in plan.data.sets.items():
        for source in sources:
            yield f"validation {name}", redact(source.folder)


def _indent(text: str) -> list[str]:
    return [f"  {line}" for line in redact(text).splitlines()]
