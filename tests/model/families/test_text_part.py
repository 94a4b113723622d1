"""The language model inside a model of images and text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from launchyard.model.weights.load import build, open_weights
from tests.support.architectures import ARCHITECTURES
from tests.support.tiny_models import random_tokens


@pytest.mark.parametrize("before", ["language_model.model.", "model.language_model."])
@torch.no_grad()
def test_the_text_part_of_gemma3_is_taken(before: str, tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    text = {key: value for key, value in ARCHITECTURES["gemma3"].items() if key != "model_type"}
    sight = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=sight, mm_tokens_per_image=4, image_token_index=98)
    theirs = Gemma3ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    renamed = {key.replace("language_model.model.", before): value for key, value in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    ours = build(*open_weights(str(tmp_path)), device=torch.device("cpu"), dtype=None)
    assert ours.config.family == "gemma3_text"
    tokens = random_tokens(ours.config, 2, 40) % 90  # none of an image
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_text_part_of_llama4_is_taken(tmp_path: Path) -> None:
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    torch.manual_seed(0)
    sight = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 28, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16,
             "projector_output_dim": 16}  # fmt: skip
    text = {key: value for key, value in ARCHITECTURES["llama4"].items() if key != "model_type"}
    theirs = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=sight)).eval()
    for parameter in theirs.parameters():  # some are empty memory
        parameter.normal_(std=0.15)
    theirs.save_pretrained(tmp_path)
    ours = build(*open_weights(str(tmp_path)), device=torch.device("cpu"), dtype=None)
    assert ours.config.family == "llama4_text"
    tokens = random_tokens(ours.config, 2, 40)
    torch.testing.assert_close(ours(tokens), theirs.language_model(tokens).logits, atol=1e-4, rtol=1e-4)
