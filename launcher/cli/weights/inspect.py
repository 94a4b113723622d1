"""`launch inspect`: says what a place holds, tokens or a model. Heavy modules are imported in a command's body."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from launchyard.errors import UserError, user_errors
from launchyard.launcher.cli.completion import complete_run
from launchyard.launcher.cli.data import data_of_recipe, inspect_data
from launchyard.launcher.cli.weights.find import find_model, weights_errors
from launchyard.launcher.format import json_text, size
from launchyard.storage.files import exists, normal, typed_path
from launchyard.training.data.index import is_prepared

if TYPE_CHECKING:
    from launchyard.model.weights.adapters.facts import AdapterFacts
    from launchyard.model.weights.facts import ModelFacts


@click.command()
@click.argument("place", shell_complete=complete_run)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
@click.option("--verify", is_flag=True, help="Data: read every chunk, check its hash; exit code 1 if any is wrong.")
@click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="Data: print the first N tokens, or rows, of each split."
)
def inspect(place: str, as_json: bool, verify: bool, sample: int | None) -> None:
    """Describe a folder or URL of tokens, or a model.

    PLACE is a folder or URL of tokens, a recipe (its data is described, and prepared first if need be), a Hugging Face
    folder, a PEFT folder, BASE+ADAPTER, a checkpoint or a run: a path, a URL, or the id or name of a run. Of a model
    nothing but the headers of its files is read. Contradictions between its files are listed.
    """
    if place.endswith((".yaml", ".yml")):
        for folder in data_of_recipe(place):
            inspect_data(folder, as_json=as_json, verify=verify, sample=sample)
        return
    with user_errors():
        place = typed_path(place)
        model = None if is_prepared(normal(place)) else _model_at(place)
    if model is None:
        inspect_data(place, as_json=as_json, verify=verify, sample=sample)
        return
    if verify or sample:
        raise UserError(
            f"{place} is a model: --verify and --sample are of tokens",
            hint="launch checkpoints RUN --verify checks the checkpoints of a run",
        )
    with weights_errors():
        from launchyard.model.weights.facts import model_facts

        facts = model_facts(model)
    click.echo(json_text(asdict(facts)) if as_json else "\n".join(_lines(facts)))


def _model_at(place: str) -> str | None:
    """The place of the model; None if a folder is there that holds none, of which the check of data says what it is."""
    from launchyard.model.weights.source import find_source

    try:
        model = find_model(place)
        find_source(model)
    except (FileNotFoundError, UserError):
        if exists(normal(place)) or "/" in place:
            return None
        raise
    return model


def _lines(facts: ModelFacts) -> Iterator[str]:
    active = f", {facts.n_params_active:,} active" if facts.n_params_active != facts.n_params else ""
    yield f"{facts.model}: {facts.family} ({facts.hf_class}), {facts.n_params:,} parameters{active}"
    yield f"  parameters  {', '.join(f'{part} {count:,}' for part, count in facts.parameters.items())}"
    stored = ", ".join(f"{name} {size(held['bytes'])}" for name, held in facts.dtypes.items())
    quantised = f", quantised by {facts.quantisation}" if facts.quantisation else ""
    yield f"  stored      {stored or 'no safetensors files'}{quantised}"
    if facts.adapter is not None:
        yield f"  adapter     {_adapter(facts.adapter)}"
    scaling = facts.rope_scaling
    scaled = f", rope scaling {', '.join(f'{key} {value}' for key, value in scaling.items())}" if scaling else ""
    yield f"  context     {facts.max_seq_len:,} tokens{scaled}"
    ids = "no tokenizer" if facts.tokenizer_ids is None else f"{facts.tokenizer_ids:,} ids of the tokenizer"
    yield f"  vocabulary  {facts.rows:,} rows, {ids}"
    for end, said in facts.ends.items():
        yield f"  ends at     {end} {said['token'] or ''} ({', '.join(map(str, _listed(said['said_by'])))})"
    yield f"  begin, pad  {_or_none(facts.bos)}, {_or_none(facts.pad)}"
    for name, template in facts.templates.items():
        yield f"  template    {name} in {template['file']}: {template['begins']}"
    for name, first in facts.licences.items():
        yield f"  licence     {name}: {first}"
    for contradiction in facts.contradictions:
        yield f"  ! {contradiction}"


def _adapter(facts: AdapterFacts) -> str:
    """In one line: modules by the last part of their names."""
    said = f"{facts.kind} in {facts.place}, {facts.n_params:,} parameters"
    if facts.modules:
        names = dict.fromkeys(module.rpartition(".")[2] for module in facts.modules)
        said += f", r {facts.r}, alpha {facts.alpha:g}, {len(facts.modules)} modules ({', '.join(names)})"
    for what, names_of in (("whole", facts.whole), ("some tokens of", facts.tokens)):
        if names_of:
            more = f" and {len(names_of) - 4} more" if len(names_of) > 4 else ""
            said += f", {what} {', '.join(names_of[:4])}{more}"
    return said


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)
