"""Write docs/reference anew from the code: `make docs`. What is written there is never edited by hand.

Knows the schemas, the command tree and the tables of metrics, files and events; holds no fact of its own about them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

REFERENCE = Path(__file__).parent / "reference"
MARK = "<!-- Made by docs/generate.py (`make docs`); edits are lost. -->\n"
WIDTH = 100


# -- schemas -----------------------------------------------------------------------------------------------------
def type_words(annotation: Any) -> str:
    """A type as people read it: `fp32 | bf16`, `number or null`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in args)
    if origin is typing.Annotated:
        return type_words(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_words(arg) for arg in args if arg is not type(None)))
    if origin in (list, tuple):
        inner = type_words(args[0])
        return f"list of {inner.replace('list of', 'lists of', 1) if inner.startswith('list of') else f'{inner}s'}"
    if origin is dict:
        return "mapping"
    if inspect.isclass(annotation) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        return "mapping"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(annotation, str(annotation))


def default_words(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "—"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value == "":
        return '`""`'
    return f"`{list(value)}`" if isinstance(value, (tuple, list)) else f"`{value}`"


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The schema behind a field that is a mapping of its own, also behind `Schema | None`."""
    for one in (field.annotation, *typing.get_args(field.annotation)):
        if inspect.isclass(one) and issubclass(one, BaseModel):
            return one
    return None


def cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


def rows(fields: dict[str, FieldInfo], prefix: str) -> Iterator[str]:
    """One row a key; the keys of a list's mappings follow it as `key[].inner`."""
    for key, field in fields.items():
        words = type_words(field.annotation), default_words(field), field.description
        yield f"| `{prefix}{key}` | {' | '.join(cell(word) for word in words)} |\n"
        for one in typing.get_args(field.annotation):
            for item in typing.get_args(one) if typing.get_origin(one) is list else ():
                if inspect.isclass(item) and issubclass(item, BaseModel):
                    yield from rows(item.model_fields, f"{prefix}{key}[].")


def schema_tables(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """One table a section, its plain keys first, then a part for each section inside it."""
    fields = schema.model_fields
    plain = {key: field for key, field in fields.items() if section_of(field) is None}
    if prefix:
        yield f"\n## `{prefix.rstrip('.')}`\n\n{' '.join((schema.__doc__ or '').split())}\n"
    if plain:
        yield "\n| key | type | default | meaning |\n|---|---|---|---|\n"
    yield from rows(plain, prefix)
    for key, field in fields.items():
        if (section := section_of(field)) is not None:
            yield from schema_tables(section, f"{prefix}{key}.")


def recipe_page() -> Iterator[str]:
    from launchyard.training.recipe import Recipe

    yield "# Recipe\n\n"
    yield (
        "A recipe is a YAML file; on the command line any key is set as `section.key=value`. Unknown keys are "
        "errors. `extends: NAME` at the top takes another recipe as its base, one level deep.\n"
    )
    yield from schema_tables(Recipe)


def cluster_page() -> Iterator[str]:
    from launchyard.launcher.backends.cluster import Cluster

    yield "# Cluster\n\n"
    yield (
        "A cluster is a YAML file that describes a place; `--cluster` takes its name or its path. Bundled ones lie in "
        "`clusters/`, your own in the folder that `launch --cluster nonsense` names.\n"
    )
    yield from schema_tables(Cluster)


# -- commands ----------------------------------------------------------------------------------------------------
def root_command() -> click.Group:
    from launchyard.launcher.cli import main

    groups = [value for value in vars(main).values() if isinstance(value, click.Group)]
    assert len(groups) == 1, "launcher/cli/main.py has one group, the command `launch`"
    return groups[0]


def launching_command(context: click.Context) -> click.Command:
    """`launch RECIPE`: the command behind all that is no subcommand."""
    from launchyard.launcher.cli import main

    command = root_command().get_command(context, main.LAUNCH)
    assert command is not None
    return command


def help_of(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    context.terminal_width = context.max_content_width = WIDTH
    yield f"\n## `{context.command_path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from help_of(found, child, context)


def cli_page() -> Iterator[str]:
    yield "# The command line\n\nWhat `launch … --help` prints, all in one place. "
    yield "What the exit codes mean: [exit codes](exit-codes.md).\n"
    yield from help_of(root_command(), "launch", None)


# -- metrics -----------------------------------------------------------------------------------------------------
def metrics_page() -> Iterator[str]:
    from launchyard.training.telemetry.metric_table import METRICS, STATES
    from launchyard.training.telemetry.phases import PHASES

    yield "# Metrics\n\n"
    yield (
        "Every worker serves its series for Prometheus on an address of its own, which stands in "
        "`attempts/NNNN/targets/NNNNN.json`. *global* series come from rank 0, reduced over all ranks; *rank* series "
        "come from every worker; `launcher_` series from the monitor of all runs.\n\n"
        "| series | kind | of | labels | meaning |\n|---|---|---|---|---|\n"
    )
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {metric.scope} | {labels} | {cell(metric.help)} |\n"
    yield f"\nPhases: {', '.join(f'`{phase}`' for phase in PHASES)}.\n"
    yield f"States: {', '.join(f'`{state}`' for state in STATES)}.\n"


# -- the run directory -------------------------------------------------------------------------------------------
def files_page() -> Iterator[str]:
    from launchyard.run.layout import ENTRIES, LOG_PART_BYTES

    yield (
        "# Files of a run\n\n"
        "`RUN_URL` is a folder or any fsspec URL. NNNN is an attempt, or a submission, from 0000; NNNNN a rank; "
        "NNNNNNNN a step; N a node. What the files hold, and the rules by which they are written: "
        "[run directory](run-directory.md).\n\n"
        "| file | written by | when | what it is |\n|---|---|---|---|\n"
    )
    for entry in ENTRIES:
        yield f"| `{entry.pattern}` | {cell(entry.writer)} | {cell(entry.when)} | {cell(entry.meaning)} |\n"
    yield (
        "\nWhat SLURM needs for a job (`job-NNNN.sh`, `job-ID.log`, `code/`) lies in a local run's own folder; that of "
        "a remote run, in the user's folder for logs.\n\n"
        "In an object store a record that is taken back (`stop.json`, `outcome.json`, a target, …) is overwritten with "
        '`{"void": true}`, which readers take for none: a run there needs no right to delete.\n\n'
        "An object store cannot append, so there rows and events come in parts, `metrics/steps-NNNN-PPPPPP.jsonl`, and "
        f"logs in parts of {LOG_PART_BYTES >> 20} MiB: the first has the plain name, the second ends in `.0001`.\n"
    )


RULES = """
The run directory is the only channel between the launcher and the workers. The code of this page:
`run/layout.py`, `run/records.py`, `run/events.py`, `run/rows.py` and `storage/shards.py`; why it is so:
[concepts](../concepts/run-directory.md). Every file, with its writer: [files of a run](files.md).

## Rules

1. **Atomic.** A reader sees the old file or the new one, never a half: a file is written beside its name and renamed,
   or sent to a store in one request. Rows and events are appended, a whole line at a time; a reader leaves out a last
   line that has no end.
2. **Claims are created.** `attempts/NNNN/job.json`, `submissions/NNNN.json` and `manifest.json` are written
   create-only: of two writers one succeeds, and the other finds out. Attempts are numbered from 0 without a gap; the
   newest one that is claimed owns the run for as long as its owner lives.
3. **A lease tells whether an owner lives.** On its own machine its process does; elsewhere the age of
   `heartbeat.json`, by the clock of the store: an owner that has not renewed it for {lease:.0f} s is taken for dead.
4. **A commit is the last write.** `plan.json` makes a folder a run, `manifest.json` makes a folder a checkpoint,
   `outcome.json` ends an attempt or a run. Before rank 0 creates a manifest it looks whether a later attempt exists,
   and gives up if so. A checkpoint is removed manifest first.
5. **A later attempt takes back.** One that went on from step *s* (`started` in its events) makes void what earlier
   attempts had written after *s*: rows, and checkpoints committed too late.
6. **Readers are lenient, formats grow.** Fields may be added, and a reader passes over those that it does not know. A
   field is not removed, and does not change its meaning: old runs resume.

All text is JSON in UTF-8 but for the recipe (YAML) and logs. Times are Unix seconds, sizes bytes.
"""


def record_table(schema: type[BaseModel], heading: str = "##") -> Iterator[str]:
    yield f"\n{heading} {schema.__name__}\n\n{' '.join((schema.__doc__ or '').split())}\n\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|\n"
    for key, field in schema.model_fields.items():
        words = type_words(field.annotation), default_words(field), field.description
        yield f"| `{key}` | {' | '.join(cell(word) for word in words)} |\n"


def run_directory_page() -> Iterator[str]:
    from launchyard.run import records, rows
    from launchyard.run.events import EVENTS
    from launchyard.run.lease import LEASE_SECONDS
    from launchyard.storage import shards
    from launchyard.training.notify import notices

    yield f"# The run directory\n{RULES.format(lease=LEASE_SECONDS)}"
    files = (records.Job, records.Submission, records.OutcomeRecord, records.EnvironmentRecord, records.Target)
    for record in (*files, records.Acknowledged, records.BadNodes, records.BadNode, notices.Notice):
        yield from record_table(record)
    yield (
        "\n## Events\n\nA line of `attempts/NNNN/events.jsonl` holds `event`, its name; `time`; and the fields of that "
        "event. Rank 0 writes them, and every rank prints them into its log.\n\n"
        "| event | meaning | fields | told by |\n|---|---|---|---|\n"
    )
    for event in EVENTS:
        optional = dict.fromkeys(event.optional, " (may be absent)")
        fields = " ".join(f"`{name}`{optional.get(name, '')}: {words}" for name, words in event.fields.items())
        yield f"| `{event.name}` | {cell(event.meaning)} | {cell(fields)} | `{event.writer}` |\n"
    for row in (rows.StepRow, rows.ValidationRow, rows.TasksPoint, rows.SampleRow):
        yield from record_table(row)
    yield from record_table(rows.TaskScore, "###")
    yield from record_table(shards.Manifest)
    for part in (shards.LogEntry, shards.FileEntry, shards.TensorEntry, shards.TensorPiece):
        yield from record_table(part, "###")
    yield (
        "\n### The seal\n\nA last entry `xxh3`, which is no field, seals the manifest: the xxh3_64 of the text "
        "before it, closed by a brace. An entry of a safetensors file is called `key@offset,offset`; the last, `xxh3`, "
        "holds the hashes of the others. A file holds the parts of one rank by the order of their keys, each cut into "
        "pieces of whole rows. Format 1 lists every piece instead.\n"
    )


# -- JSON --------------------------------------------------------------------------------------------------------
JSON_RULES = """# JSON of the commands

With `--json` a command prints one JSON document on standard output, and its messages on standard error. Each object at
the top holds `schema_version`, {version} today. Keys may be added to a version, so ignore those that you do not know; a
key that goes away, or gets another meaning, makes the version greater. Times are seconds since the epoch, sizes bytes,
durations seconds; null means not known. `launch tune` prints one object a line: its trials, and last the result.

Three outputs belong to other formats, and hold no version: `launch metrics` prints the
[rows](run-directory.md#steprow) of the run directory, `launch monitor` what Prometheus reads from an http_sd, and
`launch sandbox env` names of variables.
"""


SWEEP_JSON = (
    "An object: `sweep_id`, `url`, `created`, `cluster`, `at_once`, `design` (with `kind`: grid, random or file), "
    "`stopped`, and `points`, a list of these. A dry run: `source`, and in each point `recipe` and `plan` as below."
)


PHASES_JSON = (
    "A list, one for each attempt that has made a step; `phases` are objects with `phase`, `seconds`, `share`, of a "
    "step `mean`, `p50`, `p95` and `max`, and `ranks`: seconds by rank."
)


def value_table(value: type) -> Iterator[str]:
    """The fields of a dataclass, as --json prints them."""
    hints = typing.get_type_hints(value)
    yield "\n| key | type |\n|---|---|\n"
    for field in dataclasses.fields(value):
        kind = hints[field.name]
        null = " or null" if type(None) in typing.get_args(kind) else ""
        yield f"| `{field.name}` | {cell(type_words(kind) + null)} |\n"


DIFF_JSON = (
    "An object. `differs`: does anything but speed and time? `sides`: `name`, `kind` (run or recipe), `place`, "
    "`state`, `step` and `max_steps` of each. `recipe`, `code`, `data`, `workers` and `environment` are lists of what "
    "differs: `what`, `values` (one for each side, null where unset or not known) and `changed_by_resume`. "
    "`code_diffs`: `text` and `note` of each side after the first. `results`: figures by name, one value for each "
    "side. `curves`, of each side after the first, null of a recipe, also has `equal_until` and `differs`:"
)


def json_page() -> Iterator[str]:
    from launchyard.launcher.format import JSON_VERSION
    from launchyard.launcher.plan.plan import Plan
    from launchyard.launcher.report.diff.curves import Comparison
    from launchyard.launcher.report.phases import AttemptPhases
    from launchyard.launcher.report.profiles import Profile
    from launchyard.launcher.runs.checkpoints import Saved
    from launchyard.launcher.runs.drill import Drill
    from launchyard.launcher.runs.fsck import RunCheck
    from launchyard.launcher.runs.remove import Removal
    from launchyard.launcher.runs.state import RunState
    from launchyard.launcher.runs.why import Why
    from launchyard.launcher.sweep.state import PointState

    yield JSON_RULES.format(version=JSON_VERSION)
    tables = (
        ("`launch status`, `stop`, `cancel`", "One run as an object; several, or all, as a list.", RunState),
        ("`launch why`", "An object.", Why),
        ("`launch checkpoints`", "A list, oldest first.", Saved),
        ("`launch metrics --phases`", PHASES_JSON, AttemptPhases),
        ("`launch profile`", "A list, by step and rank; `trace`, `table` and `snapshot` are paths or URLs.", Profile),
        ("`launch fsck`", "An object; `problems` are objects with `file`, `what` and `repair`.", RunCheck),
        ("`launch rm`", "A list. Besides these, `removed`: false in a dry run.", Removal),
        ("`launch drill`", "An object.", Drill),
        ("`launch sweep`, `launch status SWEEP`", SWEEP_JSON, PointState),
        ("`launch diff`", DIFF_JSON, Comparison),
    )
    for title, words, value in tables:
        yield f"\n## {title}\n\n{words} {' '.join((value.__doc__ or '').split())}\n"
        yield from value_table(value)
    yield (
        "\n## `launch new`\n\nAn object: `files` (written), `cluster` (as `--cluster` takes it), `plan` (see below), "
        "`findings` (as `launch doctor --json` has them) and `next` (commands).\n"
    )
    yield (
        "\n## `launch RECIPE`\n\nAn object. A dry run: `source`, `recipe` (all its keys: [recipe](recipe.md)), `code` "
        "(what `code.json` of the run would hold) and `plan`. A launch: `run_id`, `run_url`, `job` "
        "([Job](run-directory.md#job)) and `plan`. With `--fast-dev-run`: `run_id`, `passed`, what ran (`steps`, "
        "`loss` of the last, `validations`, `checkpoints`, `samples`, `tasks`, `exported`, `seconds`) and `kept`, the "
        "folder of one that failed, else null. The keys of `plan`, which are those of `plan.json`:\n"
    )
    yield "\n| key | type | meaning |\n|---|---|---|\n"
    for key, field in Plan.model_fields.items():
        null = " or null" if type(None) in typing.get_args(field.annotation) else ""
        yield f"| `{key}` | {cell(type_words(field.annotation) + null)} | {cell(field.description)} |\n"


# -- models ------------------------------------------------------------------------------------------------------------
MODEL_RULES = """# Models

What is read, trained and written, one row a `model_type` of `config.json`: a Hugging Face folder of it is read by the
rules of its family, and `launch export` writes one that transformers opens by the class named here. Presets are shapes
that a recipe names with `model.preset=NAME`; `launch models NAME` describes one. A trait that not all presets of a row
have says so by "some". How a family is added: [Add a family](../guides/add-a-family.md).

"""


def models_page() -> Iterator[str]:
    from launchyard.model.zoo import BY_TYPE
    from launchyard.model.zoo.unsupported import MISSING

    yield MODEL_RULES
    yield f"## {len(BY_TYPE)} families\n\n| model_type | class of transformers | presets | GGUF |\n|---|---|---|---|\n"
    for name, family in BY_TYPE.items():
        kinds = ", ".join(f"`{kind}`" for kind in (name, *family.inside))
        arch = "–" if family.gguf is None else f"`{family.gguf.arch}`"
        yield f"| {kinds} | {family.hf_class} | {preset_words(family.presets) or '–'} | {arch} |\n"
    yield (
        "\nA second model_type in a row is a model of images and text, of which the language model is read.\n\n"
        "## How they differ\n\nNorms stand before or behind attention and MLP. Derived from the presets and the key "
        "rules; of a family without presets, marked *, from tiny configurations of the tests with every option on.\n\n"
    )
    head = ("model_type", *describe_all(next(iter(BY_TYPE.values()))))
    yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n"
    for name, family in BY_TYPE.items():
        cells = (cell(words) or "–" for words in describe_all(family).values())
        yield f"| `{name}`{'' if family.presets else ' *'} | {' | '.join(cells)} |\n"
    yield "\n## Refused by name\n\n| what they have, and we do not | model_type |\n|---|---|\n"
    for part in dict.fromkeys(MISSING.values()):
        yield f"| {part} | {', '.join(f'`{kind}`' for kind, lacks in MISSING.items() if lacks == part)} |\n"
    yield "\nAny other model_type is refused, too, with the list of those that are read.\n"


def preset_words(presets: Mapping[str, Any]) -> str:
    from launchyard.model.cost import n_params

    return ", ".join(f"`{name}` {n_params(config):,}" for name, config in presets.items())


def describe_all(family: Any) -> dict[str, str]:
    """What the presets of a family have in common, then what only some of them have."""
    from launchyard.model.zoo import config_from_hf
    from launchyard.model.zoo.describe import describe_config, describe_files
    from tests.support.architectures import ARCHITECTURES

    rows = [keys for keys in ARCHITECTURES.values() if keys["model_type"] == family.model_type]
    configs = [*family.presets.values()] or [config_from_hf(keys) for keys in rows]
    told = [describe_config(config) for config in configs]
    found = {}
    for part in told[0]:
        words = dict.fromkeys(phrase for one in told for phrase in one[part])
        common = [phrase for phrase in words if all(phrase in one[part] for one in told)]
        some = [phrase for phrase in words if phrase not in common]
        found[part] = ", ".join([*common, *([f"some: {'; '.join(some)}"] if some else [])])
    return found | {"files": ", ".join(describe_files(family.rules))}


# -- python -----------------------------------------------------------------------------------------------------------
PYTHON_RULES = """# Python

What `from launchyard import …` gives, and `launchyard.ray_train`. Importing loads no torch; a name loads what it needs
when it is first used. Mistakes raise `launchyard.errors.UserError` (of a recipe `RecipeErrors`, with all of them in
`.problems`), other failures `LaunchError`, both with a `.hint`; nothing ends the process. How they are used:
[the guide](../guides/python.md).

"""


def python_page() -> Iterator[str]:
    import launchyard
    from launchyard import ray_train

    yield PYTHON_RULES
    for module, before in ((launchyard, ""), (ray_train, "ray_train.")):
        for name in module.__all__:
            yield from python_entry(before + name, getattr(module, name))


def python_entry(name: str, value: Any) -> Iterator[str]:
    """A function, or a class with its fields, its public methods and its properties."""
    if not inspect.isclass(value):
        yield f"## `{name}`\n\n```\n{signature_words(name, value)}\n```\n\n{inspect.getdoc(value)}\n\n"
        return
    yield f"## `{name}`\n\n{inspect.getdoc(value)}\n\n"
    written = getattr(value, "__dataclass_params__", None)  # with repr: a value is its fields, and nothing more
    shown = [field for field in dataclasses.fields(value) if field.repr] if written and written.repr else []
    if shown:
        yield f"Fields: {', '.join(f'`{field.name}: {field.type}`' for field in shown)}.\n\n"
    for attribute, member in vars(value).items():
        method = getattr(member, "__func__", member)
        if inspect.isfunction(method) and not attribute.startswith("_"):
            yield f"### `{name}.{signature_words(attribute, method)}`\n\n{inspect.getdoc(method)}\n\n"
        elif isinstance(member, property | functools.cached_property) and not attribute.startswith("_"):
            yield f"### `{name}.{attribute}`\n\n{inspect.getdoc(member)}\n\n"


def signature_words(name: str, function: Callable[..., Any]) -> str:
    """As it is called, with annotations as they stand in the code: without the quotes that they have as texts."""
    written = re.sub(r"(: |-> )([\"'])(.*?)\2", r"\1\3", str(inspect.signature(function)))
    return name + re.sub(r"^\((?:self|cls)(?:, )?", "(", written)


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "recipe.md": recipe_page,
    "cluster.md": cluster_page,
    "cli.md": cli_page,
    "metrics.md": metrics_page,
    "models.md": models_page,
    "files.md": files_page,
    "json.md": json_page,
    "run-directory.md": run_directory_page,
    "python.md": python_page,
    "benchmarks.md": lambda: importlib.import_module("measured").benchmarks_page(),  # beside this file
}


def page(name: str) -> str:
    """The whole text of one page of docs/reference."""
    return MARK + "".join(PAGES[name]())


def main() -> None:
    """Write the pages; with --check only name those that would change, and exit with 1 if there are any."""
    sys.path.insert(0, str(REFERENCE.parents[1]))
    changed = [
        name for name in PAGES if not (REFERENCE / name).exists() or (REFERENCE / name).read_text() != page(name)
    ]
    if "--check" in sys.argv:
        sys.exit(f"{', '.join(changed)}: the code has moved on; say `make docs`" if changed else 0)
    for name in changed:
        (REFERENCE / name).write_text(page(name))
        print(f"wrote {REFERENCE / name}")


if __name__ == "__main__":
    main()
