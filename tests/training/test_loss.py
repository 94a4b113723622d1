"""The chunked loss is the plain loss, with its gradients, for any chunk and mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from launchyard.model.config import ModelConfig
from launchyard.model.memory import LOGIT_CHUNK_BYTES, training_memory
from launchyard.training import loss
from launchyard.training.spec import IGNORE_INDEX


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 90),
    vocab=st.integers(2, 70),
    masked=st.floats(0, 1),
    scale=st.floats(0.01, 3),
    seed=st.integers(0, 10**6),
)
def test_equal_to_the_plain_loss(rows: int, vocab: int, masked: float, scale: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 8, generator=rng, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(vocab, 8, generator=rng).requires_grad_()
    labels = torch.randint(0, vocab, (rows,), generator=rng)
    labels[torch.rand(rows, generator=rng) < masked] = IGNORE_INDEX
    want = cross_entropy(hidden @ weight.t(), labels, ignore_index=IGNORE_INDEX, reduction="sum") * scale
    want_grads = torch.autograd.grad(want, [hidden, weight])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOGIT_CHUNK_BYTES, "cpu", 1)  # 16 rows a chunk
        got = loss.linear_cross_entropy(hidden, weight, labels, scale=scale)
        grads = torch.autograd.grad(got, [hidden, weight])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 60),
    vocab=st.integers(2, 40),
    smoothing=st.floats(0, 0.9),
    z_loss=st.floats(0, 0.5),
    softcap=st.sampled_from([None, 5.0]),
    seed=st.integers(0, 10**6),
)
def test_it_is_trained_for_with_its_regularisers_and_shown_without(
    rows: int, vocab: int, smoothing: float, z_loss: float, softcap: float | None, seed: int
) -> None:
    """The gradient is that of torch's label smoothing and of a z-loss by hand; slices and masks do not show."""
    rng = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*shape, generator=rng) for shape in ((rows, 8), (vocab, 8), (vocab,)))
    labels = torch.randint(0, vocab, (rows,), generator=rng)
    labels[::3] = IGNORE_INDEX
    wanted = [part.double().requires_grad_() for part in (hidden, weight, bias)]
    logits = wanted[0] @ wanted[1].t() + wanted[2]
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    smoothed = cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=smoothing)
    objective = smoothed + z_loss * (logits.logsumexp(-1).square() * (labels != IGNORE_INDEX)).sum()
    want = torch.autograd.grad(objective * 0.7, wanted)
    leaves = [part.requires_grad_() for part in (hidden, weight, bias)]
    terms = loss.Regularisers(smoothing, z_loss)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOGIT_CHUNK_BYTES, "cpu", 1)  # 16 rows a slice
        got = loss.linear_cross_entropy(hidden, weight, labels, bias=bias, softcap=softcap, scale=0.7, terms=terms)
    plain = cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum") * 0.7
    torch.testing.assert_close(got.double(), plain, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(torch.autograd.grad(got, leaves), want, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


def test_what_is_masked_does_not_matter() -> None:
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4)
    labels = torch.tensor([1, IGNORE_INDEX, 3, IGNORE_INDEX, 5, 8])
    other = hidden.clone()
    other[[1, 3]] = 7.0
    first = loss.linear_cross_entropy(hidden, weight, labels)
    assert torch.equal(first, loss.linear_cross_entropy(other, weight, labels))
    with torch.no_grad():
        assert torch.allclose(first, loss.linear_cross_entropy(hidden, weight, labels))


def test_bf16_gradients_are_gathered_in_fp32() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 16).bfloat16().requires_grad_()
    weight = torch.randn(50, 16).bfloat16().requires_grad_()
    labels = torch.randint(0, 50, (300,))
    loss.linear_cross_entropy(hidden, weight, labels, scale=1 / 300).backward()
    exact_weight = weight.detach().float().requires_grad_()
    cross_entropy(hidden.detach().float() @ exact_weight.t(), labels).backward()
    assert weight.grad is not None and exact_weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert torch.allclose(weight.grad.float(), exact_weight.grad, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("budget", [LOGIT_CHUNK_BYTES["cpu"], 1 << 20, 300_000])
@pytest.mark.parametrize("tokens", [32, 700])
def test_the_estimate_of_memory_counts_the_logits_that_the_loss_makes(
    budget: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the largest slice: logits and their softmax. The estimate without a vocabulary would have none of it."""
    monkeypatch.setitem(LOGIT_CHUNK_BYTES, "cpu", budget)
    vocab, largest = 2048, 0
    real = loss._product

    def spy(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        product = real(x, weight)
        largest = max(largest, product.numel()) if product.shape[-1] == vocab else largest
        return product

    monkeypatch.setattr(loss, "_product", spy)
    loss.linear_cross_entropy(
        torch.randn(tokens, 8).requires_grad_(), torch.randn(vocab, 8), torch.zeros(tokens).long()
    )
    small, large = activations(tokens, vocab=128), activations(tokens, vocab=vocab)
    logits_of_small = 2 * 4 * 128 * min(tokens, loss.logit_rows(128, "cpu"))
    assert large - (small - logits_of_small) == 2 * 4 * largest


def activations(tokens: int, *, vocab: int) -> int:
    config = ModelConfig(
        family="llama", dim=8, n_layers=1, n_heads=1, ffn_dim=8, vocab_size=vocab, max_seq_len=1024, head_dim=8
    )  # type: ignore[call-arg]
    return training_memory(
        config,
        micro_batch_size=1,
        seq_len=tokens,
        shards=1,
        precision="fp32",
        device="cpu",
    )["activations"]


def test_a_frozen_head_has_no_gradient_and_takes_no_memory_for_one() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(30, 8, requires_grad=True)
    weight, bias = torch.randn(50, 8), torch.randn(50)
    labels = torch.randint(0, 50, (30,))
    got = loss.linear_cross_entropy(hidden, weight, labels, bias=bias)
    assert got.grad_fn is not None
    assert [kept.shape for kept in got.grad_fn.saved_tensors if kept is not None] == [hidden.shape]
    want = cross_entropy(hidden @ weight.t() + bias, labels, reduction="sum")
    for mine, theirs in zip(torch.autograd.grad(got, hidden), torch.autograd.grad(want, hidden), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_no_row_at_all_adds_nothing() -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    got = loss.linear_cross_entropy(hidden, torch.randn(5, 8), torch.zeros(0, dtype=torch.int64))
    got.backward()
    assert got.item() == 0.0 and hidden.grad is not None and hidden.grad.shape == (0, 8)
