"""`launch new`: asks what a recipe needs, looks at the machine and its schedulers, writes the files and checks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED, UserError, user_errors
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.cli.completion import complete_cluster, complete_model
from launchyard.launcher.cli.recipe.questions import Questions
from launchyard.launcher.format import json_text

if TYPE_CHECKING:
    from launchyard.launcher.backends.findings import Finding
    from launchyard.launcher.backends.offer import Offer
    from launchyard.launcher.new.files import NewFile
    from launchyard.launcher.new.place import Spot
    from launchyard.launcher.new.wishes import Task, Wishes
    from launchyard.launcher.submit.launch import Ready

_METHODS = ("lora", "qlora", "dora", "full")
Flags = dict[str, str | None]


def write_new(name: str | None, data: tuple[str, ...], **flags: str | bool | None) -> int:
    """Write a recipe: NAME.yaml here, with a reason for each key, and a cluster file if its place has none yet.

    Asks in a terminal what no option says. Looks at the machine, and for SLURM's partitions and a Ray; sizes model,
    batch, precision and savings by the plan, and then checks the place as `launch doctor` does. Starts nothing, and
    overwrites nothing without --force. Exit code 1 if a check finds an error.
    """
    from launchyard.launcher.new.draft import draft_recipe
    from launchyard.launcher.new.files import (
        NewFile,
        examine_place,
        next_words,
        plan_written,
        recipe_file,
        recipe_text_of,
        write_files,
    )

    quiet = bool(flags["as_json"])
    given: Flags = {
        key: str(value) for key, value in flags.items() if value is not None and not isinstance(value, bool)
    }
    questions = Questions(yes=bool(flags["yes"]) or quiet)
    wishes, spot, cluster, files = _answers(questions, name, data, given, force=bool(flags["force"]))
    draft = draft_recipe(wishes, spot)
    recipe = NewFile(recipe_file(wishes.name), recipe_text_of(draft, wishes, spot))
    files = [recipe, *files]
    write_files(files, force=bool(flags["force"]))
    ready = plan_written(recipe.path, cluster)
    if not quiet:
        _show_files(files, ready)
    findings = []
    for finding in examine_place(cluster, with_job=not flags["no_job"]):
        findings.append(finding)
        if not quiet:
            _show(finding)
    words = next_words(recipe.path, cluster)
    if quiet:
        plan = ready.plan.model_dump(mode="json")
        facts = {"files": [str(file.path.resolve()) for file in files], "cluster": cluster, "plan": plan, "next": words}
        click.echo(json_text({**facts, "findings": [one.to_json() for one in findings]}))
    else:
        click.echo("\n".join(["", *(f"  {line}" for line in words)]))
    return EXIT_FAILED if any(one.level == "error" for one in findings) else EXIT_DONE


def _show_files(files: Sequence[NewFile], ready: Ready) -> None:
    from launchyard.launcher.submit.plan_text import brief

    for file in files:
        click.echo(f"✓ wrote    {file.path}")
    for line in brief(ready.plan, ready.loaded.recipe, ready.code):
        click.echo(line)


def _show(finding: Finding) -> None:
    mark, colour = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}[finding.level]
    click.echo(f"{click.style(mark, fg=colour)} {finding.what:<20} {finding.found}")
    if finding.fix:
        click.echo(f"  {'':<20} fix: {finding.fix}")


# -- questions -------------------------------------------------------------------------------------------------------
def _answers(
    questions: Questions, name: str | None, data: tuple[str, ...], given: Flags, *, force: bool
) -> tuple[Wishes, Spot, str, list[NewFile]]:
    """All answers: wishes, the place and the word for it after --cluster, and its file if it has none yet."""
    from launchyard.launcher.new import checks
    from launchyard.launcher.new.files import recipe_file, refuse_existing
    from launchyard.launcher.new.wishes import BUDGET_HELP, Wishes, parse_budget

    def check_name(typed: str) -> str:
        found = checks.check_new_name(typed)
        refuse_existing([recipe_file(found)], force=force)
        return found

    tasks = [("pretrain", "a model of its own, from random weights"), ("finetune", "a model that is there, on rows")]
    task = cast("Task", questions.choose("--task", "What to train", tasks, given=given.get("task")))
    name = questions.ask("NAME", "Name of the recipe", check_name, given=name, default=task)
    model = _model(questions, task, given)
    text = "Data: files, folders, globs or URLs, with commas between"
    if data:
        sources = checks.check_data(data, task)
    else:
        sources = questions.ask("--data", text, lambda typed: checks.check_data(checks.split_data(typed), task))
    tokenizer = _tokenizer(questions, task, sources, given)
    spot, cluster, files = _place(questions, given)
    usual = "3epochs" if task == "finetune" else "24h" if spot.has_gpus else "30m"
    budget = questions.ask(
        "--budget", f"How long: {BUDGET_HELP}", parse_budget, given=given.get("budget"), default=usual
    )
    nodes = 1
    if spot.scheduled:
        nodes = questions.ask("--nodes", "Nodes", checks.check_count, given=given.get("nodes"), default="1")
    method = given.get("method") or _METHODS[0]
    limit = given.get("time_limit")
    wishes = Wishes(name, task, sources, budget, model or None, tokenizer, method, nodes, None if files else limit)
    return wishes, spot, cluster, files


def _model(questions: Questions, task: Task, given: Flags) -> str:
    from launchyard.launcher.new import checks

    if task == "finetune":
        text = "Model to finetune: a folder, a GGUF file, a run or a name of the hub"
        return questions.ask("--model", text, checks.check_weights, given=given.get("model"))
    text = "Shape of the model: a preset (launch models), or auto for the one that fits"
    return questions.ask("--model", text, checks.check_preset, given=given.get("model"), default="auto")


def _tokenizer(questions: Questions, task: Task, data: tuple[str, ...], given: Flags) -> str | None:
    """Of text that is not prepared; a model to finetune has its own."""
    from launchyard.launcher.new import checks
    from launchyard.launcher.new.wishes import usual_tokenizer

    wanted = given.get("tokenizer")
    if wanted is None and (task == "finetune" or not checks.needs_tokenizer(data)):
        return None
    text = "Tokenizer: tokenizer.json, or a folder with one"
    return questions.ask("--tokenizer", text, checks.check_tokenizer, given=wanted, default=usual_tokenizer())


# -- the place -------------------------------------------------------------------------------------------------------
def _place(questions: Questions, given: Flags) -> tuple[Spot, str, list[NewFile]]:
    from launchyard.launcher.new import checks
    from launchyard.launcher.new.place import find_offers, known_place, this_machine

    cluster, part, address = (given.get(key) for key in ("cluster", "partition", "address"))
    gpu_bytes = checks.check_size(given.get("gpu_memory") or "")
    if cluster is not None and part is None and address is None and checks.is_known_cluster(cluster):
        spot = known_place(cluster, "", gpu_bytes)
        if spot.scheduled and spot.has_gpus and spot.memory is None:
            spot = replace(spot, memory=_gpu_bytes(questions, "GPU"))
        return spot, cluster, []
    offers = [] if cluster == FIRST else find_offers(address)
    if cluster is not None and not offers and cluster != FIRST:
        found = "no scheduler is found here"
        raise UserError(
            f"--cluster {cluster}: no such cluster, and {found}", hint="--address of a dashboard, or go to a login node"
        )
    here = this_machine()
    if part is None and (cluster is None or cluster == FIRST) and address is None:
        options = [(FIRST, here.title), *((f"{offer.part}", offer.title) for offer in offers)]
        part = questions.choose("--partition", "Where", options) if questions.asks else FIRST
        if part == FIRST:
            return here, FIRST, []
    offer = next((one for one in offers if part in (None, one.part)), None)
    if offer is None:
        there = ", ".join(one.part for one in offers) or "none"
        raise UserError(f"--partition {part}: no such part of the site; there are: {there}")
    return _written(questions, given, offer, gpu_bytes)


def _written(
    questions: Questions, given: Flags, offer: Offer, gpu_bytes: int | None
) -> tuple[Spot, str, list[NewFile]]:
    """A cluster file for an offer: in the user's folder of clusters, or at a path that ends in .yaml."""
    from launchyard.launcher.new import checks
    from launchyard.launcher.new.files import NewFile
    from launchyard.launcher.new.place import gpu_bytes_of, offered_place
    from launchyard.launcher.recipe.bundled import own_clusters

    word = given.get("cluster") or questions.ask(
        "--cluster", "Name of the cluster", str, default=f"my-{offer.scheduler}"
    )
    path = Path(word) if word.endswith(".yaml") else own_clusters() / f"{checks.check_new_name(word)}.yaml"
    storage = questions.ask(
        "--storage",
        "Folder for runs that all nodes see, or s3://BUCKET/PREFIX",
        str,
        given=given.get("storage"),
        default=str(Path("runs").absolute()),
    )
    chosen = {
        key: questions.choose(f"--{key}", f"Which {key}", [(name, "") for name in names], given=given.get(key))
        for key, names in offer.choices.items()
    }
    if "account" in given and "account" not in chosen:
        chosen["account"] = str(given["account"])
    if offer.time_limit is not None:
        text = f"Wall time of an attempt, at most {offer.time_limit}"
        limit = given.get("time_limit")
        chosen["time_limit"] = questions.ask(
            "--time-limit", text, checks.check_time_limit, given=limit, default=offer.time_limit
        )
    if offer.gpus and gpu_bytes is None and gpu_bytes_of(offer.gpu) is None:
        gpu_bytes = _gpu_bytes(questions, offer.gpu or "GPU")
    with user_errors(str(path)):
        spot = offered_place(offer, name=path.stem, storage=storage, chosen=chosen, gpu_bytes=gpu_bytes)
    return spot, str(path) if word.endswith(".yaml") else word, [NewFile(path, spot.file or "")]


