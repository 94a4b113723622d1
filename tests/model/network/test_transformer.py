"""The transformer itself: what it may see, what it holds, and how exact it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.network.transformer import Transformer
from tests.support.tiny_models import CONFIGS, llama, neox, random_model, random_tokens, weights_of

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@each_config
def test_no_token_sees_a_later_one(config: ModelConfig) -> None:
    model, tokens = random_model(config), random_tokens(config, 2, 24)
    changed = tokens.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :11], after[:, :11])
    assert not torch.allclose(before[:, 11:], after[:, 11:])


@each_config
def test_built_on_meta_and_filled_it_is_the_same(config: ModelConfig) -> None:
    model, tokens = random_model(config), random_tokens(config, 2, 24)
    with torch.device("meta"):
        empty = Transformer(config)
    assert not list(empty.buffers())
    empty.to_empty(device="cpu")
    if config.tie_embeddings:
        empty.lm_head.weight = empty.embed.weight
    empty.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(empty(tokens), model(tokens))


def test_a_head_gets_the_hidden_states_and_the_weight() -> None:
    model, tokens = random_model(neox()), random_tokens(neox(), 2, 24)
    with torch.no_grad():
        logits = model(tokens, head=lambda hidden, head: hidden @ head.weight.t())
        torch.testing.assert_close(logits, model(tokens))


@each_config
def test_every_parameter_gets_a_gradient(config: ModelConfig) -> None:
    model = random_model(config).train()
    model(random_tokens(config, 2, 24)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A key's bias moves all scores of a query alike, which softmax takes out again
        assert parameter.grad.abs().sum() > 0 or name.endswith("k_proj.bias"), name


@each_config
def test_recomputed_blocks_give_the_same_gradients(config: ModelConfig) -> None:
    from torch.utils.checkpoint import checkpoint

    plain, tokens = random_model(config).train(), random_tokens(config, 2, 24)
    again = copy.deepcopy(plain)
    for block in again.blocks:
        forward = block.forward
        block.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
    for model in (plain, again):
        model(tokens).square().mean().backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("config", [neox(), llama()], ids=["neox", "llama"])
def test_bf16_weights_leave_norms_and_rotations_in_fp32(config: ModelConfig) -> None:
    """Against fp64 arithmetic on the same rounded weights, bf16 must err by roundings of single products only."""
    model, tokens = random_model(config, std=0.05), random_tokens(config, 2, 60)
    rounded = copy.deepcopy(model).bfloat16()
    exact = copy.deepcopy(rounded).double()
    seen: list[Tensor] = []
    for norm in (rounded.norm, exact.norm):
        norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        low, high = rounded(tokens), exact(tokens)
    assert low.dtype == torch.bfloat16
    error = (low.double() - high).norm() / high.norm()
    assert error < 0.02
    turn = rounded.places(60)[0].turn
    assert turn is not None and {table.dtype for table in turn} == {torch.float32}


def test_positions_beyond_the_longest_are_an_error() -> None:
    model = random_model(neox())
    with pytest.raises(ValueError, match="65 positions are asked for; this model has max_seq_len 64"):
        model(random_tokens(neox(), 1, 65))


def test_tables_made_in_inference_serve_training() -> None:
    model, tokens = random_model(neox()), random_tokens(neox(), 1, 30)
    with torch.inference_mode():
        model(tokens)
    model.train()(tokens).sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at every tensor's
def test_the_same_after_compiling_each_block() -> None:
    """Eagerly traced, so that no C++ compiler is needed: the graph is what is tested."""
    config = llama()
    model, tokens = random_model(config), random_tokens(config, 2, 24)
    compiled = copy.deepcopy(model)
    for block in compiled.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    for one in (model, compiled):
        one.train()(tokens).square().mean().backward()
    assert compiled.state_dict().keys() == model.state_dict().keys()
    for one, other in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_parameters_have_the_names_that_files_use() -> None:
    names = set(weights_of(random_model(llama(n_layers=1))))
    assert names == {
        "embed.weight", "norm.weight", "lm_head.weight", "blocks.0.attention_norm.weight", "blocks.0.mlp_norm.weight",
        *(f"blocks.0.attention.{name}_proj.weight" for name in "qkvo"),
        *(f"blocks.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }  # fmt: skip
