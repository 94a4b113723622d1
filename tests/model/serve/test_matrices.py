"""Matrices in fewer bits: products against plain ones, whole models against themselves, and what is told of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard import load
from launchyard.model.adapt.quantized import QuantizedExperts, QuantizedLinear, Scratch
from launchyard.model.config import ModelConfig
from launchyard.model.network.linear import Linear, OpaqueLinear
from launchyard.model.network.mlp import ExpertProjection
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.generate import generate, generate_all
from launchyard.model.serve.matrices.choose import choose_matrices
from launchyard.model.serve.matrices.coded import GROUP, Int4Linear, Int8Linear, to_int4, to_int8
from launchyard.model.serve.matrices.names import WEIGHT_FORMS
from launchyard.model.serve.matrices.packed import NarrowExperts, PackedLinear, can_pack
from launchyard.model.serve.matrices.place import Placing
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.zoo import config_from_hf
from tests.support.architectures import ARCHITECTURES, SAMPLE
from tests.support.tiny_models import llama, random_model, random_tokens, weights_of

CPU = torch.device("cpu")
ROWS = (1, 2, 3, 4, 8, 9, 40)  # on both sides of every border between kernels
# Of whole matrices of normal numbers, relative: to what they were, in fp32.
CODING_ERRORS = {"int8": 0.009, "int4": 0.083}
BF16 = 0.006  # of a product in bf16, relative
# Of logits, relative to those in fp32.
LOGIT_ERRORS = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.03, "int4": 0.15, "nf4": 0.25, "fp8": 0.07}
SIZES = {"dim": 64, "ffn_dim": 96, "vocab_size": 140, "padded_vocab_size": 144}  # all of them can be int4


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_linear(rows: int, columns: int, *, bias: bool, dtype: torch.dtype = torch.float32) -> Linear:
    made = Linear(columns, rows, bias=bias, dtype=dtype)
    made.weight = nn.Parameter(numbers(rows, columns).to(dtype) * 0.02, requires_grad=False)
    if bias:
        made.bias = nn.Parameter(numbers(rows, seed=1).to(dtype), requires_grad=False)
    return made


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def saved(config: ModelConfig, folder: Path, *, std: float = 0.08) -> Transformer:
    """A random model, written to a folder."""
    model = random_model(config, std=std)
    save_hf(weights_of(model), config, str(folder))
    return model


# -- one matrix ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_codes_are_near_what_they_stand_for(form: str) -> None:
    weight = numbers(96, 256)
    weight[3] = 0
    weight[5] = 7.0
    coded = to_int8(weight) if form == "int8" else to_int4(weight)
    plain = coded.plain()
    assert error(plain, weight) < CODING_ERRORS[form]
    assert torch.equal(plain[3], weight[3])
    assert (plain[5] - 7.0).abs().max() < 7.0 * 2**-8
    groups = weight.unflatten(-1, (-1, GROUP))
    span = (groups.amax(-1) - groups.amin(-1)) / 15 if form == "int4" else (weight.abs().amax(-1) / 127)[:, None]
    off = (plain - weight).abs().unflatten(-1, (-1, GROUP))
    rounding = 2**-8 * groups.abs().amax(-1)  # of scales and zeros
    assert (off <= (0.51 * span + rounding)[..., None]).all(), "half a step, at most"


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_number_that_is_none_has_no_code(form: str) -> None:
    weight = numbers(16, 32)
    weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match=f"has no {form}; take the model in fp32 or bf16"):
        to_int8(weight) if form == "int8" else to_int4(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_the_product_is_that_of_the_plain_matrix(form: str, bias: bool, dtype: torch.dtype) -> None:
    plain = plain_linear(48, 96, bias=bias, dtype=dtype)
    made: OpaqueLinear
    if form == "int8":
        own8 = to_int8(plain.weight)
        made, matrix = Int8Linear(plain, own8, Scratch(), dtype=dtype), own8.plain()
    else:
        own4 = to_int4(plain.weight)
        made, matrix = Int4Linear(plain, own4), own4.plain()
    for n_rows in ROWS:
        x = numbers(n_rows, 96, seed=2).to(dtype)
        expected = F.linear(x.float(), matrix, None if plain.bias is None else plain.bias.float())
        found = made(x)
        assert found.dtype == dtype
        assert error(found, expected) < BF16
        assert torch.equal(made(x[None]), found[None])


@pytest.mark.skipif(not can_pack(torch.float32, CPU), reason="this torch has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 96), (33, 17), (1024, 256)])  # the last one: beyond LARGE
def test_a_packed_matrix_gives_the_same_product(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for bias in (False, True):
        plain = plain_linear(*shape, bias=bias, dtype=dtype)
        made = PackedLinear(plain, plain.weight)
        for n_rows in ROWS:
            x = numbers(n_rows, 2, shape[1], seed=2).to(dtype)
            expected = F.linear(x, plain.weight, plain.bias)
            assert error(made(x), expected) < (1e-6 if dtype == torch.float32 else BF16)
            assert error(plain(x), expected) < (1e-6 if dtype == torch.float32 else BF16)


# -- a whole model ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weights", LOGIT_ERRORS)
def test_logits_are_near_those_in_fp32(weights: str, tied: bool, tmp_path: Path) -> None:
    config = llama(**SIZES, tie_embeddings=tied)
    plain = saved(config, tmp_path)
    loaded = load(str(tmp_path), device="cpu", weights=weights)
    tokens = random_tokens(config, 3, 17)
    expected = plain(tokens)
    assert error(loaded.transformer(tokens), expected) < LOGIT_ERRORS[weights]
    behind = loaded.transformer(tokens, head=lambda hidden, projection: projection(hidden[:, -1]))
    assert error(behind, expected[:, -1]) < LOGIT_ERRORS[weights]
    assert torch.equal(loaded.transformer.embed.weight, plain.embed.weight), "the table stays as it is stored"
    head = loaded.transformer.get_submodule("lm_head")
    assert isinstance(head, OpaqueLinear), "the head has a matrix of its own, tied or not"
    assert isinstance(head, PackedLinear) == (weights not in ("int8", "int4"))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        *((name, form) for name in SAMPLE for form in ("nf4", "fp32")),
        *(pytest.param(name, "int8", marks=() if name in SAMPLE else pytest.mark.families) for name in ARCHITECTURES),
    ],
)
def test_every_architecture_is_near_or_tells_what_stays_plain(
    name: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # so that codes alone make the difference
    config = config_from_hf(ARCHITECTURES[name])
    plain = saved(config, tmp_path)
    loaded = load(str(tmp_path), device="cpu", weights=weights)
    tokens = random_tokens(config, 2, 24)
    assert error(loaded.transformer(tokens), plain(tokens)) < LOGIT_ERRORS[weights]
    assert loaded.matrices is not None
    kinds = (Linear, ExpertProjection, PackedLinear)
    left = {name for name, module in loaded.transformer.named_modules() if isinstance(module, kinds)}
    assert weights == "fp32" or left == loaded.matrices.plain.keys()
    assert weights == "fp32" or all(why in loaded.matrices.words() for why in loaded.matrices.plain.values())
    if weights == "int8":
        assert not [name for name in left if not name.endswith((".router", ".shared_gate"))]


@pytest.mark.parametrize("weights", ["fp32", "int8", "nf4"])
def test_projections_of_one_input_are_one_product(weights: str, tmp_path: Path) -> None:
    config = llama(**SIZES, attention_bias=True, mlp_bias=True)
    plain = saved(config, tmp_path)
    model = load(str(tmp_path), device="cpu", weights=weights).transformer
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if not list(module.children())}
    assert {"joint", "o_proj", "down_proj"} <= names
    assert not names & {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    tokens = random_tokens(config, 2, 7)
    assert error(model(tokens), plain(tokens)) < LOGIT_ERRORS[weights]


def test_torch_is_asked_for_large_pages_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, expected in ((None, "1"), ("0", "0")):
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
        if told is not None:
            monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", told)
        Placing("auto", stored=torch.float32, device=CPU)
        assert os.environ["THP_MEM_ALLOC_ENABLE"] == expected


def test_experts_have_codes_too(tmp_path: Path) -> None:
    name = next(name for name in ARCHITECTURES if name == "granitemoe")
    saved(config_from_hf(ARCHITECTURES[name]), tmp_path)
    kinds = {form: {type(module) for module in load_modules(tmp_path, form)} for form in ("int8", "int4", "nf4")}
    assert QuantizedExperts in kinds["int8"] and QuantizedExperts in kinds["nf4"]
    assert QuantizedLinear in kinds["nf4"] and Int8Linear in kinds["int8"]
    assert {ExpertProjection, NarrowExperts} & kinds["int4"] and QuantizedExperts not in kinds["int4"]


def test_experts_keep_the_type_that_they_are_stored_in(tmp_path: Path) -> None:
    """As fp32 they would take twice the memory, and they are most of a model."""
    config = config_from_hf(ARCHITECTURES["granitemoe"])
    plain = random_model(config, std=0.08)
    save_hf(weights_of(plain), config, str(tmp_path), dtype=torch.bfloat16)
    loaded = load(str(tmp_path), device="cpu", weights="bf16")
    tokens = random_tokens(config, 2, 9)
    assert error(loaded.transformer(tokens), plain(tokens)) < LOGIT_ERRORS["bf16"]
    kept = [module.weight.dtype for module in loaded.transformer.modules() if isinstance(module, ExpertProjection)]
    assert kept and set(kept) == {torch.bfloat16}
    assert loaded.transformer.embed.weight.dtype == torch.bfloat16 and loaded.transformer.dtype == torch.float32
    assert generate_all(loaded.transformer, [Request([3, 4], 5, Sampling(0.0))])[0].ended == "length"


def load_modules(folder: Path, weights: str) -> list[nn.Module]:
    return list(load(str(folder), device="cpu", weights=weights).transformer.modules())


def test_what_stays_plain_is_told(tmp_path: Path) -> None:
    saved(llama(), tmp_path)  # of 48 columns
    matrices = load(str(tmp_path), device="cpu", weights="int4").matrices
    assert matrices is not None
    assert matrices.plain.keys() >= {"lm_head", "blocks.0.attention.q_proj"}
    assert "not a multiple of 16 by 32" in matrices.words()
    assert matrices.n_coded == 0
    whole = load(str(tmp_path), device="cpu", weights="int8").matrices
    assert whole is not None and not whole.plain and whole.n_coded == 3 * 7 + 1
    assert whole.words().startswith("weights int8: asked for")


# -- texts -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned to count in steps of 7, so that it is sure of each token."""
    config = llama(**SIZES, n_layers=2)
    with torch.enable_grad():
        model = random_model(config, std=0.05).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(0)
        for _ in range(60):
            starts = torch.randint(config.vocab_size, (16, 1), generator=generator)
            ids = (starts + 7 * torch.arange(24)) % config.vocab_size
            logits = model(ids[:, :-1])
            F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("trained")
    save_hf(weights_of(model), config, str(folder))
    return folder


