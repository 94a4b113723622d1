"""A model in the keys of LitGPT's YAML becomes the preset that it describes, or is refused by the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from launchyard.errors import RecipeErrors
from launchyard.launcher.plan.planner import resolve_model
from launchyard.launcher.recipe.load import load_recipe
from launchyard.model.config import ModelConfig
from launchyard.model.cost import n_params
from launchyard.model.zoo import preset

PYTHIA = {"name": "pythia-14m", "block_size": 2048, "n_layer": 6, "n_embd": 128, "n_head": 4, "padding_multiple": 128}
PYTHIA_BY_NAME = {
    "model_name": "pythia-160m", "block_size": 2048, "vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768,
    "rotary_percentage": 0.25, "parallel_residual": True, "bias": True,
}  # fmt: skip
LLAMA = {
    "name": "Llama-3-8B", "block_size": 8192, "vocab_size": 128000, "padded_vocab_size": 128256, "n_layer": 32,
    "n_head": 32, "n_query_groups": 8, "rotary_percentage": 1.0, "parallel_residual": False, "bias": False,
    "n_embd": 4096, "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "intermediate_size": 14336,
    "rope_base": 500000,
}  # fmt: skip
GEMMA_2 = {
    "name": "Gemma-2-2b", "hf_config": {"org": "google", "name": "gemma-2-2b"}, "scale_embeddings": True,
    "attention_scores_scalar": 256, "vocab_size": 256000, "block_size": 8192, "sliding_window_size": 4096,
    "sliding_window_indices": [1, 0] * 13, "intermediate_size": 9216, "n_embd": 2304, "n_layer": 26, "n_head": 8,
    "n_query_groups": 4, "head_size": 256, "rotary_percentage": 1.0, "parallel_residual": False, "bias": False,
    "norm_class_name": "RMSNorm", "mlp_class_name": "GemmaMLP", "gelu_approximate": "tanh", "norm_eps": 1e-6,
    "post_attention_norm": True, "post_mlp_norm": True, "attention_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}  # fmt: skip
MIXTRAL = {
    **LLAMA, "name": "Mixtral-8x7B", "padded_vocab_size": 32000, "vocab_size": 32000, "block_size": 32768,
    "mlp_class_name": "LLaMAMoE", "rope_base": 1000000, "n_expert": 8, "n_expert_per_token": 2,
}  # fmt: skip


def model_of(folder: Path, section: dict[str, Any]) -> ModelConfig:
    recipe = {"name": "x", "model": section, "data": {"source": "text", "seq_len": 64}, "train": {"max_steps": 1}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    found = resolve_model(load_recipe(str(path)).recipe, None, None)
    assert found is not None
    return found


def test_pythia_and_llama_are_the_presets(tmp_path: Path) -> None:
    assert model_of(tmp_path, PYTHIA) == preset("pythia-14m")
    llama = preset("llama-3-8b").model_copy(update={"vocab_size": 128000})
    assert model_of(tmp_path, LLAMA) == llama


def test_a_name_brings_the_rows_of_its_table(tmp_path: Path) -> None:
    """LitGPT pads to a multiple of 512 unless the named model says otherwise."""
    model = model_of(tmp_path, PYTHIA_BY_NAME)
    assert n_params(model) == 162_322_944
    assert model == preset("pythia-160m").model_copy(update={"vocab_size": 50304})


def test_soft_caps_windows_and_experts_are_read(tmp_path: Path) -> None:
    assert model_of(tmp_path, GEMMA_2) == preset("gemma-2-2b").model_copy(update={"tie_embeddings": False})
    assert model_of(tmp_path, MIXTRAL) == preset("mixtral-8x7b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_name": "Llama-3-8B"}, "model.model_name: write model.preset: llama-3-8b and change it in our keys"),
        ({"model_name": "mine"}, "model.model_name: write model.preset: NAME of `launch models`"),
        ({"n_shared_expert": 2}, "model.n_shared_expert: we have no knob for it"),
        ({"dim": 128}, "model.dim: this model is in LitGPT's keys"),
        ({"mlp_class_name": "KANMLP"}, "model.mlp_class_name: 'KANMLP' is not one of GptNeoxMLP"),
        ({"mlp_class_name": "LLaMAMLP"}, "model.intermediate_size: missing"),
        ({"post_mlp_norm": True}, "model.post_attention_norm: norms before"),
        ({"n_head": 5}, "dim: 128 is not divisible"),
        ({"rope_adjustments": {"factor": 2, "ntk": 1}}, "model.rope_adjustments: factor alone"),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_key(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors) as caught:
        model_of(tmp_path, PYTHIA | change)
    (problem,) = caught.value.problems
    assert said in problem
    assert "recipe.yaml" in problem


def test_keys_of_hugging_face_get_a_hint(tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors) as caught:
        model_of(tmp_path, {"family": "llama", "hidden_size": 64, "n_layer": 2, "num_local_experts": 8})
    text = "\n".join(caught.value.problems)
    for ours in ("model.dim", "model.n_layers", "model.moe.n_experts"):
        assert f"did you mean {ours}?" in text
