"""`launch evaluate`. torch and lm_eval are imported in a body only."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from launchyard.errors import UserError
from launchyard.host.packages import install_command
from launchyard.launcher.cli.completion import complete_model
from launchyard.launcher.cli.paths import path_or_url
from launchyard.launcher.cli.weights.find import MODEL_HELP, find_model, weights_errors
from launchyard.launcher.format import duration, json_text, table
from launchyard.launcher.watch.transfer import count_bars, transfer_bar
from launchyard.storage.files import exists, read, typed_path, write

if TYPE_CHECKING:
    from launchyard.model.evaluate.tasks import TaskRow
    from launchyard.model.loaded import LoadedModel

_OF_TASKS = ("include", "num_fewshot", "limit", "apply_chat_template", "system", "seed")
_RESULTS = "results.json"
_SAMPLES = "samples.jsonl"


@click.command(epilog=MODEL_HELP)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.option("--tasks", metavar="NAMES", help="Tasks of lm-eval, with commas between: names or YAML files.")
@click.option(
    "--include", type=path_or_url, multiple=True, metavar="PATH", help="Folder or YAML file with tasks of your own."
)
@click.option(
    "--text", type=path_or_url, metavar="FILE", help="Instead of tasks, the perplexity of a text; - is standard input."
)
@click.option("--num-fewshot", type=click.IntRange(min=0), metavar="N", help="Answered samples before each.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N samples of each task.")
@click.option("--apply-chat-template", is_flag=True, help="Ask by the model's chat template.")
@click.option("--system", metavar="TEXT", help="A system message before each sample.")
@click.option("--max-length", type=click.IntRange(min=1), metavar="N", help="Tokens that it sees at once.")
@click.option("--batch-tokens", default=8192, show_default=True, type=click.IntRange(min=1), metavar="N")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Compute in it.  [default: as stored]"
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@click.option("--seed", type=int, metavar="N", help="Of samples that are drawn; default: those of lm-eval.")
@click.option("--out", type=path_or_url, metavar="DIR", help="Folder or URL for results.json and samples.jsonl.")
@click.option("--json", "as_json", is_flag=True, help="Print results and facts as JSON.")
@click.pass_context
def evaluate(ctx: click.Context, /, **_: object) -> None:
    """Measure a model: on tasks of lm-evaluation-harness, or by the perplexity of a text."""
    options = _Options(**ctx.params)
    if options.has_tasks == (options.text is not None):
        raise click.UsageError("give --tasks NAMES (or --include FILE), or --text FILE")
    given = [name for name in _OF_TASKS if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given and not options.has_tasks:
        raise click.UsageError(f"--{given[0].replace('_', '-')} is for --tasks; it means nothing for a text")
    with weights_errors():
        if options.out and exists(f"{options.out}/{_RESULTS}"):
            raise UserError(
                f"--out {options.out} holds {_RESULTS}; name another folder, so that nothing is overwritten"
            )
        began = time.perf_counter()
        facts, samples = _of_tasks(options) if options.has_tasks else (_of_text(options), [])
        facts["seconds"] = round(time.perf_counter() - began, 3)
        if options.out:
            _write(options.out, facts, samples)
    click.echo(json_text(facts) if options.as_json else "\n".join(_shown(facts)))


@dataclass(frozen=True)
class _Options:
    """The options as they were typed."""

    model: str
    tasks: str | None
    include: tuple[str, ...]
    text: str | None
    num_fewshot: int | None
    limit: int | None
    apply_chat_template: bool
    system: str | None
    max_length: int | None
    batch_tokens: int
    dtype: str | None
    device: str
    seed: int | None
    out: str | None
    as_json: bool

    @property
    def has_tasks(self) -> bool:
        return bool(self.tasks or self.include)


def _load(options: _Options) -> LoadedModel:
    import torch

    from launchyard.model.weights.load import load

    dtype: torch.dtype | None = getattr(torch, options.dtype) if options.dtype else None
    with transfer_bar(f"read {options.model}", sys.stderr) as on_progress:
        return load(find_model(options.model), device=options.device, dtype=dtype, on_progress=on_progress)


def _of_tasks(options: _Options) -> tuple[dict[str, object], Sequence[Mapping[str, object]]]:
    """Facts with the results, and the samples."""
    if find_spec("lm_eval") is None:
        raise UserError(
            f"tasks need lm_eval, of the extra launchyard[evaluate], which {sys.executable} does not have; "
            "--text needs nothing more",
            hint=install_command("evaluate"),
        )
    from launchyard.model.evaluate.facts import package_versions, result_facts, template_facts
    from launchyard.model.evaluate.harness import HarnessModel
    from launchyard.model.evaluate.tasks import TaskList, TaskSettings, run_tasks

    typed = [name.strip() for name in (options.tasks or "").split(",") if name.strip()]
    names = [typed_path(name) if name.startswith("~") else name for name in typed]
    tasks = TaskList(names, options.include)  # before the model is read: names may be misspelt
    loaded = _load(options)
    settings = TaskSettings(
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        chat=options.apply_chat_template,
        system=options.system,
        seed=options.seed,
    )
    facts = {
        **result_facts(loaded, max_length=options.max_length),
        "chat_template": template_facts(loaded) if settings.chat else None,
    }
    with count_bars(sys.stderr) as on_progress:
        model = HarnessModel(
            loaded,
            max_length=options.max_length,
            batch_tokens=options.batch_tokens,
            seed=options.seed,
            on_progress=on_progress,
        )
        found = run_tasks(model, tasks, settings)
    asked = {"num_fewshot": options.num_fewshot, "limit": options.limit, "system": options.system, "seed": options.seed}
    facts |= {"system_dropped": model.dropped_system, **asked, "versions": package_versions("lm_eval")}
    return {"results": found.rows, **facts}, found.samples


def _of_text(options: _Options) -> dict[str, object]:
    from launchyard.model.evaluate.facts import package_versions, result_facts
    from launchyard.model.evaluate.perplexity import text_odds

    assert options.text is not None
    text = _read(options.text)
    loaded = _load(options)
    with count_bars(sys.stderr) as on_progress:
        odds = text_odds(
            loaded,
            text,
            max_length=options.max_length,
            batch_tokens=options.batch_tokens,
            on_progress=lambda done, total: on_progress("windows", done, total),
        )
    figures = {
        "bits_per_byte": odds.bits_per_byte,
        "token_perplexity": odds.perplexity,
        "word_perplexity": odds.word_perplexity,
    }
    return {
        "text": options.text,
        **{name: figure if math.isfinite(figure) else None for name, figure in figures.items()},
        "logprob": odds.logprob,
        "n_tokens": odds.n_tokens,
        "n_words": odds.n_words,
        "n_bytes": odds.n_bytes,
        **result_facts(loaded, max_length=options.max_length),
        "versions": package_versions(),
    }


def _read(path: str) -> str:
    """A text as it is, ends of lines included."""
    raw = sys.stdin.buffer.read() if path == "-" else read(path)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error}") from error


def _write(out: str, facts: Mapping[str, object], samples: Sequence[Mapping[str, object]]) -> None:
    if samples:
        lines = (json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
        write(f"{out}/{_SAMPLES}", "".join(lines).encode())
    write(f"{out}/{_RESULTS}", (json_text(facts) + "\n").encode())


def _shown(facts: Mapping[str, object]) -> Iterator[str]:
    results = facts.get("results")
    if isinstance(results, list):
        header = ("task", "metric", "value", "± stderr", "shots", "samples")
        yield from table([_cells(row) for row in results], header)
    else:
        names = ("bits_per_byte", "token_perplexity", "word_perplexity", "n_tokens", "n_words", "n_bytes")
        yield from table([(name.replace("_", " "), f"{facts[name]:.6g}") for name in names if facts[name] is not None])
    yield f"\n{facts['model']}, weights {facts['weights']}, {facts['dtype']} on {facts['device']}"
    template = facts.get("chat_template")
    yield ", ".join(
        [
            f"prefix token {facts['prefix_token']['text']}",  # type: ignore[index]
            f"max_length {facts['max_length']}",
            *([f"chat template {template['sha256'][:12]}"] if isinstance(template, dict) else []),
            *(["without the system message, which the template refuses"] if facts.get("system_dropped") else []),
            f"{duration(float(str(facts['seconds'])))}",
        ]
    )


def _cells(row: TaskRow) -> tuple[str, ...]:
    name = row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"
    figures = ["-" if figure is None else f"{figure:.4f}" for figure in (row["value"], row["stderr"])]
    counts = ["-" if number is None else str(number) for number in (row["n_shot"], row["n_samples"])]
    return (row["task"], name, *figures, *counts)
