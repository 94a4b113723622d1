"""Two ranks compute what one does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.network.transformer import Transformer
from launchyard.model.parallel.holding import ShareOfRank
from launchyard.model.parallel.ranks import Ranks, connect_ranks, device_of_rank, part_ranks, ranks_here
from launchyard.model.parallel.share import share_config
from launchyard.model.serve.generate import generate_all
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.weights.load import build
from tests.model.parallel.held import Held, architecture
from tests.support.architectures import ARCHITECTURES, SAMPLE
from tests.support.ranks import run_ranks
from tests.support.tiny_models import llama, random_model, random_tokens, weights_of

CPU = torch.device("cpu")
KINDS = (
    "llama", "phi", "cohere", "gemma2", "olmo2", "opt-untied", "bloom-six-heads", "qwen2-moe", "gpt-oss", "deepseek-v3",
)  # fmt: skip


def weights_size(model: Transformer) -> int:
    return sum(weight.numel() for weight in weights_of(model).values())


def even(config: ModelConfig) -> ModelConfig:
    """With a vocabulary of which each rank has half."""
    return config.model_copy(update={"padded_vocab_size": config.padded_vocab_size // 2 * 2 + 2})


def compare(config: ModelConfig, ranks: Ranks) -> None:
    whole = random_model(config, std=0.1)
    share = build(config, Held(whole), device=ShareOfRank(config, ranks, CPU), dtype=None)
    tokens = random_tokens(config, 2, 24)
    with torch.inference_mode():
        expected = whole(tokens)
        torch.testing.assert_close(share(tokens), expected, atol=1e-5, rtol=1e-5)
        cache = share.new_cache(batch_size=2, length=24)
        pieces = [share(piece, cache=cache, head=lambda x, head: head(x)) for piece in tokens.split([9, 1, 14], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=3e-5, rtol=1e-5)
    requests = [Request(prompt=row.tolist(), max_new_tokens=5, sampling=Sampling(temperature=0)) for row in tokens]
    texts = [[text.new for text in generate_all(model, requests)] for model in (whole, share)]
    assert texts[0] == texts[1]


def compare_all(configs: dict[str, ModelConfig]) -> None:
    ranks = ranks_here()
    assert ranks is not None
    connect_ranks(CPU)
    for name, config in configs.items():
        try:
            compare(config, ranks)
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error
    part_ranks()


def test_two_ranks_compute_what_one_does() -> None:
    """One architecture for each thing that is shared, with a vocabulary that is; gpt2's is not."""
    configs = {name: even(architecture(name)) for name in KINDS}
    run_ranks(2, compare_all, configs | {"gpt2": architecture("gpt2")})


@pytest.mark.families
def test_two_ranks_compute_any_family() -> None:
    run_ranks(2, compare_all, {name: even(architecture(name)) for name in ARCHITECTURES})
    run_ranks(2, compare_all, {name: architecture(name) for name in SAMPLE})


def sample_together(seed: int | None) -> None:
    ranks = ranks_here()
    assert ranks is not None
    connect_ranks(CPU)
    config = llama(n_kv_heads=4)
    share = build(config, Held(random_model(config)), device=ShareOfRank(config, ranks, CPU), dtype=None)
    requests = [Request(prompt=[3, 4], max_new_tokens=20, seed=seed, drafter=OwnGuesses(ranks.rank)) for _ in range(3)]
    texts = [token for text in generate_all(share, requests) for token in text.new]
    assert ranks.agreed(texts, at_most=len(texts)) == texts
    part_ranks()


class OwnGuesses:
    """Another number of guesses on each rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def guess(self, ids: object, sampling: object, uniform: Sequence[float]) -> list[int]:
        return [5] * min(len(uniform), 1 + self.rank)


@pytest.mark.parametrize("seed", [None, 1])
def test_ranks_write_the_same_text_with_or_without_a_seed(seed: int | None) -> None:
    run_ranks(2, sample_together, seed)


@pytest.mark.parametrize("name", ["llama", "phi", "gpt-oss", "deepseek-v3"])
def test_each_of_two_ranks_holds_about_half(name: str) -> None:
    """And reads no more, but for the matrices that are cut by columns, and experts."""
    config = even(architecture(name))
    whole = random_model(config)
    size = weights_size(whole)
    for rank in range(2):
        weights = Held(whole)
        share = build(config, weights, device=ShareOfRank(config, Ranks(rank, 2, rank), CPU), dtype=None)
        assert 0.49 * size < weights_size(share) < 0.53 * size
        assert weights.n_read < 0.71 * size or config.moe is not None


@pytest.mark.parametrize(
    ("config", "n_ranks", "words"),
    [
        (llama(), 4, r"4 ranks cannot share n_kv_heads \(2\) evenly; this model takes 1 or 2 ranks"),
        (llama(n_kv_heads=1), 2, r"n_kv_heads \(1\) evenly; this model takes one rank only"),
        (llama(n_kv_heads=4, ffn_dim=82), 4, r"share ffn_dim \(82\) evenly; this model takes 1 or 2 ranks"),
        (architecture("mixtral"), 4, r"n_kv_heads \(2\) and moe.ffn_dim \(10 times 8\) evenly"),
        (llama(qk_norm="width", norm="layernorm"), 2, "if it is a plain rmsnorm, and this is layernorm"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused_by_name(config: ModelConfig, n_ranks: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        share_config(config, 0, n_ranks)


@pytest.mark.parametrize("name", ["cuda:0", "meta"])
def test_a_rank_takes_no_device_of_another(name: str) -> None:
    with pytest.raises(ValueError, match="use auto, cpu or cuda"):
        device_of_rank(name, Ranks(1, 2, 1))
