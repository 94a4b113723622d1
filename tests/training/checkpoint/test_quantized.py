"""A frozen base in few bits: trained over, cut over ranks, filled a tensor at a time, resumed, foreseen in bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launchyard.model.adapt.codes import encode, rounded
from launchyard.model.adapt.forms import CODED_FORMS, Form, scales_name
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import Parameter, parameter_shapes, parameters
from launchyard.model.memory import training_memory
from launchyard.model.network.init import initial_rows
from launchyard.model.weights.load import open_weights
from launchyard.model.zoo import config_from_hf
from launchyard.run.checkpoints import committed_steps
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.parallel import local, shard_extent
from launchyard.training.recipe import Recipe
from launchyard.training.step import forward_backward
from tests.support.architectures import ARCHITECTURES
from tests.support.ranks import run_ranks
from tests.support.small_runs import MODEL, RECIPE, final_weights, history, make_run, run_workers, write_data
from tests.support.tiny_models import llama, neox, random_tokens

CPU = torch.device("cpu")
EXPERTS = config_from_hf(ARCHITECTURES["gpt-oss"])  # matrices of three axes, with biases


def adapter_of(form: Form | None) -> Adapter:
    """Low-rank updates, and norms that train besides."""
    return Adapter(kind="lora", quantize=form, trained=("*norm.weight",))


def recipe_of(precision: str = "fp32") -> Recipe:
    return Recipe.model_validate({**RECIPE, "train": {"max_steps": 1, "device": "cpu", "precision": precision}})


def coded_names(layout: dict[str, Parameter], config: ModelConfig) -> list[str]:
    return [name for name in parameter_shapes(config) if layout[name].is_bytes]


def plain_model(config: ModelConfig, form: Form, *, world_size: int = 1, precision: str = "fp32") -> nn.Module:
    """The first weights, with plain projections of the values that their codes have."""
    model = build_model(config, recipe_of(precision), world_size=world_size, device=CPU, adapter=adapter_of(None))
    stored = dict(model.named_parameters())
    shapes = parameter_shapes(config)
    for name in coded_names(parameters(config, adapter_of(form)), config):
        (start, *_), (n_rows, *_) = shard_extent(stored[name])
        rows = initial_rows(config, name, shapes[name], seed=0, start=start, stop=start + n_rows)
        local(stored[name].detach()).copy_(rounded(rows, form))
    return model


def coded_model(config: ModelConfig, form: Form, *, world_size: int = 1, precision: str = "fp32") -> nn.Module:
    recipe = recipe_of(precision)
    return build_model(config, recipe, world_size=world_size, device=CPU, adapter=adapter_of(form))


def gradients(model: nn.Module, config: ModelConfig) -> tuple[Tensor, dict[str, Tensor]]:
    tokens = random_tokens(config, 2, 16)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):  # at zero no gradient reaches the other half
            local(parameter.detach()).fill_(0.01)
    loss = forward_backward(model, [MicroBatch(tokens, tokens)], n_parts=32)
    return loss, {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def whole(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


@pytest.mark.parametrize("config", [llama(), neox(), EXPERTS], ids=lambda config: config.family)
@pytest.mark.parametrize("form", CODED_FORMS)
def test_coded_is_the_plain_base_of_the_same_values(form: Form, config: ModelConfig) -> None:
    loss, expected = gradients(plain_model(config, form), config)
    coded_loss, found = gradients(coded_model(config, form), config)
    torch.testing.assert_close(coded_loss, loss)
    assert len(found) == sum(parameter.trained for parameter in parameters(config, adapter_of(form)).values())
    torch.testing.assert_close(found, expected)


def test_tables_norms_and_routers_are_not_coded() -> None:
    names = coded_names(parameters(EXPERTS, Adapter(kind="qlora")), EXPERTS)
    assert names and all(name.endswith("_proj.weight") and name.startswith("blocks.") for name in names)


def test_a_form_that_no_matrix_has_is_refused() -> None:
    """Else the base would stay plain in silence, and memory with it."""
    with pytest.raises(ValueError, match=r"quantize: nf4 .* no projection is frozen"):
        parameters(llama(), Adapter(kind="lora", quantize="nf4", trained=("blocks.*_proj.weight",)))


# -- ranks and precision -----------------------------------------------------------------------------------------------
def cut(form: Form, precision: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for config in (llama(), EXPERTS):
        model = coded_model(config, form, world_size=dist.get_world_size(), precision=precision)
        layout = parameters(config, adapter_of(form))
        stored = dict(model.named_parameters())
        for name in coded_names(layout, config):
            coded = encode(initial_rows(config, name, parameter_shapes(config)[name], seed=0), form)
            assert torch.equal(whole(stored[name]), coded.codes), name
            assert torch.equal(whole(stored[scales_name(name)]), coded.scales), name
        plain = plain_model(config, form, world_size=dist.get_world_size(), precision=precision)
        torch.testing.assert_close(gradients(model, config), gradients(plain, config))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "precision"), [("nf4", "fp32"), ("nf4-dq", "bf16"), ("int8", "bf16"), ("fp8", "fp32")]
)
def test_ranks_have_the_codes_between_them(form: Form, precision: str) -> None:
    run_ranks(2, cut, form, precision)


# -- memory -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", CODED_FORMS)
def test_the_bytes_of_the_weights_are_foreseen(form: Form) -> None:
    config = llama()
    options: dict[str, Any] = {"micro_batch_size": 2, "seq_len": 16, "shards": 1}
    foreseen = training_memory(config, **options, precision="fp32", device="cpu", adapter=adapter_of(form))
    held = sum(parameter.nbytes for parameter in coded_model(config, form).parameters())
    largest = max(config.ffn_dim, config.dim) * config.dim
    assert foreseen["weights"] == held + 4 * largest


@pytest.mark.parametrize("form", [None, "int8"])
def test_the_bytes_of_a_base_in_bf16_are_foreseen(form: Form | None) -> None:
    """Frozen weights are bf16 where an adapter trains alone, and no rank gathers what it has."""
    config = llama()
    adapter = Adapter(kind="lora", quantize=form)
    options: dict[str, Any] = {"micro_batch_size": 2, "seq_len": 16, "shards": 1}
    foreseen = training_memory(config, **options, precision="bf16", device="cpu", adapter=adapter)
    model = build_model(config, recipe_of("bf16"), world_size=1, device=CPU, adapter=adapter)
    buffer = 0 if form is None else 2 * max(config.ffn_dim, config.dim) * config.dim
    assert foreseen["weights"] == sum(parameter.nbytes for parameter in model.parameters()) + buffer


def test_no_plain_projection_is_there_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base of 8B in fp32 is never whole: the rows of one matrix at a time are."""
    from launchyard.training import build

    config = llama(dim=128, ffn_dim=512)
    alive: list[int] = []

    def counted(rows: Tensor, form: Form) -> Any:
        alive.append(rows.numel())
        return encode(rows, form)

    monkeypatch.setattr(build, "encode", counted)
    model = coded_model(config, "nf4")
    assert max(alive) == 512 * 128 and len(alive) == 7 * config.n_layers
    assert not any(p.is_floating_point() for name, p in model.named_parameters() if name.endswith("_proj.weight"))


