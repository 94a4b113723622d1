"""Prompts in layers: nothing at first, then what peft makes of them; in any family, with a cache, in packed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launchyard.model.adapt.attach import attach
from launchyard.model.adapt.lora import without_updates
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import adapter_shapes, parameters
from launchyard.model.network.documents import Documents
from launchyard.model.network.init import adapter_rows
from launchyard.model.network.kv_cache import Cache
from launchyard.model.network.transformer import Transformer
from launchyard.model.weights.adapters.merge import open_adapted
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import load, open_weights
from tests.support.tiny_models import llama, neox, random_model, random_tokens, weights_of, write_checkpoint
from tests.training.test_families import config_of

PROMPTS = Adapter(kind="llama-adapter", prompt_tokens=3, prompt_layers=2)
BOTH = (PROMPTS, Adapter(kind="llama-adapter-v2", targets=("q_proj", "up_proj", "lm_head")))
# Windows; sinks; latents; chunks, and norms behind the turn; distances; a soft cap; norms of whole vectors; a table.
FAMILIES = ("mistral", "gpt-oss", "deepseek-v3", "llama4", "bloom", "gemma2", "olmo2", "gpt2")


@torch.no_grad()
def prompted(config: ModelConfig, adapter: Adapter, *, first: bool = False) -> Transformer:
    """With the values of a first step, or with others."""
    model = random_model(config)
    attach(model, config, adapter)
    generator = torch.Generator().manual_seed(1)
    for name, shape in adapter_shapes(config, adapter).items():
        value = adapter_rows(name, shape, seed=1)
        model.get_parameter(name).copy_(value if first else value + torch.randn(shape, generator=generator) * 0.5)
    return model


@pytest.mark.parametrize("adapter", BOTH, ids=["v1", "v2"])
@pytest.mark.parametrize("config", [neox(), llama(tie_embeddings=True)], ids=["neox", "llama"])
def test_at_first_it_is_the_base_bit_for_bit(config: ModelConfig, adapter: Adapter) -> None:
    tokens = random_tokens(config, 2, 16)
    expected = random_model(config)(tokens)
    assert torch.equal(prompted(config, adapter, first=True)(tokens), expected)
    model = prompted(config, adapter)
    assert (model(tokens) - expected).abs().max() > 0.01
    for parameter in weights_of(random_model(config)):
        model.get_parameter(parameter).requires_grad_(False)
    with without_updates(model):
        assert torch.equal(model(tokens), expected)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_cache_and_neighbours_change_nothing(name: str) -> None:
    config = config_of(name)
    model = prompted(config, PROMPTS)
    tokens = random_tokens(config, 2, 20)
    whole = model(tokens)
    assert (whole - random_model(config)(tokens)).abs().max() > 0.01
    cache = Cache(config, batch_size=2, length=20, dtype=torch.float32, device=torch.device("cpu"))
    pieces = [model(piece, cache=cache) for piece in tokens.split([7, 1, 1, 5, 6], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=5e-5, rtol=1e-4)
    rows = [tokens[:1, :12], tokens[1:, :5]]
    packed = model(torch.cat(rows, dim=1), documents=Documents((12, 5), row_length=20))
    alone = torch.cat([model(row) for row in rows], dim=1)
    torch.testing.assert_close(packed, alone, atol=5e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of peft
@torch.no_grad()
def test_it_is_what_peft_makes_of_prompts_and_gates(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from transformers import AutoModelForCausalLM

    config = llama()
    model = prompted(config, PROMPTS)
    save_hf(weights_of(random_model(config)), config, str(tmp_path / "base"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs: Any = peft.get_peft_model(
        base, peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2)
    )
    for layer in (1, 2):
        mine = model.get_submodule(f"blocks.{layer}.attention")
        other = theirs.base_model.model.model.layers[layer].self_attn
        mine.gate.fill_(0.4 + 0.1 * layer)  # peft has one gate for all heads, and no tanh
        other.adaption_gate.copy_(torch.tanh(mine.gate[:1]))
        other.adaption_prompt.copy_(mine.prompt[None])
    tokens = random_tokens(config, 2, 16)
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_which_parameters_there_are_and_which_train() -> None:
    config = neox()
    found = {name: one for name, one in parameters(config, PROMPTS).items() if one.trained}
    assert {name: one.shape for name, one in found.items()} == {
        f"blocks.{layer}.attention.{part}": shape
        for layer in (1, 2)
        for part, shape in (("prompt", (3, 48)), ("gate", (4,)))
    }
    second = parameters(config, Adapter(kind="llama-adapter-v2", targets=("q_proj",), prompt_layers=1))
    base = {name for name in second if second[name].trained and name in parameters(config)}
    assert base == {name for name in parameters(config) if "norm." in name}
    assert {name for name in second if second[name].trained} - base == {
        "blocks.2.attention.prompt", "blocks.2.attention.gate",
        *(f"blocks.{layer}.attention.q_proj.out_{part}" for layer in range(3) for part in ("scale", "bias")),
    }  # fmt: skip


def test_more_layers_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="prompt_layers: 4, and the model has 3"):
        parameters(neox(), Adapter(kind="llama-adapter", prompt_layers=4))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "llama-adapter", "layers": [1]}, "kind llama-adapter does not look at; it is for lora"),
        ({"kind": "llama-adapter-v2", "ranks": {"q_proj": 2}}, "ranks is .* it is for lora, qlora, dora"),
        ({"kind": "lora", "prompt_layers": 2}, "it is for llama-adapter, llama-adapter-v2"),
        ({"kind": "bitfit", "dropout": 0.1}, "dropout is 0.1, which kind bitfit does not look at"),
        ({"targets": ["q_proj"]}, "which kind none does not look at"),
        ({"tokens": [3]}, "with kind none all rows of the table train"),
        ({"kind": "lora", "tokens": [3, 3]}, "stands there once"),
    ],
)
def test_a_key_without_effect_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Adapter.model_validate(fields)


def test_the_output_of_a_scaled_projection_is_shifted_and_then_scaled() -> None:
    config = llama(attention_bias=True)
    model = prompted(config, BOTH[1])
    base = weights_of(model)
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))

    def expected(name: str, out: Tensor) -> Tensor:
        return (out + base[f"{name}.out_bias"]) * base[f"{name}.out_scale"]

    q = model.get_submodule("blocks.0.attention.q_proj")
    plain = x @ q.weight.T + q.bias
    torch.testing.assert_close(q(x), expected("blocks.0.attention.q_proj", plain), atol=1e-5, rtol=1e-5)
    head: Any = model.lm_head
    torch.testing.assert_close(x @ head.whole_weight().T + head.whole_bias(), head(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", BOTH, ids=["v1", "v2"])
@torch.no_grad()
def test_a_run_is_a_model_and_its_weights_alone_are_refused(tmp_path: Path, adapter: Adapter) -> None:
    config = llama()
    model = prompted(config, adapter)
    layout = parameters(config, adapter)
    base = tmp_path / "base"
    save_hf(weights_of(random_model(config)), config, str(base))
    frozen = tuple(name for name in layout if not layout[name].trained)
    trained = {name: tensor for name, tensor in weights_of(model).items() if layout[name].trained}
    of_run = {"frozen": frozen, "base": {"init_from": str(base), "seed": 1, "adapter": adapter.model_dump(mode="json")}}
    write_checkpoint(tmp_path / "run", config, trained, **of_run)
    run = str(tmp_path / "run")
    loaded = load(run, device="cpu")
    tokens = random_tokens(config, 2, 16)
    assert torch.equal(loaded.transformer(tokens), model(tokens))
    assert load(run, device="cpu", dtype=torch.bfloat16).transformer(tokens).isfinite().all()
    for opened in (lambda: open_weights(run), lambda: open_adapted(run, None), lambda: open_adapted(run, str(base))):
        with pytest.raises(ValueError, match=f"trained prompts .{adapter.kind}.* no format of weights .* adapter.kind"):
            opened()
