"""The `launch` command. Names every command in one table and imports a command's module only when it runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from launchyard.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USER,
    LaunchError,
    RecipeErrors,
    StartedError,
    UserError,
    os_error_text,
)
from launchyard.launcher.cli.completion import complete_cluster, complete_recipe, prepare_completion, recipe_names
from launchyard.storage.errors import DamagedError
from launchyard.storage.redact import is_text, plain_name

if TYPE_CHECKING:
    from launchyard.launcher.submit.launch import Request

# name -> (module, attribute, one line for the help); the order and the headings are those of the help.
GROUPS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Runs": {
        "new": ("launchyard.launcher.cli.recipe.new", "new_recipe", "Write a recipe that fits: asks, sizes, checks."),
        "sweep": (
            "launchyard.launcher.cli.recipe.sweep",
            "sweep_command",
            "Launch a recipe with many values of keys.",
        ),
        "tune": (
            "launchyard.launcher.cli.recipe.tune",
            "tune_command",
            "Find the micro-batch and learning rate of a recipe.",
        ),
        "bench": (
            "launchyard.launcher.cli.recipe.bench",
            "bench_command",
            "Measure a recipe here, and what makes it faster.",
        ),
        "status": ("launchyard.launcher.cli.runs", "status", "Show all runs, or one."),
        "logs": ("launchyard.launcher.cli.runs", "logs", "Print the logs of a run, all workers in one."),
        "stop": ("launchyard.launcher.cli.runs", "stop", "Save and stop at the next step; can be resumed."),
        "cancel": ("launchyard.launcher.cli.runs", "cancel", "End a run now, without saving."),
        "resume": ("launchyard.launcher.cli.runs", "resume", "Go on from the newest checkpoint."),
        "why": ("launchyard.launcher.cli.runs", "why", "Explain why a run ended, and what to do."),
        "ack": ("launchyard.launcher.cli.monitor", "ack", "Say that you know of a failed run: no more pages."),
        "report": (
            "launchyard.launcher.cli.report",
            "report",
            "Write a run as one page of HTML, with curves.",
        ),
        "diff": (
            "launchyard.launcher.cli.recipe.diff",
            "command",
            "Compare runs: recipe, code, data, curves.",
        ),
        "metrics": ("launchyard.launcher.cli.runs", "metrics", "Print the metrics of a run, one row a step."),
        "profile": ("launchyard.launcher.cli.recipe.profile", "profile", "Show traces of steps, or trace a live run."),
        "checkpoints": ("launchyard.launcher.cli.runs", "checkpoints", "List or verify the checkpoints of a run."),
        "rm": ("launchyard.launcher.cli.run_files", "rm", "Remove runs that have ended, for good."),
        "fsck": ("launchyard.launcher.cli.run_files", "fsck", "Check every file of a run, and say what repairs it."),
        "monitor": ("launchyard.launcher.cli.monitor", "monitor", "Show all live runs to Prometheus."),
        "doctor": (
            "launchyard.launcher.cli.doctor",
            "doctor",
            "Check a place before a run, with a fix for each problem.",
        ),
        "prove": ("launchyard.launcher.cli.recipe.prove", "command", "Make steps of a run again, and compare."),
        "drill": ("launchyard.launcher.cli.runs", "drill", "Rehearse a preemption, a kill or the loss of a node."),
    },
    "Models and data": {
        "finetune": ("launchyard.launcher.cli.finetune", "command", "Finetune a model on rows of instructions."),
        "prepare": ("launchyard.launcher.cli.data", "prepare", "Turn text into tokens."),
        "inspect": ("launchyard.launcher.cli.weights.inspect", "inspect", "Describe a model, or tokens."),
        "cache": ("launchyard.launcher.cli.data", "cache", "Show or clear what is cached on this machine."),
        "fetch-corpus": (
            "launchyard.launcher.cli.weights.download",
            "fetch_corpus",
            "Get text to train on from the Hugging Face hub.",
        ),
        "download": ("launchyard.launcher.cli.weights.download", "download", "Get a model from the Hugging Face hub."),
        "models": ("launchyard.launcher.cli.weights.models", "models", "List the model shapes that recipes can name."),
        "generate": ("launchyard.launcher.cli.weights.generate", "generate", "Write text with a model."),
        "chat": ("launchyard.launcher.cli.chat.command", "chat", "Talk with a model."),
        "serve": ("launchyard.launcher.cli.weights.serve", "serve", "Serve a model over HTTP, as OpenAI does."),
        "evaluate": ("launchyard.launcher.cli.weights.evaluate", "evaluate", "Measure a model on tasks, or on a text."),
        "export": (
            "launchyard.launcher.cli.weights.export",
            "export",
            "Write weights for other programs.",
        ),
        "merge": ("launchyard.launcher.cli.weights.merge", "merge", "Write an adapter and its base as one model."),
    },
    "This machine": {
        "sandbox": (
            "launchyard.launcher.cli.sandbox",
            "sandbox",
            "Start a small real service here: s3, slurm, ray, monitoring.",
        ),
    },
    "Help": {
        "help": ("launchyard.launcher.cli.help", "show_help", "Explain a command, or a key of a recipe."),
        "keys": ("launchyard.launcher.cli.recipe.keys", "list_all", "List the keys of recipes and cluster files."),
        "version": ("launchyard.launcher.cli.help", "version", "Show the version."),
    },
    "Editors and shells": {
        "schema": ("launchyard.launcher.cli.schema", "schema", "Print the JSON Schema of recipes."),
        "completion": ("launchyard.launcher.cli.completion", "completion", "Print the completion script of a shell."),
    },
}
COMMANDS = {name: place for group in GROUPS.values() for name, place in group.items()}
FAST_DEV_RUN = "--fast-dev-run"
OUTPUT = "--output"
LAUNCH = "launch RECIPE"  # the default command: a name that cannot be typed as one word
EXAMPLES = (
    ("launch --local", "train the bundled quickstart on this machine"),
    ("launch pretrain/pythia-160m --dry-run data.source=DIR", "see the plan, start nothing"),
    ("launch my.yaml --fast-dev-run", "check a recipe in a few steps, validation and checkpoint too"),
    ("launch finetune MODEL --data rows.jsonl", "LoRA on rows of instructions"),
    ("launch my.yaml --gpus-per-node 4 train.max_steps=5000", "a recipe of your own, changed"),
    ("launch resume RUN", "go on with a run that stopped"),
)


class Commands(click.Group):
    """The table as a group; a first argument that is not one of its names is the recipe of a launch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == LAUNCH:
            return launch_recipe
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asked = not args and ctx.resilient_parsing  # completion of the very first word
        if not asked and (not args or args[0] not in (*COMMANDS, LAUNCH, "--help", "-h", "--version")):
            args = [LAUNCH, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("launch", "[RECIPE] [OPTIONS] [KEY=VALUE]...")
        formatter.write_usage("launch", "COMMAND [OPTIONS] ...", prefix="       ")
        formatter.write_paragraph()
        formatter.write_text(
            "Train a language model from a recipe, on this machine or a cluster, and live with the run. RECIPE is a "
            "file, a bundled name or a URL; KEY=VALUE changes one of its keys."
        )
        options = [
            found
            for param in launch_recipe.params
            if param.name != "arguments" and (found := param.get_help_record(ctx))
        ]
        with formatter.section("Options"):
            formatter.write_dl([*options, ("--version", "Show the version."), ("-h, --help", "Show this message.")])
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, _, text) in commands.items()])
        with formatter.section("Examples"):
            for command, text in EXAMPLES:
                formatter.write(f"  {command}\n      {text}\n")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Commands and recipes, without importing a command; options are those of a launch."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return [
                *click.Command.shell_complete(self, ctx, incomplete),
                *launch_recipe.shell_complete(ctx, incomplete),
            ]
        names = [CompletionItem(name, help=place[2]) for name, place in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *recipe_names(incomplete)]


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from launchyard.launcher.cli.help import version

    ctx.invoke(version)
    ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version)