# -- runs -------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_a_resumed_run_over_a_coded_base_is_the_run_that_was_not(tmp_path: Path, nproc: int) -> None:
    data = write_data(tmp_path / "data")
    runs = [make_run(tmp_path / name, data, {"schedule.name": "constant"}) for name in ("undisturbed", "resumed")]
    for run in runs:
        adapter = adapter_of("nf4-dq").model_dump(mode="json")
        run.write_json("plan.json", {**run.read_json("plan.json"), "adapter": adapter})
    expected, run = runs
    run_workers(expected, nproc)
    run_workers(run, nproc, {"train.max_steps": 9})
    run_workers(run, nproc)
    assert history(run) == history(expected)
    mine, theirs = final_weights(run), final_weights(expected)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    _, weights = open_weights(run.path(run.checkpoint_dir(committed_steps(run)[-1])))
    config = ModelConfig.model_validate(MODEL)
    adapter = adapter_of("nf4-dq")
    for name in coded_names(parameters(config, adapter), config):
        first = rounded(initial_rows(config, name, parameter_shapes(config)[name], seed=1), "nf4-dq")
        a, b = (mine["model." + name.replace("weight", half)] for half in ("lora_a", "lora_b"))
        merged = first + adapter.alpha / adapter.r * b @ a  # over what it was trained on
        torch.testing.assert_close(weights.get(name), merged)
