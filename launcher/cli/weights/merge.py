"""`launch merge`: an adapter and its base as one Hugging Face folder. torch is imported in a body only."""

from __future__ import annotations

import sys

import click

from launchyard.errors import UserError
from launchyard.launcher.cli.completion import complete_model
from launchyard.launcher.cli.paths import path_or_url
from launchyard.launcher.cli.weights.export import DTYPES
from launchyard.launcher.cli.weights.find import MODEL_HELP, find_model, weights_errors
from launchyard.launcher.format import json_text
from launchyard.launcher.watch.transfer import transfer_bar


@click.command(epilog=MODEL_HELP)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.option("--out", type=path_or_url, required=True, metavar="DIR", help="Folder or URL to write, new or empty.")
@click.option("--base", metavar="MODEL", help="Base instead of the one that the adapter names.")
@click.option("--dtype", type=click.Choice(DTYPES["hf"]), help="Default: that of the base; of a run fp32.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def merge(model: str, out: str, base: str | None, dtype: str | None, as_json: bool) -> None:
    """Write a run with low-rank updates, a PEFT folder or BASE+ADAPTER as a model of its own.

    Adds in fp32, rounds once to the type of the base, and says by how much at most. The base and the adapter stay as
    they are. Over a quantised base it takes the values that were trained over; --base takes others.
    """
    with weights_errors():
        import torch

        from launchyard.model.weights.adapters.merge import Rounded, form_of_base, open_adapted
        from launchyard.model.weights.hf_export import save_hf
        from launchyard.storage.files import listdir

        source, weights = open_adapted(find_model(model), find_model(base) if base else None)
        if listdir(out):
            raise UserError(f"--out {out} is not empty; name a new folder, so that nothing is overwritten")
        chosen: torch.dtype = getattr(torch, dtype) if dtype else weights.base.dtype("embed.weight")
        rounded = Rounded(weights, chosen)
        with transfer_bar(f"merge to {out}", sys.stderr) as on_progress:
            save_hf(rounded, weights.config, out, companions=source.companions(), dtype=chosen, on_progress=on_progress)
    facts = {
        "out": out,
        "dtype": str(chosen).removeprefix("torch."),
        "largest_difference": rounded.largest_difference,
        "base_form": form_of_base(weights),
        "untied": weights.base.config.tie_embeddings and not weights.config.tie_embeddings,
    }
    if as_json:
        click.echo(json_text(facts))
        return
    click.echo(f"{out}: {facts['dtype']}, within {rounded.largest_difference:.3g} of base + adapter in fp32")
    if facts["base_form"]:
        values = f"over the base's values in {facts['base_form']}, as trained"
        click.echo(f"{values}; --base BASE takes the plain ones", err=True)
    if facts["untied"]:
        click.echo("head and table differ now, and are two tensors", err=True)
