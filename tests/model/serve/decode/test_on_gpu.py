"""Graphs on a GPU: what they compute, beside another thread, and what has none."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from launchyard import load
from launchyard.model.config import ModelConfig
from launchyard.model.loaded import LoadedModel
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.decode.choose import new_decoding
from launchyard.model.serve.decode.eager import Decoding
from launchyard.model.serve.decode.graphs import GraphDecoding
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.zoo import config_from_hf
from tests.support.architectures import ARCHITECTURES, each_architecture
from tests.support.tiny_models import llama, random_model, random_tokens, weights_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]
CONFIG = llama(dim=128, n_heads=4, ffn_dim=256, vocab_size=500, padded_vocab_size=512, max_seq_len=512)
LENGTHS = [70, 1, 25, 90]
# Of logits, relative to the largest: steps of graphs attend to padding, too, by another kernel.
FP32 = 1e-4
BF16 = 4e-2


def read(decoding: Decoding, model: Transformer, tokens: Tensor, lengths: list[int]) -> None:
    for row, length in enumerate(lengths):
        decoding.cache.select(row, [0])
        model(tokens[row : row + 1, :length].cuda(), cache=decoding.cache)


@torch.inference_mode()
def compare(model: Transformer, rounding: float, *, lengths: list[int] = LENGTHS, n_steps: int = 20) -> None:
    """Logits behind the same tokens, which are the likeliest ones; a text ends on the way."""
    tokens = random_tokens(model.config, len(lengths), max(lengths))
    length = max(lengths) + n_steps
    plain = new_decoding(model, n_slots=len(lengths), length=length, graphs=False)
    played = new_decoding(model, n_slots=len(lengths), length=length, graphs=True)
    for decoding in (plain, played):
        read(decoding, model, tokens, lengths)
    new = [1] * len(lengths)
    for n in range(n_steps):
        if n == n_steps // 2:
            del new[-1]
        taken = [length + n for length in lengths[: len(new)]]
        expected = plain.step(new, taken)
        found = played.step(new, taken)
        worst = float((found - expected).abs().max() / expected.abs().max())
        assert worst < rounding, f"step {n}"
        new = expected.argmax(-1).tolist()
    assert isinstance(played, GraphDecoding) and played.n_graphs >= 2


@each_architecture
def test_logits_are_those_without_graphs(name: str) -> None:
    config = config_from_hf(ARCHITECTURES[name])
    experts = config.moe is not None
    if experts and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the product of experts asks the host here")
    model = random_model(config, std=0.1).to("cuda", torch.bfloat16 if experts else torch.float32)
    compare(model, BF16 if experts else FP32, lengths=[9, 1, 20, 22], n_steps=16)


def saved(config: ModelConfig, folder: Path) -> str:
    save_hf(weights_of(random_model(config, std=0.08)), config, str(folder))
    return str(folder)


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8", "int4", "nf4", "fp8"])
def test_matrices_of_each_form(form: str, tmp_path: Path) -> None:
    if form == "int4" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU is older than torch's int4 product")
    compare(load(saved(CONFIG, tmp_path), device="cuda", weights=form).transformer, FP32 if form == "fp32" else BF16)


def texts(model: LoadedModel | Transformer, *, n_slots: int = 12, graphs: bool | None = None) -> list[list[int]]:
    transformer = model.transformer if isinstance(model, LoadedModel) else model
    engine = Engine(transformer, n_slots=n_slots, length=200, graphs=graphs)
    requests = [
        Request(random_tokens(transformer.config, 3 + n, seed=n).tolist(), 20 + 5 * n, Sampling(0.0)) for n in range(20)
    ]
    written = [engine.add(request) for request in requests]
    while not engine.is_idle:
        engine.step()
    return [text.new for text in written]


def test_texts_are_those_without_graphs() -> None:
    model = random_model(CONFIG).cuda()
    assert texts(model, graphs=True) == texts(model, graphs=False)


def test_another_thread_may_use_the_gpu_meanwhile() -> None:
    """As where a server reads newer weights: memory is taken, and numbers are copied, while steps are recorded."""
    model = random_model(CONFIG).cuda()
    expected = texts(model, graphs=False)
    is_over = threading.Event()
    sums = []

    def copy() -> None:
        while not is_over.is_set():
            sums.append(float(torch.ones(1 << 20).cuda().sum()))

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        assert [texts(model, graphs=True) for _ in range(3)] == [expected] * 3
    finally:
        is_over.set()
        thread.join()
    assert set(sums) == {float(1 << 20)}


def test_layers_on_a_gpu_and_the_cpu_have_none(tmp_path: Path) -> None:
    place = saved(CONFIG, tmp_path)
    spread = load(place, device=["cuda:0", "cpu"])
    words = Engine(spread.transformer).decoding.words
    assert words == "without CUDA graphs: none where a model lies on several devices"
    assert texts(spread) == texts(load(place, device="cuda:0"), graphs=True)
    with pytest.raises(ValueError, match="several devices"):
        Engine(spread.transformer, graphs=True)
