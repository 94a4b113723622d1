"""Low-rank updates: a step changes them alone, the model begins as its base, and merged weights are the same model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.cost import n_params_trained
from launchyard.model.layout import adapter_shapes, parameter_shapes, parameters
from launchyard.model.weights.load import build, low_rank_merged
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.step import train_step
from tests.support.small_runs import RECIPE
from tests.support.tiny_models import CONFIGS, llama, neox, random_model, random_tokens

CPU = torch.device("cpu")
PROMPTS = (
    Adapter(kind="llama-adapter"),
    Adapter(kind="llama-adapter-v2", targets=("q_proj", "lm_head"), quantize="nf4"),
)
EVERYWHERE = ("q_proj", "v_proj", "down_proj", "lm_head", "embed")
ADAPTERS = {
    "lora": Adapter(kind="lora"),
    "rank-stabilised": Adapter(kind="lora", r=3, scaling="alpha/sqrt(r)", ranks={"q_proj": 5}, alphas={"v_proj": 2}),
    "tables": Adapter(kind="lora", targets=EVERYWHERE, scaling="alpha"),
    "dora": Adapter(kind="dora"),
    "dora-head": Adapter(kind="dora", targets=("o_proj", "lm_head")),
    "tokens": Adapter(kind="lora", tokens=(*dict.fromkeys(random_tokens(neox(), 2, 16)[0].tolist()),)),
    "some": Adapter(kind="lora", targets="query", trained=("norm.*", "blocks.2.*norm.weight"), layers=(1,)),
}


class Held:
    """The weights of a model in memory."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        self.config = config
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    def keys(self) -> list[str]:
        return list(parameter_shapes(self.config))

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].dtype

    def get(self, key: str) -> Tensor:
        return self.tensors[key]

    def rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        for key, rows in wanted.items():
            yield key, self.tensors[key][rows.start : rows.stop]


def recipe() -> Recipe:
    return Recipe.model_validate({**RECIPE, "train": {"max_steps": 1, "device": "cpu"}})


