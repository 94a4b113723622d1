"""`launch models`: the presets, and what a model of a size takes. Reads configs; needs no torch."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from launchyard.errors import UserError, user_errors
from launchyard.launcher.format import count, duration, json_text, size, table

if TYPE_CHECKING:
    from launchyard.model.config import ModelConfig
    from launchyard.model.precision import Precision

_Facts = dict[str, Any]  # as JSON
_Row = tuple[str, ...]
EPILOG = (
    "NAME is a preset, a part of a name or a family (which lists), a Hugging Face folder or a recipe's file. FLOPs are "
    "by two estimates: the matrix products one by one, attention whole, and 6 N + 12 L d s (PaLM, appendix B). Tokens: "
    "20 a parameter (Chinchilla, Hoffmann et al. 2022). Peaks of devices: dense bf16, of the makers' data sheets."
)


@click.command(epilog=EPILOG)
@click.argument("name", required=False)
@click.option("--seq-len", type=click.IntRange(min=1), metavar="N", help="Tokens of a sequence; default: up to 2048.")
@click.option("--micro-batch-size", default=1, show_default=True, type=click.IntRange(min=1), metavar="N")
@click.option("--device", default="H100", show_default=True, metavar="NAME", help="Device that would train it.")
@click.option("--devices", default=8, show_default=True, type=click.IntRange(min=1), metavar="N")
@click.option(
    "--mfu", default=0.4, show_default=True, type=click.FloatRange(0, 1, min_open=True), help="Share of their peak."
)
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
def models(name: str | None, as_json: bool, **options: Any) -> None:
    """List the model shapes that recipes can name, or say what one of them takes."""
    from launchyard.model.zoo import preset, presets

    known = presets()
    if name is not None and name not in known and not _is_place(name):
        known = {key: config for key, config in known.items() if name.lower() in key or name.lower() in config.family}
        if not known:
            with user_errors():
                preset(name)
    elif name is not None:
        config, recipe_len = (known[name], None) if name in known else _of_place(name)
        options["seq_len"] = options["seq_len"] or recipe_len or min(2048, config.max_seq_len)
        _describe(name, config, as_json=as_json, **options)
        return
    _list(known, as_json=as_json)


def _list(known: dict[str, ModelConfig], *, as_json: bool) -> None:
    rows = [_row(name, config) for name, config in known.items()]
    if as_json:
        click.echo(json_text(rows))
        return
    cells = [[str(row["name"]), count(row["n_params"]), *map(str, list(row.values())[2:])] for row in rows]
    if sys.stdout.isatty():
        header = ["name", "parameters", *list(rows[0])[2:]]
        click.echo("\n".join(table(cells, header)))
    else:  # one a line, for cut, grep and xargs
        click.echo("\n".join("\t".join(row) for row in cells))


def _is_place(name: str) -> bool:
    return os.path.isdir(name) or name.endswith((".yaml", ".yml"))


def _of_place(name: str) -> tuple[ModelConfig, int | None]:
    """The model of a Hugging Face folder or of a recipe, and the length of the recipe's sequences."""
    from launchyard.model import zoo

    if os.path.isdir(name):
        path = os.path.join(name, "config.json")
        try:
            with open(path, encoding="utf-8") as file:
                hf = json.load(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}", hint="name a Hugging Face folder or a preset") from error
        with user_errors():
            return zoo.config_from_hf(hf), None
    from launchyard.launcher.plan.planner import resolve_model
    from launchyard.launcher.recipe.load import load_recipe

    recipe = load_recipe(name).recipe
    config = resolve_model(recipe, None, None)
    if config is None:
        raise UserError(
            f"{name}: its model cannot be known without its data or weights", hint=f"launch {name} --dry-run plans it"
        )
    return config, recipe.data.seq_len


def _row(name: str, config: ModelConfig) -> _Facts:
    from launchyard.model.cost import n_params

    return {
        "name": name,
        "n_params": n_params(config),
        "family": config.family,
        "n_layers": config.n_layers,
        "dim": config.dim,
        "n_heads": config.n_heads,
        "max_seq_len": config.max_seq_len,
        "vocab_size": config.vocab_size,
    }


# -- one model ---------------------------------------------------------------------------------------------------------
def _describe(name: str, config: ModelConfig, *, as_json: bool, **options: Any) -> None:
    facts = facts_of(name, config, **options)
    if as_json:
        click.echo(json_text({**facts, "config": config.model_dump(mode="json")}))
        return
    lines = table([(key, str(value)) for key, value in _row(name, config).items()])
    for title, rows in _sections(facts, config):
        lines += ["", title, *(f"  {line}" for line in table(rows))]
    click.echo("\n".join(lines))