def cli() -> None:
    """Train language models and live with the runs."""


def _show_help(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo((ctx.parent or ctx).get_help())
        ctx.exit()


@click.command(LAUNCH, add_help_option=False)
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...", shell_complete=complete_recipe)
@click.option("--cluster", metavar="NAME|FILE", shell_complete=complete_cluster, help="Where to run.  [default: local]")
@click.option("--local", is_flag=True, help="Run on this machine; without a RECIPE, the bundled quickstart.")
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="Machines.")
@click.option("--gpus-per-node", type=click.IntRange(min=0), metavar="N", help="GPUs of each; default: all.")
@click.option("--name", metavar="NAME", help="Name of the run.  [default: the recipe's]")
@click.option("--run-url", metavar="URL", help="Where its run directory goes.  [default: runs/ID]")
@click.option("--dry-run", is_flag=True, help="Print what would happen; create and start nothing.")
@click.option(
    "--output",
    type=click.Choice(("kuberay", "kuberay-job")),
    expose_value=False,
    callback=lambda ctx, _param, value: ctx.meta.update({OUTPUT: value}),
    help="With --dry-run: print a RayCluster for it, or a RayJob.",
)
@click.option(
    FAST_DEV_RUN,
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, _param, value: ctx.meta.update({FAST_DEV_RUN: value}),
    help="Check all of it in a few steps, here; keep nothing.",
)
@click.option(
    "--detach/--follow", "detach", default=None, help="Return at once, or watch.  [default: watch local runs]"
)
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
@click.option("-h", "--help", is_flag=True, is_eager=True, expose_value=False, hidden=True, callback=_show_help)
@click.pass_context
def launch_recipe(
    ctx: click.Context,
    *,
    arguments: tuple[str, ...],
    cluster: str | None,
    local: bool,
    nodes: int | None,
    gpus_per_node: int | None,
    name: str | None,
    run_url: str | None,
    dry_run: bool,
    detach: bool | None,
    as_json: bool,
) -> int:
    """Launch a recipe."""
    if not arguments and not local and cluster is None:
        click.echo((ctx.parent or ctx).get_help())
        return EXIT_USER
    from launchyard.launcher.backends.section import FIRST  # loads pydantic, and --help needs none
    from launchyard.launcher.cli.typos import refuse_other_words

    if local and cluster not in (None, FIRST):
        raise click.UsageError(f"--local is --cluster local; it cannot go with --cluster {cluster}")
    if as_json and detach is False:
        raise click.UsageError("--json prints one object and returns; it cannot go with --follow")
    recipe, pairs = split_arguments(arguments)
    if recipe is None and not local:
        raise click.UsageError("which recipe? Name one, or use --local for the bundled quickstart")
    if recipe is not None:
        refuse_other_words(recipe, pairs, commands=COMMANDS)
    from launchyard.launcher.recipe.load import parse_overrides
    from launchyard.launcher.submit.launch import Request, launch
    from launchyard.launcher.watch.follow import follow

    flags = {"resources.nodes": nodes, "resources.gpus_per_node": gpus_per_node, "name": name}
    overrides = parse_overrides(pairs) | {key: value for key, value in flags.items() if value is not None}
    request = Request(recipe or "quickstart", cluster or FIRST, overrides, run_url)
    if form := ctx.meta.get(OUTPUT):
        from launchyard.launcher.cli.recipe.manifest import print_manifest, refuse_without_dry_run

        refuse_without_dry_run(dry_run=dry_run, as_json=as_json, fast=bool(ctx.meta.get(FAST_DEV_RUN)))
        return print_manifest(request, form)
    if ctx.meta.get(FAST_DEV_RUN):
        from launchyard.launcher.prove.miniature import fast_dev_run

        refuse_beside_fast(request, nodes=nodes, detach=detach)
        return fast_dev_run(request, dry_run=dry_run, as_json=as_json, follow=follow)
    return launch(request, dry_run=dry_run, detach=detach, as_json=as_json, follow=follow)


