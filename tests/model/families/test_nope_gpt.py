"""NoPE GPT, which transformers does not have, against a small reference in plain torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from launchyard.model.network.kv_cache import Cache
from launchyard.model.serve.generate import generate
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import build, open_weights
from launchyard.model.zoo import config_from_hf, config_to_hf
from tests.support.tiny_models import random_model, random_tokens, weights_of

HF = {
    "model_type": "nope_gpt", "vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 96, "max_position_embeddings": 64, "rms_norm_eps": 1e-3,
}  # fmt: skip


def reference(tensors: dict[str, Tensor], tokens: Tensor, *, heads: int, layers: int, eps: float) -> Tensor:
    """Logits (B, T, vocab) by loops over layers and heads."""

    def norm(x: Tensor, key: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * tensors[f"model.{key}.weight"]

    x = tensors["model.embed_tokens.weight"][tokens]
    future = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    for n in range(layers):
        layer = f"model.layers.{n}"
        normed = norm(x, f"layers.{n}.input_layernorm")
        q, k, v = (normed @ tensors[f"{layer}.self_attn.{part}_proj.weight"].T for part in "qkv")
        parts = []
        for q_head, k_head, v_head in zip(*(part.chunk(heads, dim=-1) for part in (q, k, v)), strict=True):
            scores = q_head @ k_head.transpose(1, 2) / q_head.shape[-1] ** 0.5
            parts.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v_head)
        x = x + torch.cat(parts, dim=-1) @ tensors[f"{layer}.self_attn.o_proj.weight"].T
        inner = norm(x, f"layers.{n}.post_attention_layernorm") @ tensors[f"{layer}.mlp.up_proj.weight"].T
        x = x + F.silu(inner) @ tensors[f"{layer}.mlp.down_proj.weight"].T
    return norm(x, "norm") @ tensors["model.embed_tokens.weight"].T


@torch.no_grad()
def test_logits_are_those_of_the_reference_whole_and_with_a_cache(tmp_path: Path) -> None:
    config = config_from_hf(HF)
    assert config_from_hf(config_to_hf(config)) == config
    went = weights_of(random_model(config))
    save_hf(went, config, str(tmp_path))
    found, weights = open_weights(str(tmp_path))
    assert found == config
    assert all(torch.equal(weights.get(key), tensor) for key, tensor in went.items())
    ours = build(found, weights, device=torch.device("cpu"), dtype=None)
    tokens = random_tokens(config, 2, 80)  # longer than max_seq_len: nothing ends there
    tensors = load_file(tmp_path / "model.safetensors")
    expected = reference(tensors, tokens, heads=config.n_heads, layers=config.n_layers, eps=config.norm_eps)
    torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=1e-4)
    cache = Cache(config, batch_size=2, length=80, dtype=torch.float32, device=torch.device("cpu"))
    cached = torch.cat([ours(piece, cache=cache) for piece in tokens.split([31, 1, 1, 47], dim=1)], dim=1)
    torch.testing.assert_close(cached, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_transformers_runs_the_file_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the length of the training, padded, and in pieces behind its cache; and back."""
    from transformers import AutoModelForCausalLM, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = config_from_hf(HF)
    model = random_model(config)
    save_hf(weights_of(model), config, str(tmp_path / "ours"))
    theirs, said = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", trust_remote_code=True, output_loading_info=True, dtype="auto"
    )
    assert not any(said.values()), said
    tokens = random_tokens(config, 2, 80)
    expected = model(tokens)
    torch.testing.assert_close(theirs(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    padded = torch.cat((torch.zeros(2, 5, dtype=torch.int64), tokens), dim=1)
    mask = (torch.arange(85) >= 5).long().expand(2, -1)
    torch.testing.assert_close(theirs(padded, attention_mask=mask).logits[:, 5:], expected, atol=1e-4, rtol=1e-4)
    prompt = tokens[0].tolist()
    new = theirs.generate(tokens[:1], attention_mask=mask[:1, 5:], max_new_tokens=7, do_sample=False, eos_token_id=None)
    assert new[0, 80:].tolist() == list(generate(model, Request(prompt, 7, Sampling(0.0))))
    theirs.save_pretrained(tmp_path / "theirs")
    found, weights = open_weights(str(tmp_path / "theirs"))
    assert found == config
    assert all(torch.equal(weights.get(key), tensor) for key, tensor in weights_of(model).items())
