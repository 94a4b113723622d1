"""`launch generate`. torch is imported in a body only."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import click

from launchyard.launcher.cli.completion import complete_model
from launchyard.launcher.cli.weights.find import MODEL_HELP, find_model, weights_errors
from launchyard.launcher.format import json_text
from launchyard.launcher.watch.transfer import transfer_bar


@click.command(epilog=MODEL_HELP)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.option("--prompt", required=True, metavar="TEXT", help="What the text starts with; '' for a new text.")
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(min=1), metavar="N")
@click.option("--temperature", default=0.8, show_default=True, metavar="T", help="0: always the likeliest token.")
@click.option("--top-k", default=50, show_default=True, metavar="K", help="Draw from the K likeliest; 0: from all.")
@click.option("--top-p", type=float, metavar="P", help="Draw from the fewest tokens that together reach P.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given again.")
@click.option("--seed", type=int, metavar="N", help="The same seed writes the same text; default: a new one.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print the text and facts about it as JSON.")
def generate(model: str, prompt: str, seed: int | None, device: str, as_json: bool, **options: Any) -> None:
    """Write text with a model."""
    seed = secrets.randbits(31) if seed is None else seed
    stop = list(options.pop("stop"))
    top_k = options.pop("top_k") or None
    with weights_errors():
        from launchyard.model.weights.load import load

        with transfer_bar(f"read {model}", sys.stderr) as on_progress:
            loaded = load(find_model(model), device=device, on_progress=on_progress)
        writing = loaded.generate(prompt, stop=stop, top_k=top_k, seed=seed, stream=True, **options)
        began = time.perf_counter()
        pieces = list(writing) if as_json else list(_echoed(prompt, writing))
        seconds = time.perf_counter() - began
    facts = {
        "n_prompt": writing.n_prompt,
        "n_new": writing.n_new,
        "ended": writing.ended,
        "seed": seed,
        "device": str(loaded.device),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(writing.n_new / seconds, 1),
        "model": loaded.source.folder,
    }
    if as_json:
        click.echo(json_text({"prompt": prompt, "text": "".join(pieces), **facts}))
    else:
        click.echo(
            "\n{n_new} tokens at {tokens_per_second}/s on {device}, ended by {ended}, seed {seed}".format(**facts),
            err=True,
        )


def _echoed(prompt: str, pieces: Iterable[str]) -> Iterator[str]:
    """Print the text while it is written."""
    click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
        yield piece
    click.echo()
