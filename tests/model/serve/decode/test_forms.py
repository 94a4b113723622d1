"""Steps of models whose matrices or attention are not the plain ones are recorded, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launchyard import load
from launchyard.model.adapt.attach import attach
from launchyard.model.adapter import Adapter
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.matrices.names import WEIGHT_FORMS
from launchyard.model.weights.hf_export import save_hf
from tests.model.serve.decode.test_graphs import compare, request
from tests.support.tiny_models import llama, random_model, weights_of

CODED = llama(dim=64, ffn_dim=96, vocab_size=140, padded_vocab_size=144)  # all of its matrices can be int4


@pytest.mark.parametrize("form", WEIGHT_FORMS)
def test_matrices_of_each_form(form: str, tmp_path: Path) -> None:
    save_hf(weights_of(random_model(CODED, std=0.08)), CODED, str(tmp_path))
    model = load(str(tmp_path), device="cpu", weights=form).transformer
    _, (recorder,) = compare(model, [request(CODED, n, 5, 20) for n in range(3)], n_slots=2)
    assert recorder.n_played > 10


@pytest.mark.parametrize("adapter", [Adapter(kind="llama-adapter", prompt_tokens=3), Adapter(kind="lora", r=4)])
def test_adapters(adapter: Adapter) -> None:
    model = Transformer(llama())
    attach(model, model.config, adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    model.eval()
    _, (recorder,) = compare(model, [request(model.config, n, 5, 20) for n in range(3)], n_slots=2)
    assert recorder.n_played > 10
