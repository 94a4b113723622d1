"""What a bench has found, for people and for programs. Tries nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from launchyard.launcher.bench.bench import AS_IT_IS, NOTICEABLE, Benched, BenchRequest, Tried
from launchyard.launcher.bench.calibrate import find_calibration
from launchyard.launcher.bench.figures import Figures, Spread
from launchyard.launcher.format import count, size, table
from launchyard.launcher.plan.plan import Plan
from launchyard.model.devices import peak_flops
from launchyard.storage.damage import JsonObject

_SMALLEST_SHARE = 0.005  # of a phase that is shown


def bench_lines(benched: Benched, request: BenchRequest) -> Iterator[str]:
    plan = benched.subject.plan
    yield ""
    yield f"{request.recipe} as it is: {_workload(plan)}"
    if benched.own is None:
        yield f"! nothing was measured: {benched.why or 'it was interrupted'}"
        return
    yield from (f"  {line}" for line in table(list(_own_rows(benched, benched.own))))
    if benched.tried:
        yield ""
        yield from table(
            list(_tried_rows(benched, benched.own)), ["TRIED", "TOKENS/S", "TOKENS/CPU-S", "RATIO", "MEMORY", "CHANGE"]
        )
        by = "CPU seconds, as other work is on this machine" if benched.by_cpu else "the clock"
        yield f"ratio: to the recipe as it is, tried just before and after, by {by}; a few percent may be noise"
        yield from _advice(benched, request)
    if benched.interrupted:
        yield "! interrupted: what was measured until then"


def _workload(plan: Plan) -> str:
    batch = plan.batch
    threads = int(plan.environment["OMP_NUM_THREADS"])
    where = f"{plan.world_size} worker{'s' * (plan.world_size > 1)}"
    where += " on GPUs" if plan.device == "cuda" else f" × {threads} thread{'s' * (threads > 1)}"
    sizes = f"micro-batches of {batch.micro_batch_size} × {batch.seq_len} tokens"
    return f"{count(plan.n_params)} parameters, {sizes}, {plan.precision}, {where}"


def _own_rows(benched: Benched, own: Figures) -> Iterator[list[str]]:
    speed = own.tokens_per_second
    yield ["tokens/s", f"{count(speed.median)} ({_range(speed)} in {own.n_steps} steps)"]
    yield ["a step", f"{own.step_seconds.median:.3g} s ({own.step_seconds.least:.3g} to {own.step_seconds.most:.3g})"]
    if own.tokens_per_cpu_second is not None and own.plan.device == "cpu":
        yield ["tokens/CPU-s", count(own.tokens_per_cpu_second)]
    if (peak := peak_of_machine(benched)) is not None:
        share = reachable(benched, own) / peak
        full = share * own.flops_per_token
        causal = share * own.causal_flops_per_token
        of = "the GPUs' peak" if own.plan.device == "cuda" else f"the {peak / 1e9:.0f} GFLOP/s of a large product here"
        yield ["MFU", f"{full:.1%} of {of}; {causal:.1%} with causal attention"]
    yield ["plan", _plan_text(benched, own)]
    shares = [f"{phase} {share:.0%}" for phase, share in own.phases.items() if share >= _SMALLEST_SHARE]
    yield ["phases", ", ".join(shares)]
    yield ["memory", _memory_text(own)]


def _range(spread: Spread) -> str:
    return f"{count(spread.least)} to {count(spread.most)}"


def peak_of_machine(benched: Benched) -> float | None:
    """Operations per second of all workers: of a data sheet, or of the largest product that was timed here."""
    subject = benched.subject
    workers = subject.plan.world_size
    if subject.plan.device == "cpu":
        found = find_calibration(subject)
        return None if found is None else found.matmul_flops * workers
    one = subject.recipe.metrics.peak_flops or (peak_flops(subject.host.gpus[0].name) if subject.host.gpus else None)
    return None if one is None else one * workers


def reachable(benched: Benched, own: Figures) -> float:
    """Tokens per second without other work on the machine, as far as CPU seconds tell."""
    threads = int(own.plan.environment["OMP_NUM_THREADS"])
    by_cpu = (own.tokens_per_cpu_second or 0.0) * threads * own.plan.world_size
    return by_cpu if benched.by_cpu and by_cpu else own.tokens_per_second.median


def _plan_text(benched: Benched, own: Figures) -> str:
    told = benched.subject.plan.speed
    if told is None:
        return "it does not know this speed"
    measured = reachable(benched, own)
    of = f"the {count(measured)} that its CPU seconds make" if benched.by_cpu else "what was measured"
    error = told.tokens_per_second / measured - 1
    return f"{count(told.tokens_per_second)} tokens/s, {told.how}: {error:+.1%} of {of}"


def _memory_text(own: Figures) -> str:
    planned = own.plan.memory["total"]
    process = "" if own.peak is None or own.plan.device == "cuda" else f"; its process took {size(own.peak)}"
    if own.tensors is None:
        return f"tensors were not counted, the plan says {size(planned)} of them{process}"
    error = planned / own.tensors - 1
    return f"{size(own.tensors)} of tensors a worker, the plan says {size(planned)} ({error:+.1%}){process}"


def _tried_rows(benched: Benched, own: Figures) -> Iterator[list[str]]:
    yield [AS_IT_IS, *_cells(own, 1.0), ""]
    for one in benched.tried:
        if one.figures is None or one.ratio is None:
            yield [one.alternative.title, "–", "–", "–", "–", f"not measured: {one.why}"]
        else:
            yield [one.alternative.title, *_cells(one.figures, one.ratio), change_words(one.alternative.changes)]


def _cells(figures: Figures, ratio: float) -> list[str]:
    per_cpu = figures.tokens_per_cpu_second
    return [
        count(figures.tokens_per_second.median),
        "–" if per_cpu is None or figures.plan.device == "cuda" else count(per_cpu),
        f"{ratio:.2f}",
        "–" if figures.peak is None else size(figures.peak),
    ]


def change_words(changes: JsonObject) -> str:
    """Keys as they are typed behind a recipe."""
    return " ".join(
        shlex.quote(f"{key}={value if isinstance(value, str) else json.dumps(value)}") for key, value in changes.items()
    )


def _advice(benched: Benched, request: BenchRequest) -> Iterator[str]:
    best = benched.best
    if best is None:
        yield f"nothing that was tried is faster by {NOTICEABLE - 1:.0%} or more: leave it as it is"
        return
    yield f"faster, × {best.ratio:.2f}: {use_command(best, request)}"


def use_command(best: Tried, request: BenchRequest) -> str:
    """The launch with that change; it wins over the same keys as they were typed."""
    keys = {**request.overrides, **best.alternative.changes}
    return " ".join(["launch", shlex.quote(request.recipe), *([change_words(keys)] if keys else [])])


# -- JSON --------------------------------------------------------------------------------------------------------------
def bench_facts(benched: Benched, request: BenchRequest) -> JsonObject:
    best = benched.best
    return {
        "recipe": request.recipe,
        "device": benched.subject.plan.device,
        "own": None if benched.own is None else _facts(benched.own) | _against(benched, benched.own),
        "why": benched.why or None,
        "tried": [
            {
                "title": one.alternative.title,
                "changes": one.alternative.changes,
                "ratio": one.ratio,
                "why": one.why or None,
                "figures": None if one.figures is None else _facts(one.figures),
            }
            for one in benched.tried
        ],
        "command": None if best is None else use_command(best, request),
        "interrupted": benched.interrupted,
    }


def _against(benched: Benched, own: Figures) -> JsonObject:
    """What the plan and the machine say of these figures."""
    peak = peak_of_machine(benched)
    speed = benched.subject.plan.speed
    measured = reachable(benched, own)
    return {
        "by_cpu_seconds": benched.by_cpu,
        "peak_flops": peak,
        "mfu": None if peak is None else measured * own.flops_per_token / peak,
        "mfu_causal": None if peak is None else measured * own.causal_flops_per_token / peak,
        "undisturbed_tokens_per_second": measured,
        "planned_tokens_per_second": None if speed is None else speed.tokens_per_second,
        "planned_how": None if speed is None else speed.how,
    }


def _facts(figures: Figures) -> JsonObject:
    plan = figures.plan
    return {
        "workers": plan.world_size,
        "threads": int(plan.environment["OMP_NUM_THREADS"]),
        "precision": plan.precision,
        "micro_batch_size": plan.batch.micro_batch_size,
        "seq_len": plan.batch.seq_len,
        "steps": figures.n_steps,
        "tokens_per_second": _three(figures.tokens_per_second),
        "step_seconds": _three(figures.step_seconds),
        "tokens_per_cpu_second": figures.tokens_per_cpu_second,
        "phases": dict(figures.phases),
        "peak_bytes": figures.peak,
        "tensor_bytes": figures.tensors,
        "planned_bytes": plan.memory["total"],
    }


def _three(spread: Spread) -> JsonObject:
    return {"median": spread.median, "least": spread.least, "most": spread.most}