def _gpu_bytes(questions: Questions, kind: str) -> int | None:
    from launchyard.launcher.new.checks import check_size

    return questions.ask("--gpu-memory", f"Memory of each {kind}", check_size, default="24GB")


def _option(name: str, metavar: str, text: str) -> click.Option:
    return click.Option([name], metavar=metavar, help=text)


new_recipe = click.Command(
    "new",
    callback=write_new,
    help=write_new.__doc__,
    params=[
        click.Argument(["name"], metavar="[NAME]", required=False),
        click.Option(["--task"], type=click.Choice(("pretrain", "finetune")), help="What to train."),
        click.Option(
            ["--model"], metavar="PRESET|MODEL", shell_complete=complete_model, help="The shape, or the weights."
        ),
        click.Option(["--data"], multiple=True, metavar="FILE", help="File, folder, glob or URL; repeatable."),
        _option("--tokenizer", "FILE", "Of text that is not prepared.  [default: that of the quickstart]"),
        _option("--budget", "LENGTH", "Such as 8h, 10B tokens, 1000steps or 3epochs."),
        click.Option(
            ["--method"], type=click.Choice(_METHODS), help="What trains of a model to finetune.  [default: lora]"
        ),
        click.Option(
            ["--cluster"],
            metavar="NAME|FILE",
            shell_complete=complete_cluster,
            help="A place, or the name for a new one.",
        ),
        _option("--partition", "NAME", "The part of a site, for a new cluster file."),
        _option("--address", "URL", "Of the dashboard of a scheduler that has one, for a new cluster file."),
        _option("--account", "NAME", "That is charged, for a new cluster file."),
        _option("--storage", "URL", "Where runs go, for a new cluster file.  [default: runs]"),
        _option("--time-limit", "TIME", "Of one attempt, where a scheduler has limits."),
        _option("--gpu-memory", "SIZE", "Of a GPU of a cluster, such as 80GB."),
        _option("--nodes", "N", "Machines of a cluster."),
        click.Option(["--yes"], is_flag=True, help="Ask nothing: take the defaults."),
        click.Option(["--force"], is_flag=True, help="Overwrite files that are there."),
        click.Option(["--no-job"], is_flag=True, help="Do not run a short job on a node to check it."),
        click.Option(["--json", "as_json"], is_flag=True, help="Ask nothing, and print facts as JSON."),
    ],
)
