"""`launch generate`. torch is imported in a body only."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import click

from launchyard.errors import RecipeErrors, UserError
from launchyard.launcher.cli.completion import complete_model
from launchyard.launcher.cli.weights.certainty import RESET, coloured
from launchyard.launcher.cli.weights.find import MODEL_HELP, find_model, weights_errors
from launchyard.launcher.cli.weights.ranks import as_rank, device_names, has_ranks_to_start, ranks_option, run_in_ranks
from launchyard.launcher.cli.weights.sampling_options import (
    SAMPLING_NAMES,
    draft_options,
    follow_config,
    generation_config_option,
    graphs_option,
    open_drafter,
    refuse_alone,
    refuse_together,
    rules_in_words,
    sampling_options,
    take_sampling,
    weights_option,
)
from launchyard.launcher.format import json_text
from launchyard.launcher.watch.texts import OnTexts, texts_bar
from launchyard.launcher.watch.transfer import transfer_bar

if TYPE_CHECKING:
    from launchyard.launcher.cli.weights.prompt_rows import PlacedRow
    from launchyard.model.loaded import LoadedModel, SamplingOptions
    from launchyard.model.serve.engine import Engine
    from launchyard.model.serve.requests import Drafter, Request
    from launchyard.model.serve.text import GrowingText

    Written = Iterator[tuple[int, str, GrowingText]]  # number, piece, text: as LoadedModel.write gives them

_Made = TypeVar("_Made")
_N = click.IntRange(min=1)
_EXCLUDE = {
    "prompt": ("prompts",),
    "prompts": ("as_json", "num_samples", "colorize_tokens", "beam_width"),
    "colorize_tokens": ("as_json",),
    "draft": ("lookup",),
    "beam_width": (
        *SAMPLING_NAMES, "generation_config", "seed", "slide", "num_samples", "draft",
        "lookup", "slots", "colorize_tokens",
    ),
}  # fmt: skip
_NEED = {
    "guesses": ("draft", "lookup"),
    "candidates": ("beam_width",),
    "length_penalty": ("beam_width",),
    "slots": ("prompts", "num_samples"),
}


@dataclass(frozen=True)
class _Options:
    """As they were typed."""

    model: str
    prompt: str | None
    prompts: str | None
    max_new_tokens: int
    stop: tuple[str, ...]
    seed: int
    context_length: int | None
    slide: bool
    num_samples: int | None
    slots: int
    chat: bool
    system: str | None
    beam_width: int | None
    candidates: int
    length_penalty: float
    draft: str | None
    lookup: bool
    guesses: int
    colorize_tokens: bool
    device: str
    weights: str
    no_graphs: bool
    generation_config: str
    as_json: bool

    @property
    def is_chat(self) -> bool:
        return self.chat or self.system is not None

    @property
    def shows_colours(self) -> bool:
        return self.colorize_tokens and sys.stdout.isatty()


@click.command(epilog=MODEL_HELP)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.option("--prompt", metavar="TEXT", help="What the text starts with; '' for a new text; -: standard input.")
@click.option("--prompts", metavar="FILE", help="A prompt a line, in JSON; prints a line of JSON for each; -: stdin.")
@click.option("--max-new-tokens", default=128, show_default=True, type=_N, metavar="N")
@sampling_options
@generation_config_option
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given again.")
@click.option("--seed", type=int, metavar="N", help="The same seed writes the same text; default: a new one.")
@click.option("--context-length", type=click.IntRange(min=2), metavar="N", help="End where the text has N tokens.")
@click.option("--slide", is_flag=True, help="Where the context is full, go on with its last half.")
@click.option("--num-samples", type=_N, metavar="N", help="Write N texts, the next with the next seed.")
@click.option("--slots", default=8, show_default=True, type=click.IntRange(1, 512), metavar="N", help="Texts at once.")
@click.option("--chat", is_flag=True, help="Ask by the model's chat template, and print the answer only.")
@click.option("--system", metavar="TEXT", help="With this system message; implies --chat.")
@click.option("--beam-width", type=_N, metavar="W", help="Search the likeliest text, W beginnings at a time.")
@click.option("--candidates", default=1, show_default=True, type=_N, metavar="K", help="Print the K best texts of it.")
@click.option(
    "--length-penalty", default=1.0, show_default=True, metavar="P", help="Rank by log-probability / tokens ** P."
)
@draft_options
@click.option("--colorize-tokens", is_flag=True, help="Colour each token by how certain it was, from red to green.")
@click.option(
    "--device",
    "--devices",
    default="auto",
    show_default=True,
    metavar="NAME[,NAME]",
    help="auto, cpu, cuda or cuda:N; several with commas get some layers each.",
)
@ranks_option
@weights_option
@graphs_option
@click.option("--json", "as_json", is_flag=True, help="Print the text and facts about it as JSON.")
def generate(ranks: int | None, **given: object) -> int:
    """Write text with a model."""
    ctx = click.get_current_context()
    refuse_together(ctx, _EXCLUDE)
    refuse_alone(ctx, _NEED)
    if given["prompt"] is None and given["prompts"] is None:
        raise click.UsageError("give --prompt TEXT, or --prompts FILE for many", ctx)
    width = given["beam_width"]
    if isinstance(width, int) and width < given["candidates"]:  # type: ignore[operator]  # an int of click
        raise click.UsageError(f"--candidates {given['candidates']} is more than --beam-width {width}", ctx)
    if given["seed"] is None:
        given["seed"] = secrets.randbits(31)
    if has_ranks_to_start(ranks):
        return run_in_ranks(ranks or 1, find_model(str(given["model"])), sys.argv[1:])
    with as_rank():
        _generate(given)
    return 0


def _generate(given: dict[str, object]) -> None:
    with weights_errors():
        sampling = take_sampling(given)
        options = _Options(**given)  # type: ignore[arg-type]  # click has checked them
        if options.prompts is not None:
            _answer_rows(options, sampling)
        elif options.beam_width is not None:
            _search(options, options.beam_width)
        else:
            _write(options, sampling)


def _load(name: str, options: _Options) -> LoadedModel:
    from launchyard.model.parallel.ranks import ranks_here
    from launchyard.model.weights.load import load

    with transfer_bar(f"read {name}", sys.stderr) as on_progress:
        return load(
            find_model(name),
            device=device_names(options.device),
            weights=options.weights,
            ranks=ranks_here(),
            graphs=False if options.no_graphs else None,
            on_progress=on_progress,
        )


def _drafter(options: _Options, model: LoadedModel) -> Drafter | None:
    draft = None if options.draft is None else _load(options.draft, options)
    return open_drafter(model, draft, lookup=options.lookup)


def _prompt(options: _Options) -> str:
    """As it was typed; from standard input without its last end of a line, which no one means."""
    assert options.prompt is not None
    from launchyard.launcher.cli.weights.prompt_rows import standard_input

    return options.prompt if options.prompt != "-" else standard_input().removesuffix("\n")


def _ids(options: _Options, model: LoadedModel, prompt: str) -> list[int]:
    if not options.is_chat:
        return model.encode(prompt)
    from launchyard.model.text.chat_template import chosen_template

    if chosen_template(model.tokenizer.companions) is None:
        raise UserError(
            f"{options.model} has no chat template, by which --chat would ask",
            hint="leave --chat and --system away, or put a chat_template.jinja beside its tokenizer",
        )
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return model.chat.ids_for_generation([*system, {"role": "user", "content": prompt}])


# -- one prompt ------------------------------------------------------------------------------------------------------
def _write(options: _Options, sampling: SamplingOptions) -> None:
    from launchyard.model.serve.text import write_texts

    model = _load(options.model, options)
    rules = follow_config(model, options.generation_config, sampling)
    drafter = _drafter(options, model)
    prompt = _prompt(options)
    ids = _ids(options, model, prompt)
    n = options.num_samples or 1
    requests = [
        model.request(
            ids,
            number,
            **sampling,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed,
            slides=options.slide,
            drafter=drafter,
            n_guesses=options.guesses,
            n_alternatives=0 if options.shows_colours else None,
        )
        for number in range(n)
    ]
    engine = model.engine_for(requests, n_slots=options.slots, context_length=options.context_length)
    written = write_texts(engine, model.tokenizer, [(request, options.stop) for request in requests])
    began = time.perf_counter()
    texts: dict[int, GrowingText] = {}
    pieces = [""] * n
    shown = written if options.as_json else _echoed(options, prompt, n, written)
    for number, piece, text in shown:
        texts[number] = text
        pieces[number] += piece
    facts = _facts(model, [texts[number] for number in range(n)], time.perf_counter() - began, engine)
    facts["generation_config"] = rules
    if options.as_json:
        _print_json(options, prompt, pieces, [texts[number] for number in range(n)], facts)
    else:
        _say_facts(options, [texts[number] for number in range(n)], facts)
        _say_weights(model)
        _say_rules(rules)


def _facts(model: LoadedModel, texts: Sequence[GrowingText], seconds: float, engine: Engine) -> dict[str, object]:
    n_new = sum(text.n_new for text in texts)
    facts: dict[str, object] = {
        "n_prompt": len(texts[0].generation.request.prompt),
        "n_new": n_new,
        "device": str(model.device),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(n_new / seconds, 1),
        "decoding": engine.decoding.words or None,
        "model": model.source.folder,
        "weights": model.matrices.choice.name if model.matrices else None,
    }
    if texts[0].generation.request.drafter is not None:
        facts["n_guessed"] = sum(text.generation.n_guessed for text in texts)
        facts["n_guessed_right"] = sum(text.generation.n_guessed_right for text in texts)
    return facts


def _print_json(
    options: _Options, prompt: str, pieces: Sequence[str], texts: Sequence[GrowingText], facts: dict[str, object]
) -> None:
    each = [
        {"text": piece, "ended": text.ended, "n_new": text.n_new, "seed": text.generation.request.seed}
        for piece, text in zip(pieces, texts, strict=True)
    ]
    own = {"samples": each} if options.num_samples is not None else each[0]
    click.echo(json_text({"prompt": prompt, **own, **facts}))


def _say_weights(model: LoadedModel) -> None:
    if model.matrices is not None:
        click.echo(model.matrices.words(), err=True)


def _say_rules(rules: Mapping[str, object]) -> None:
    if rules:
        click.echo(rules_in_words(rules), err=True)


def _say_facts(options: _Options, texts: Sequence[GrowingText], facts: dict[str, object]) -> None:
    line = "{n_new} tokens at {tokens_per_second}/s on {device}".format(**facts)
    line += f" {facts['decoding']}" if facts["decoding"] else ""
    if len(texts) == 1:
        line += f", ended by {texts[0].ended}, seed {options.seed}"
    if facts.get("n_guessed"):
        line += ", {n_guessed_right} of {n_guessed} guesses right".format(**facts)
    click.echo(f"\n{line}", err=True)


def _echoed(options: _Options, prompt: str, n: int, written: Written) -> Written:
    """Print texts while they are written, one behind the other."""
    _open_text(options, prompt, 0)  # now: a long prompt takes a while to be read
    try:
        for number, piece, text in in_order(coloured(written) if options.shows_colours else written):
            click.echo(piece, nl=False)
            if text.ended is not None:
                click.echo()
                if number + 1 < n:
                    _open_text(options, prompt, number + 1)
            yield number, piece, text
    finally:
        if options.shows_colours:
            click.echo(RESET, nl=False)


def _open_text(options: _Options, prompt: str, number: int) -> None:
    if options.num_samples is not None:
        click.echo(f"\nsample {number + 1} of {options.num_samples}, seed {options.seed + number}:", err=True)
    if not options.is_chat:
        click.echo(prompt, nl=False)


def in_order(written: Written) -> Written:
    """The same, the pieces of a text behind all of the text before it; those that had to wait are one."""
    held: dict[int, str] = {}
    texts: dict[int, GrowingText] = {}
    current = 0
    for number, piece, text in written:
        held[number] = held.get(number, "") + piece
        texts[number] = text
        while current in held:
            yield current, held.pop(current), texts[current]
            if texts[current].ended is None:
                break
            current += 1


# -- beam search -----------------------------------------------------------------------------------------------------
def _search(options: _Options, width: int) -> None:
    from launchyard.model.serve.beam import BeamSearch

    model = _load(options.model, options)
    prompt = _prompt(options)
    ids = _ids(options, model, prompt)
    search = BeamSearch(
        width=width,
        n=options.candidates,
        max_new_tokens=options.max_new_tokens,
        stop_ids=model.stop_ids,
        length_penalty=options.length_penalty,
        context_length=options.context_length,
    )
    began = time.perf_counter()
    found = model.search_beams(ids, search, options.stop)
    seconds = time.perf_counter() - began
    facts = {
        "n_prompt": len(ids),
        "device": str(model.device),
        "seconds": round(seconds, 3),
        "model": model.source.folder,
        "weights": model.matrices.choice.name if model.matrices else None,
    }
    if options.as_json:
        candidates = [{"text": text, "score": score} for text, score in found]
        click.echo(json_text({"prompt": prompt, "candidates": candidates, **facts}))
        return
    for number, (text, score) in enumerate(found, 1):
        click.echo(f"\ncandidate {number} of {len(found)}, score {score:.4f}:", err=True)
        click.echo(text if options.is_chat else prompt + text)
    click.echo(f"\n{len(found)} of {width} beams in {seconds:.1f}s on {model.device}", err=True)
    _say_weights(model)


# -- a file of prompts -----------------------------------------------------------------------------------------------
def _answer_rows(options: _Options, sampling: SamplingOptions) -> None:
    from launchyard.launcher.cli.weights.prompt_rows import read_prompt_rows
    from launchyard.model.serve.text import write_texts

    assert options.prompts is not None
    rows = read_prompt_rows(options.prompts, sampling)
    model = _load(options.model, options)
    _say_rules(follow_config(model, options.generation_config, sampling))
    drafter = _drafter(options, model)
    requests = each_row(rows, lambda number: _row_request(options, model, rows[number], number, drafter))
    engine = model.engine_for(requests, n_slots=options.slots, context_length=options.context_length)
    each_row(rows, lambda number: engine.check(requests[number]))
    written = write_texts(
        engine, model.tokenizer, [(r, _stops(options, p)) for r, p in zip(requests, rows, strict=True)]
    )
    with texts_bar(len(rows), sys.stderr) as on_texts:
        pieces: dict[int, list[str]] = {}
        for number, piece, text in in_order(_counted(written, on_texts)):
            pieces.setdefault(number, []).append(piece)
            if text.ended is not None:
                click.echo(_row_json(rows[number], "".join(pieces.pop(number)), text))


def each_row(rows: Sequence[PlacedRow], make: Callable[[int], _Made]) -> list[_Made]:
    """What is made of each row, by its number; RecipeErrors names all rows of which nothing can be made."""
    made = []
    problems = []
    for number, placed in enumerate(rows):
        try:
            made.append(make(number))
        except ValueError as error:
            problems.append(f"{placed.where}: {error}")
    if problems:
        raise RecipeErrors(problems)
    return made


def _row_request(
    options: _Options, model: LoadedModel, placed: PlacedRow, number: int, drafter: Drafter | None
) -> Request:
    return model.request(
        _ids(options, model, placed.row.prompt),
        **placed.sampling,
        max_new_tokens=placed.row.max_new_tokens or options.max_new_tokens,
        seed=options.seed + number if placed.row.seed is None else placed.row.seed,
        slides=options.slide,
        drafter=drafter,
        n_guesses=options.guesses,
    )


def _stops(options: _Options, placed: PlacedRow) -> list[str]:
    own = placed.row.stop
    return [own] if isinstance(own, str) else list(options.stop if own is None else own)


def _counted(written: Written, on_texts: OnTexts) -> Written:
    done = 0
    tokens = 0
    for number, piece, text in written:
        if text.ended is not None:
            done += 1
            tokens += text.n_new
            on_texts(done, tokens)
        yield number, piece, text


def _row_json(placed: PlacedRow, written: str, text: GrowingText) -> str:
    request = text.generation.request
    row = {"id": placed.row.id} if "id" in placed.fields else {}
    row |= {
        "prompt": placed.row.prompt,
        "text": written,
        "ended": text.ended,
        "n_prompt": len(request.prompt),
        "n_new": text.n_new,
        "seed": request.seed,
    }
    return json.dumps({**row, **{name: value for name, value in placed.fields.items() if name not in row}})