def facts_of(
    name: str,
    config: ModelConfig,
    *,
    seq_len: int,
    micro_batch_size: int = 1,
    device: str = "H100",
    devices: int = 8,
    mfu: float = 0.4,
) -> _Facts:
    """All numbers of a model as plain data; UserError for a device whose peak is not known."""
    from launchyard.model import cost
    from launchyard.model import devices as known

    peak = known.peak_flops(device)
    if peak is None:
        names = ", ".join(each for each, _ in known.PEAK_FLOPS)
        raise UserError(f"--device {device}: its peak is not known; there are {names}")
    forward = cost.forward_flops(config, seq_len)
    training = cost.flops_per_token(config, seq_len)
    tokens = cost.chinchilla_tokens(config)
    seconds = cost.training_seconds(training * tokens, peak=peak, mfu=mfu, n_devices=devices)
    return {
        **_row(name, config),
        "n_params_active": cost.n_params_active(config),
        "n_params_active_non_embedding": cost.n_params_active_non_embedding(config),
        "parts": cost.params_by_part(config),
        "tied": config.tie_embeddings,
        "ratios": {
            "dim_per_layer": round(config.dim / config.n_layers, 1),
            "dim_per_head": round(config.dim / config.n_heads, 1),
            "ffn_per_dim": round(config.ffn_dim / config.dim, 2),
        },
        "flops_per_token": {
            "seq_len": seq_len,
            "forward": sum(forward.values()),
            "forward_by_part": forward,
            "training_by_products": 3 * sum(forward.values()),
            "training_by_palm": training,
        },
        "chinchilla_tokens": tokens,
        "training": {
            "device": device,
            "devices": devices,
            "mfu": mfu,
            "peak_flops": peak,
            "flops": training * tokens,
            "days": round(seconds / 86400, 3),
        },
        **_memory(config, seq_len, micro_batch_size),
    }


def _memory(config: ModelConfig, seq_len: int, micro_batch_size: int) -> _Facts:
    from launchyard.model import memory

    precisions: tuple[Precision, ...] = ("fp32", "bf16")

    def trained(precision: Precision, checkpointing: bool) -> dict[str, int]:
        return memory.training_memory(
            config,
            micro_batch_size=micro_batch_size,
            seq_len=seq_len,
            shards=1,
            precision=precision,
            device="cuda",
            savings=memory.Savings(activation_checkpointing="full" if checkpointing else "none"),
        )

    both = {
        precision: {"plain": trained(precision, False), "activation_checkpointing": trained(precision, True)}
        for precision in precisions
    }
    length = config.max_seq_len
    served = {dtype: memory.serving_memory(config, dtype, length=length) for dtype in memory.SERVED_BYTES}
    return {
        "training_memory": {"micro_batch_size": micro_batch_size, "seq_len": seq_len, **both},
        "serving_memory": {"length": length, **served},
        "checkpoint_bytes": memory.checkpoint_bytes(config),
    }


def _sections(facts: _Facts, config: ModelConfig) -> list[tuple[str, list[_Row]]]:
    flops = facts["flops_per_token"]
    training = facts["training"]
    trained = facts["training_memory"]
    served = facts["serving_memory"]
    parts = [(part, f"{number:,}", f"{number / facts['n_params']:.1%}") for part, number in facts["parts"].items()]
    where = f"{training['devices']} {training['device']}"
    days = duration(training["days"] * 86400)
    return [
        ("parameters" + (", the head is the table" if facts["tied"] else ""), [*parts, *_totals(facts)]),
        ("shape", _ratios(facts["ratios"])),
        (
            f"FLOPs per token, sequences of {flops['seq_len']:,}",
            [
                ("forward", count(flops["forward"])),
                ("training, products one by one", count(flops["training_by_products"])),
                ("training, 6 N + 12 L d s", count(flops["training_by_palm"])),
            ],
        ),
        (
            f"{count(facts['chinchilla_tokens'])} tokens (20 a parameter: Hoffmann et al. 2022)",
            [
                ("FLOPs", f"{training['flops']:.3g}"),
                (
                    f"{where} at {training['mfu']:.0%} of {training['peak_flops']:.3g} a second",
                    days,
                ),
            ],
        ),
        (
            f"memory to train on one GPU, {trained['micro_batch_size']} sequence(s) of {trained['seq_len']:,} at once",
            _training_rows(trained),
        ),
        (
            f"memory to serve, a context of {served['length']:,}",
            [
                ("", "weights", "cache per token", "full cache", "together"),
                *(
                    (dtype, *(size(number) for number in found.values()))
                    for dtype, found in served.items()
                    if dtype != "length"
                ),
            ],
        ),
        ("checkpoint", [("weights and moments, fp32", size(facts["checkpoint_bytes"]))]),
        ("knobs", [(key, str(value)) for key, value in config.model_dump(mode="json", exclude_defaults=True).items()]),
    ]


def _totals(facts: _Facts) -> list[_Row]:
    rows: list[_Row] = [("all", f"{facts['n_params']:,}", "")]
    if facts["n_params_active"] != facts["n_params"]:
        rows.append(("active, a token", f"{facts['n_params_active']:,}", ""))
    return rows


def _ratios(ratios: dict[str, float]) -> list[_Row]:
    return [
        ("dim / layers", f"{ratios['dim_per_layer']:g}", "usually 50 to 100"),
        ("dim / heads", f"{ratios['dim_per_head']:g}", "usually 20 to 80; wide models have up to 128"),
        ("ffn_dim / dim", f"{ratios['ffn_per_dim']:g}", "usually 4, or 8/3 where it is gated"),
    ]


def _training_rows(trained: _Facts) -> list[_Row]:
    rows: list[_Row] = [("", "weights", "gradients", "optimizer", "activations", "peak")]
    for precision in ("fp32", "bf16"):
        for key, label in (("plain", ""), ("activation_checkpointing", ", checkpointing")):
            rows.append((precision + label, *(size(number) for number in trained[precision][key].values())))
    return rows