def refuse_beside_fast(request: Request, *, nodes: int | None, detach: bool | None) -> None:
    """Options that mean another place than a folder of this machine that is thrown away, or another end."""
    from launchyard.launcher.backends.section import FIRST

    given = {
        f"--cluster {request.cluster}": request.cluster != FIRST,
        f"--nodes {nodes}": (nodes or 1) > 1,
        "--run-url": request.run_url is not None,
        "--detach": detach is True,
    }
    if wrong := [option for option, is_given in given.items() if is_given]:
        raise click.UsageError(
            f"{FAST_DEV_RUN} checks a recipe on this machine, and keeps nothing; it cannot go with {', '.join(wrong)}"
        )


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """RECIPE, if the first argument is one, and the KEY=VALUE arguments."""
    if arguments and ("=" not in arguments[0] or os.path.isfile(arguments[0])):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point: errors become `error:` and `hint:` on stderr and an exit code, never a traceback."""
    arguments = list(sys.argv[1:] if args is None else args)
    open_closed_streams()
    prepare_completion()
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        refuse_other_bytes(arguments)
        code = cli.main(arguments, prog_name="launch", standalone_mode=False)
        sys.stdout.flush()
    except click.NoSuchOption as error:
        from launchyard.launcher.cli.typos import explain_option

        code = report(explain_option(error, arguments))
    except (LaunchError, click.ClickException, OSError, DamagedError) as error:
        if debug:
            raise
        code = report(error)
    except ModuleNotFoundError as error:
        from launchyard.host.packages import extra_of, install_command

        extra = extra_of(error.name)
        if debug or extra is None:  # then it is a fault of ours
            raise
        what = f"this needs the package {error.name}, which {sys.executable} does not have"
        code = report(UserError(what, hint=install_command(extra)))
    except (KeyboardInterrupt, click.Abort) as error:
        started = error.__cause__  # click makes an Abort of it
        click.echo(f"interrupted: {started}" if isinstance(started, StartedError) else "interrupted", err=True)
        code = EXIT_INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


def refuse_other_bytes(arguments: Sequence[str]) -> None:
    """UserError for a word that is not UTF-8: it could neither be written to a file of a run, nor tokenized."""
    for word in arguments:
        if not is_text(word):
            raise UserError(f"{plain_name(word)}: this is not UTF-8, and nothing else can be read or written here")


def open_closed_streams() -> None:
    """A caller may have closed the standard streams (`>&-`): nothing else may get their numbers, nor fail to print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(opened, True)
        setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def report(error: Exception) -> int:
    """Print an error for people; its exit code."""
    hint = getattr(error, "hint", None)
    code = EXIT_FAILED
    if isinstance(error, LaunchError):
        code = error.exit_code
    elif isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "launch"
        code = EXIT_USER
        hint = f"{path.removesuffix(f' {LAUNCH}')} --help"
    elif isinstance(error, BrokenPipeError):  # `launch … | head`
        sys.stdout = None
        return code
    elif isinstance(error, OSError):
        from launchyard.host.folders import folder_advice

        hint = folder_advice(error.filename)
    problems = error.problems if isinstance(error, RecipeErrors) else [message(error)]
    if not hint and _is_nowhere():
        hint = "go to another folder with cd: the working directory does not exist any more"
        if isinstance(error, FileNotFoundError) and not error.filename:  # of os.getcwd
            problems = ["the working directory does not exist any more"]
    for problem in problems:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {problem}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {hint}", err=True)
    return code


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def message(error: Exception) -> str:
    if isinstance(error, OSError):
        return os_error_text(error)
    return error.format_message() if isinstance(error, click.ClickException) else str(error)


if __name__ == "__main__":
    main()
