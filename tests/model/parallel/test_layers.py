"""Layer by layer over several devices. torch's meta device stands for a second one: it has shapes and no values."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from launchyard.model.config import ModelConfig
from launchyard.model.parallel.holding import LayersOverDevices
from launchyard.model.parallel.layers import SpreadTransformer, device_numbers
from launchyard.model.serve.generate import generate_all
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.weights.load import build
from tests.model.parallel.held import Held, architecture
from tests.support.tiny_models import llama, neox, random_model, random_tokens

KINDS = ("llama", "gemma2", "bloom", "gpt-oss", "deepseek-v2", "opt-narrow", "llama4")
CPU = torch.device("cpu")
each_kind = pytest.mark.parametrize("name", KINDS)


@pytest.mark.parametrize("n_devices", [1, 2, 3, 7])
@pytest.mark.parametrize("config", [llama(n_layers=12), neox(tie_embeddings=True, n_layers=12)], ids=["llama", "tied"])
def test_devices_hold_runs_of_blocks_of_about_equal_size(config: ModelConfig, n_devices: int) -> None:
    numbers = device_numbers(config, n_devices)
    blocks = [numbers[f"blocks.{layer}"] for layer in range(12)]
    assert all(later in (one, one + 1) for one, later in pairwise(blocks))
    counts = [blocks.count(number) for number in range(n_devices)]
    assert max(counts[1:-1], default=0) - min(counts[1:-1], default=0) <= 1
    assert numbers["before"] == 0
    assert numbers["behind"] == (0 if config.tie_embeddings else n_devices - 1)


@each_kind
def test_the_same_device_twice_changes_nothing(name: str) -> None:
    config = architecture(name)
    whole = random_model(config)
    spread = build(config, Held(whole), device=LayersOverDevices(config, [CPU, CPU]), dtype=None)
    requests = [Request(prompt=[3, 4, 5], max_new_tokens=12, sampling=Sampling(temperature=0))] * 2
    texts = [[text.new for text in generate_all(model, requests)] for model in (whole, spread)]
    assert texts[0] == texts[1]
    with torch.inference_mode():
        assert torch.equal(whole(random_tokens(config, 2, 9)), spread(random_tokens(config, 2, 9)))


class OneDeviceEach(TorchDispatchMode):
    """Refuses an operation on tensors of two devices, as GPUs do, but for a copy."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        named = kwargs or {}
        if func.overloadpacket is torch.ops.aten._to_copy and named.get("device") == CPU:
            assert isinstance(args[0], torch.Tensor)  # perhaps on meta, which has no values to copy
            return func(torch.zeros_like(args[0], device=CPU), **named)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        assert func.overloadpacket is torch.ops.aten.copy_ or len({tensor.device for tensor in given}) < 2, func
        return func(*args, **named)


@each_kind
@pytest.mark.parametrize("lengths", [[0, 0], [12, 12], [12, 5]], ids=["first", "even", "uneven"])
@torch.no_grad()
def test_each_layer_finds_all_it_needs_on_its_device(name: str, lengths: list[int]) -> None:
    config = architecture(name)
    homes = [CPU, torch.device("meta")]
    holding = LayersOverDevices(config, homes)
    model = build(config, Held(random_model(config)), device=holding, dtype=torch.bfloat16)  # as experts need on meta
    assert isinstance(model, SpreadTransformer)
    cache = model.new_cache(batch_size=2, length=20)
    assert {block.device for block in cache.blocks} == {*homes}
    end = model.lm_head.weight.device
    with OneDeviceEach():
        for n_new in (1, 3):
            cache.select(0, lengths)
            tokens = torch.zeros(2, n_new, dtype=torch.int64)
            assert model(tokens, cache=cache).device == end
            assert model(tokens, head=lambda x, head: head(x[:, -1])).device == end
        cache.swap(0, 1, 12)
