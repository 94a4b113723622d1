"""The estimate of memory against storages that are alive while a model trains."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from launchyard.model.adapt.attach import attach
from launchyard.model.adapter import Adapter
from launchyard.model.config import LatentAttention, ModelConfig, MoE
from launchyard.model.cost import n_params
from launchyard.model.memory import (
    LOGIT_CHUNK_BYTES,
    Checkpointing,
    Savings,
    activation_elements,
    adapter_elements,
    serving_memory,
    training_memory,
)
from launchyard.model.network.kv_cache import Cache
from launchyard.model.network.transformer import Transformer
from launchyard.model.zoo import preset
from tests.model.live_bytes import trained_peak
from tests.support.tiny_models import llama, neox, random_model, random_tokens

SMALL: dict[str, object] = {
    "dim": 64, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1, "head_dim": 32, "ffn_dim": 192, "vocab_size": 500,
    "padded_vocab_size": 512,
}  # fmt: skip
EXPERTS = MoE(n_experts=8, top_k=2, ffn_dim=64, normalize=True)
LATENT = LatentAttention(kv_rank=32, nope_dim=16, rope_dim=8, v_dim=16)


def small(name: str, **knobs: object) -> ModelConfig:
    """A preset's knobs in a small size."""
    return ModelConfig.model_validate({**preset(name).model_dump(), **SMALL, **knobs})


SHAPES = {
    "pythia": small("pythia-70m", n_kv_heads=2, head_dim=32),
    "smollm2": small("smollm2-135m"),
    "smollm2-wide-table": small("smollm2-135m", vocab_size=20_000, padded_vocab_size=20_000, n_layers=1),
    "qwen3-moe": small("qwen3-30b-a3b", moe=EXPERTS),
    "gemma-3": small("gemma-3-1b", window=32),
    "gemma-2": small("gemma-2-2b", window=32),
    "bloom": small("bloom-560m", n_kv_heads=2),
    "deepseek": small("deepseek-v2-lite", n_kv_heads=2, moe=None, latent_attention=LATENT),
}


@pytest.mark.parametrize("n_micro_batches", [1, 2])
@pytest.mark.parametrize("checkpointing", [("none", 1), ("full", 1), ("full", 2), ("op", 1)])
@pytest.mark.parametrize("name", SHAPES)
def test_the_estimate_is_within_5_percent_of_the_peak(
    name: str, checkpointing: tuple[Checkpointing, int], n_micro_batches: int
) -> None:
    config = SHAPES[name]
    sizes = {"micro_batch_size": 4, "seq_len": 64, "savings": Savings(*checkpointing)}
    peak = trained_peak(config, **sizes, n_micro_batches=n_micro_batches)
    options = {"shards": 1, "precision": "fp32", "device": "cpu", "grad_accum_steps": n_micro_batches}
    assert training_memory(config, **sizes, **options)["total"] == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("kind", "name"), [("lora", "pythia"), ("lora", "smollm2"), ("qlora", "smollm2")])
def test_so_is_that_of_low_rank_updates(kind: Literal["lora", "qlora"], name: str, checkpointing: bool) -> None:
    adapter = Adapter(kind=kind, r=4)
    sizes = {"micro_batch_size": 4, "seq_len": 64, "savings": Savings("full" if checkpointing else "none")}
    peak = trained_peak(SHAPES[name], **sizes, adapter=adapter)
    options = {"shards": 1, "precision": "fp32", "device": "cpu", "adapter": adapter}
    assert training_memory(SHAPES[name], **sizes, **options)["total"] == pytest.approx(peak, rel=0.05)


def kept_bytes(model: Transformer, tokens: Tensor) -> int:
    """Bytes that autograd keeps of the blocks' forward, weights and tables left out, each storage once."""
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    told = model.places(tokens.shape[1])
    ours |= {table.untyped_storage().data_ptr() for places in told for table in places.turn or ()}
    x = model.embed(tokens)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for block, places in zip(model.blocks, told, strict=True):
            x = block(x, places.turn, places.mask, places.far)
    return sum(found.values())


@pytest.mark.parametrize(
    "config",
    [
        neox(dim=1024, head_dim=8, n_heads=1, n_kv_heads=1, ffn_dim=8, n_layers=3),
        neox(dim=1024, head_dim=8, n_heads=1, n_kv_heads=1, ffn_dim=8, n_layers=3, parallel_residual=False),
        llama(dim=1024, head_dim=8, n_heads=1, n_kv_heads=1, ffn_dim=8, n_layers=3),
    ],
    ids=["neox", "neox-sequential", "llama"],
)
def test_norms_keep_what_is_counted(config: ModelConfig) -> None:
    """Next to such a wide stream attention and MLP are nothing: all that is kept belongs to the norms."""
    model, tokens = random_model(config), random_tokens(config, 2, 32)
    estimate = 4 * tokens.numel() * config.n_layers * activation_elements(config, 0, 32)
    assert estimate / kept_bytes(model.train(), tokens) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["smollm2", "deepseek"])
@pytest.mark.parametrize("kind", ["llama-adapter", "llama-adapter-v2"])
def test_prompts_and_scales_keep_what_is_counted(name: str, kind: str) -> None:
    config = SHAPES[name]
    adapter = Adapter.model_validate({"kind": kind, "prompt_tokens": 1, "prompt_layers": 2})
    tokens = random_tokens(config, 4, 64)
    model = random_model(config).train()
    before = kept_bytes(model, tokens)
    attach(model, config, adapter)
    expected = sum(adapter_elements(config, layer, adapter) for layer in range(config.n_layers))
    assert (kept_bytes(model, tokens) - before) / (4 * tokens.numel()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", SHAPES)
def test_the_cache_takes_what_is_counted(name: str) -> None:
    """Windows shorter and longer than the sequence, and keys and values out of a latent vector."""
    for length in (16, 64):
        cache = Cache(SHAPES[name], batch_size=1, length=length, dtype=torch.float32, device=torch.device("cpu"))
        held = sum(block.k.nbytes + block.v.nbytes for block in cache.blocks)
        assert serving_memory(SHAPES[name], "fp32", length=length)["cache"] == held


def memory(**changes: object) -> dict[str, int]:
    options: dict[str, object] = {
        "micro_batch_size": 4, "seq_len": 2048, "shards": 1, "precision": "fp32",
        "device": "cpu",
    }  # fmt: skip
    return training_memory(preset("pythia-1b"), **(options | changes))


def test_memory_goes_where_the_knobs_send_it() -> None:
    plain, count = memory(), n_params(preset("pythia-1b"))
    assert plain["weights"] == plain["gradients"] == 4 * count
    assert plain["optimizer"] == 8 * count
    assert plain["total"] < sum(value for key, value in plain.items() if key != "total"), "they are not there at once"
    assert memory(grad_accum_steps=2)["total"] == plain["total"] + 4 * count
    cut = memory(shards=8)
    assert cut["optimizer"] == count
    assert cut["activations"] == plain["activations"]
    assert memory(savings=Savings(activation_checkpointing="full"))["activations"] < plain["activations"] / 5
    assert memory(precision="bf16")["activations"] < 0.55 * plain["activations"]
    assert memory(micro_batch_size=8)["activations"] > 1.9 * plain["activations"]
    more = memory(device="cuda", seq_len=512)["activations"] - memory(seq_len=512)["activations"]
    assert more == pytest.approx(2 * (2048 * 4 * 50304 - LOGIT_CHUNK_BYTES["cpu"]), rel=0.1), "logits of all tokens"