def adapted(config: ModelConfig, adapter: Adapter) -> tuple[nn.Module, Held]:
    """A model over random weights with an update that shows, and those weights."""
    model = build_model(config, recipe(), world_size=1, device=CPU, adapter=adapter)
    base = Held(random_model(config), config)
    of_adapter = adapter_shapes(config, adapter)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in of_adapter:
                parameter.copy_(base.get(name))
            elif name.endswith("magnitude"):
                key = name.replace("magnitude", "weight")
                parameter.copy_(base.tensors.get(key, base.tensors["embed.weight"]).norm(dim=1))
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            else:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model, base


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("config", [llama(), CONFIGS["neox-tied-tanh"]], ids=lambda config: config.family)
def test_it_begins_as_its_base(config: ModelConfig, adapter: Adapter) -> None:
    model = build_model(config, recipe(), world_size=1, device=CPU, adapter=adapter)
    base = build_model(config, recipe(), world_size=1, device=CPU)
    tokens = random_tokens(config, 2, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), base(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("config", [llama(), neox(), CONFIGS["neox-tied-tanh"]], ids=["llama", "neox", "tied"])
def test_merged_is_base_and_adapter(config: ModelConfig, adapter: Adapter) -> None:
    model, base = adapted(config, adapter)
    held = dict(model.named_parameters())
    weights = low_rank_merged(base, adapter, lambda name: held[name].detach())
    tokens = random_tokens(config, 2, 16)
    with torch.no_grad():
        expected = model(tokens)
        whole = build(weights.config, weights, device=CPU, dtype=None)
        torch.testing.assert_close(whole(tokens), expected, rtol=0, atol=1e-4)
        assert not torch.allclose(random_model(config)(tokens), expected, atol=1e-3)
    some = dict(weights.rows({key: range(5, 7) for key in weights.keys()}))  # noqa: SIM118
    assert all(torch.allclose(some[key], weights.get(key)[5:7], atol=1e-6) for key in weights.keys())  # noqa: SIM118


@pytest.mark.parametrize("adapter", [*ADAPTERS.values(), Adapter(kind="qlora"), Adapter(kind="bitfit"), *PROMPTS])
def test_all_that_trains_changes_and_nothing_else(adapter: Adapter) -> None:
    """An option that is taken without effect trains nothing, in silence."""
    config = neox()
    model = build_model(config, recipe(), world_size=1, device=CPU, adapter=adapter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    layout = parameters(config, adapter)
    assert before.keys() == layout.keys()
    optimizer = make_optimizer(model, recipe().optimizer)
    tokens = random_tokens(config, 2, 16)
    for number in (1, 2, 3):
        train_step(model, optimizer, [MicroBatch(tokens, tokens)], n_parts=32, number=number, lr=0.01, max_grad_norm=1)
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) != layout[name].trained, name


@pytest.mark.parametrize("targets", ["query", ("q_proj", "down_proj"), EVERYWHERE], ids=str)
def test_its_parameters_are_the_sums_of_both_sides(targets: str | tuple[str, ...]) -> None:
    adapter = Adapter.model_validate({"kind": "lora", "r": 5, "targets": targets})
    sides = [shape for name, shape in parameter_shapes(neox()).items() if adapts(name, adapter)]
    assert n_params_trained(neox(), adapter) == sum(5 * (rows + columns) for rows, columns in sides)


def adapts(name: str, adapter: Adapter) -> bool:
    return any(update.startswith(name.removesuffix(".weight") + ".lora") for update in adapter_shapes(neox(), adapter))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": ("q_porj",)}, "no projection q_porj; there are q_proj"),
        ({"targets": r"blocks\.9\..*"}, "matches no projection"),
        ({"exclude": ("gate_proj",)}, "no projection gate_proj; there are"),
        ({"ranks": {"attention.w": 4}}, "adapter.ranks: attention.w matches none"),
        ({"layers": (7,)}, "no target lies in block 7; some do in 0 to 2"),
        ({"trained": ("blocks.*.nrom.weight",)}, "trained: no parameter of this model matches"),
        ({"kind": "dora", "targets": ("embed",)}, "a table has no magnitudes"),
        ({"tokens": (131,)}, "adapter.tokens: 131, and the table has 131 rows"),
        ({"tokens": (3,), "targets": ("lm_head",)}, "leave embed and lm_head out of the targets"),
        ({"tokens": (3,), "trained": ("embed.*",)}, "tokens: embed.weight trains whole; leave"),
    ],
)
def test_what_matches_nothing_is_an_error(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parameters(neox(), Adapter.model_validate({"kind": "lora", **fields}))


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (("query", "mlp"), {"q_proj", "up_proj", "down_proj"}),
        (("query_key_value",), {"q_proj", "k_proj", "v_proj"}),
        (r".*\.(k|v)_proj", {"k_proj", "v_proj"}),
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}),
        (("attention.o_proj", "head"), {"o_proj", "lm_head"}),
    ],
)
def test_targets_have_the_names_that_people_know(targets: object, found: set[str]) -> None:
    shapes = adapter_shapes(neox(), Adapter.model_validate({"kind": "lora", "targets": targets}))
    assert {name.split(".")[-2] for name in shapes} == found


def test_a_run_with_trained_tokens_reads_as_its_base_with_their_rows_changed() -> None:
    config = llama()
    adapter = Adapter(kind="bitfit", tokens=(5, 2), trained=("norm.weight",))
    model, base = adapted(config, adapter)
    merged = low_rank_merged(base, adapter, model.get_parameter)
    for key in ("embed.weight", "lm_head.weight"):
        more = model.get_parameter(key.replace("weight", "tokens")).detach()
        changed = {row for row in range(131) if not torch.equal(merged.get(key)[row], base.get(key)[row])}
        assert changed == {2, 5}
        assert torch.equal(merged.get(key)[5], base.get(key)[5] + more[0])
    assert torch.equal(merged.get("norm.weight"), base.get("norm.weight"))