def ask(first: int, n: int = 12) -> Request:
    return Request([(first + 7 * place) % 140 for place in range(4)], n, Sampling(0.0))


def expected_of(first: int, n: int = 12) -> list[int]:
    return [(first + 7 * place) % 140 for place in range(4, 4 + n)]


@pytest.mark.parametrize("weights", WEIGHT_FORMS)
def test_the_text_is_the_same(weights: str, trained: Path) -> None:
    model = load(str(trained), device="cpu", weights=weights).transformer
    assert list(generate(model, ask(3))) == expected_of(3)


@pytest.mark.parametrize("weights", ["int8", "int4", "bf16"])
def test_many_texts_are_those_written_alone(weights: str, trained: Path) -> None:
    model = load(str(trained), device="cpu", weights=weights).transformer
    firsts = range(0, 130, 11)
    together = [generation.new for generation in generate_all(model, [ask(first) for first in firsts], n_slots=10)]
    assert together == [list(generate(model, ask(first))) for first in firsts] == [expected_of(own) for own in firsts]
    rows = random_tokens(model.config, 10, 9)
    alone = torch.cat([model(row[None]) for row in rows])
    assert error(model(rows), alone) < 0.02


# -- names -----------------------------------------------------------------------------------------------------------
def test_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights is 'int3'; use auto, fp32, bf16, int8, int4, nf4 or fp8"):
        load(str(tmp_path), weights="int3")
    with pytest.raises(ValueError, match="give one of them"):
        load(str(tmp_path), weights="int8", dtype=torch.float32)
    with pytest.raises(ValueError, match="several devices or ranks share the model"):
        load(str(tmp_path), weights="int8", device=["cpu", "cpu"])


@pytest.mark.parametrize(
    ("stored", "able", "expected"),
    [
        (torch.float32, "avx512_bf16", torch.float32),
        (torch.float32, "", torch.float32),
        (torch.bfloat16, "avx512_bf16", torch.bfloat16),
        (torch.bfloat16, "amx_bf16", torch.bfloat16),
        (torch.bfloat16, "", torch.float32),
        (torch.float16, "avx512_bf16", torch.float32),
    ],
)
def test_auto_keeps_all_digits(
    stored: torch.dtype, able: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True})
    choice = choose_matrices("auto", stored=stored, device=CPU)
    assert choice.plain == expected and choice.codes is None and choice.dtype == torch.float32
    assert torch.finfo(choice.plain).eps <= torch.finfo(stored).eps
    assert choice.why.startswith("stored"), "and says why"
    assert (expected == stored) == ("does not multiply" not in choice.why)
