"""Adapters in PEFT's folders: peft is the judge of what they mean, both ways."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import adapter_shapes
from launchyard.model.weights.adapters.merge import Rounded, open_adapted
from launchyard.model.weights.adapters.peft_export import save_peft
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import build, load, low_rank_merged, open_weights, resized
from launchyard.model.weights.source import read_config
from launchyard.model.zoo.families.gpt2 import FAMILIES as GPT2
from tests.support.tiny_models import edit_json, llama, neox, random_model, random_tokens, weights_of

peft = pytest.importorskip("peft", reason="peft is not installed")
GPT2_TINY = GPT2[0].presets["gpt2"].model_copy(
    update={"dim": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 12, "ffn_dim": 96, "vocab_size": 131,
            "padded_vocab_size": 131, "max_seq_len": 64}
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of peft
TIED = llama(tie_embeddings=True)
# config of the base, and what peft is told
ADAPTERS: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "llama": (llama(), {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "all-linear, rank-stabilised": (llama(), {"target_modules": "all-linear", "use_rslora": True}),
    "dora": (llama(), {"target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "regex": (llama(), {"target_modules": r".*layers\.[01]\..*(q|up)_proj"}),
    "some layers": (llama(), {"target_modules": ["k_proj", "o_proj"], "layers_to_transform": [1]}),
    "excluded": (llama(), {"target_modules": ["k_proj", "o_proj"], "exclude_modules": r".*\.2\..*"}),
    "patterns": (
        llama(),
        {
            "target_modules": ["q_proj", "k_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"k_proj": 3},
        },
    ),
    "whole modules": (llama(), {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "biases": (
        llama(attention_bias=True, mlp_bias=True),
        {"target_modules": ["q_proj", "down_proj"], "bias": "lora_only"},
    ),
    "biases of updates": (
        llama(attention_bias=True, mlp_bias=True),
        {"target_modules": ["q_proj", "down_proj"], "lora_bias": True},
    ),
    "head alone": (llama(), {"target_modules": ["lm_head"]}),
    "table": (llama(), {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied table": (TIED, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied head": (TIED, {"target_modules": ["lm_head", "q_proj"]}),
    "tied table, whole": (TIED, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "kept tied": (TIED, {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "kept tied, whole": (
        TIED,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tokens": (llama(), {"target_modules": ["q_proj"], "trainable_token_indices": [5, 130, 7]}),
    "tokens of a tied table": (TIED, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 130, 7]}),
    "tokens of table and head": (
        llama(),
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 9], "lm_head": [130]}},
    ),
    "tokens, tied, of a head of its own": (
        TIED,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 9], "lm_head": [130]}},
    ),
    "tokens alone": (llama(), {"token_indices": [5, 130, 7]}),
    "tokens of a tied table alone": (TIED, {"token_indices": [5, 7]}),
    "tokens of a head alone": (llama(), {"token_indices": [9], "target_modules": ["lm_head"]}),
    "every bias": (neox(), {"target_modules": ["query_key_value"], "bias": "all"}),
    "gpt2": (GPT2_TINY, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2, dora": (GPT2_TINY, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    "neox": (neox(), {"target_modules": ["query_key_value", "dense_4h_to_h"]}),
    "neox, dora": (neox(), {"target_modules": ["query_key_value"], "use_dora": True}),
}


def write_base(config: ModelConfig, folder: Path) -> Path:
    save_hf(weights_of(random_model(config, std=0.2)), config, str(folder))
    return folder


def write_adapter(base: Path, folder: Path, **options: Any) -> Any:
    """peft's model, with an adapter of random numbers that it wrote into `folder`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if "token_indices" in options:
        config = peft.TrainableTokensConfig(task_type="CAUSAL_LM", **options)
    else:
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | options)
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    adapted.save_pretrained(folder)
    return adapted.eval()


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    out = model(tokens)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_base_with_an_adapter_is_what_peft_makes_of_both(tmp_path: Path, name: str) -> None:
    config, options = ADAPTERS[name]
    base = write_base(config, tmp_path / "base")
    theirs = write_adapter(base, tmp_path / "adapter", **options)
    tokens = random_tokens(config, 2, 20)
    ours = load(f"{base}+{tmp_path / 'adapter'}", device="cpu")
    torch.testing.assert_close(logits(ours.transformer, tokens), logits(theirs, tokens), rtol=1e-4, atol=1e-4)
    assert (
        logits(ours.transformer, tokens) - logits(load(str(base), device="cpu").transformer, tokens)
    ).abs().max() > 0.01
    assert read_config(str(tmp_path / "adapter")) == ours.config


def test_an_adapter_in_a_pickle_is_read_without_running_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = write_base(llama(), tmp_path / "base")
    theirs = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    tokens = random_tokens(llama(), 1, 9)
    ours = load(str(tmp_path / "adapter"), device="cpu")
    torch.testing.assert_close(logits(ours.transformer, tokens), logits(theirs, tokens), rtol=1e-4, atol=1e-4)


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "another kind": ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    "an unknown key": ({"use_qalora": True}, "use_qalora: true: not supported"),
    "parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    "another start": ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base"),
    "another rank": ({"r": 8}, r"has shape \[4, 48\]; the base and the adapter's config make it \[8, 48\]"),
    "a target without tensors": (
        {"target_modules": ["q_proj", "up_proj"]},
        "up_proj, of which its file has no",
    ),
    "no magnitudes": ({"use_dora": True}, "use_dora is True, and .* has no magnitude"),
    "a base that is gone": ({"base_model_name_or_path": "/nowhere/at/all"}, "--base"),
    "names that are none": ({"modules_to_save": 3}, "modules_to_save is 3, and must be a name or a list of names"),
    "ranks that are none": ({"rank_pattern": ["q_proj"]}, r'rank_pattern is \["q_proj"\], and must be an object'),
    "layers that are none": ({"layers_to_transform": "all"}, 'layers_to_transform is "all", and must be a number'),
    "tokens without rows": ({"trainable_token_indices": [3]}, "tokens that its file has no rows of"),
    "tokens that are none": ({"trainable_token_indices": {"embed_tokens": "all"}}, "must be a number or a list"),
    "no base": ({"base_model_name_or_path": None}, "names no base"),
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    write_adapter(write_base(llama(), folder / "base"), folder / "adapter", target_modules=["q_proj"])
    return folder / "adapter"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_honoured_is_refused_by_name(adapter: Path, name: str) -> None:
    changes, message = REFUSED[name]
    path = adapter / "adapter_config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changes))
    try:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(str(adapter), device="cpu")
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable_token_indices": None}, r"has shape \[2, 48\]; .* make it \[0, 48\]"),
        ({"trainable_token_indices": [3, 131]}, "goes to 131, and .* is over a base with 131 tokens"),
    ],
)
def test_tokens_that_the_base_does_not_have_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write_adapter(
        write_base(llama(), tmp_path / "base"),
        tmp_path / "a",
        target_modules=["q_proj"],
        trainable_token_indices=[3, 4],
    )
    edit_json(tmp_path / "a/adapter_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "a"), device="cpu")


def test_another_base_is_refused_by_a_shape(adapter: Path, tmp_path: Path) -> None:
    wide = write_base(llama(dim=64, n_heads=4), tmp_path / "wide")
    with pytest.raises(ValueError, match=r"shape \[4, 48\].*\[4, 64\].*--base"):
        load(f"{wide}+{adapter}", device="cpu")
    fewer = write_base(llama(n_layers=2), tmp_path / "fewer")
    with pytest.raises(ValueError, match="2 layers, has none"):
        load(f"{fewer}+{adapter}", device="cpu")


# -- out -------------------------------------------------------------------------------------------------------------
@dataclass
class Trained:
    """What CheckpointWeights gives of a run over `base`."""

    base: str
    adapter: Adapter
    form: str | None = None
    grown: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.init_from = self.base
        theirs, weights = open_weights(self.base)
        self.config = theirs.model_copy(update=self.grown)
        self._weights = resized(weights, theirs, self.config)
        generator = torch.Generator().manual_seed(2)
        shapes = adapter_shapes(self.config, self.adapter)
        self._added = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}

    def keys(self) -> list[str]:
        return self._weights.keys()

    def added(self, name: str) -> Tensor:
        return self._added[name]

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32

    def get(self, key: str) -> Tensor:
        found = self._weights.get(key)
        return found + 1 if any(fnmatchcase(key, pattern) for pattern in self.adapter.trained) else found

    def rows(self, wanted: Any) -> Any:
        for key, rows in wanted.items():
            yield key, self.get(key)[rows.start : rows.stop]


RUNS: dict[str, tuple[ModelConfig, Adapter]] = {
    "llama": (llama(), Adapter(kind="lora", r=3)),
    "ranks": (
        llama(),
        Adapter(kind="lora", r=3, ranks={r"1\..*q_proj": 5}, alphas={"v_proj": 2.0}, scaling="alpha/sqrt(r)"),
    ),
    "dora": (llama(), Adapter(kind="dora", r=3, targets=("q_proj", "mlp.up_proj"))),
    "tied head": (TIED, Adapter(kind="lora", r=3, targets=("lm_head", "q_proj"))),
    "table": (llama(), Adapter(kind="lora", r=3, targets=("embed", "q_proj"))),
    "whole norms": (llama(), Adapter(kind="lora", r=3, trained=("norm.weight", "blocks.1.mlp_norm.weight"))),
    "tokens": (llama(), Adapter(kind="lora", r=3, tokens=(5, 130, 7))),
    "tokens, tied": (TIED, Adapter(kind="dora", r=3, targets=("q_proj",), tokens=(5, 130, 7))),
    "every bias": (neox(), Adapter(kind="lora", r=3, targets=("q_proj",), trained=("*.bias",))),
    "biases of the targets": (
        llama(attention_bias=True, mlp_bias=True),
        Adapter(kind="lora", r=3, targets=("q_proj", "down_proj"), trained=("*.q_proj.bias", "*.down_proj.bias")),
    ),
    "biases elsewhere": (
        neox(),
        Adapter(kind="lora", r=3, targets=("q_proj",), trained=("norm.*", "*.up_proj.bias", "*.mlp_norm.weight")),
    ),
    "gpt2": (GPT2_TINY, Adapter(kind="lora", r=3, targets=("q_proj", "v_proj", "up_proj"), alphas={"v_proj": 2.0})),
    "gpt2, dora": (GPT2_TINY, Adapter(kind="dora", r=3, targets=("q_proj", "v_proj"))),
    "neox": (neox(), Adapter(kind="lora", r=3, ranks={"k_proj": 2})),
    "neox, dora": (neox(), Adapter(kind="dora", r=3, targets=("k_proj", "down_proj"))),
}


@pytest.mark.parametrize("name", RUNS)
def test_peft_makes_the_same_of_an_exported_adapter(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    config, adapter = RUNS[name]
    base = write_base(config, tmp_path / "base")
    run = Trained(str(base), adapter)
    save_peft(run, str(tmp_path / "out"))
    merged = low_rank_merged(run, adapter, run.added)
    ours = build(merged.config, merged, device=torch.device("cpu"), dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    tokens = random_tokens(config, 2, 20)
    torch.testing.assert_close(logits(theirs, tokens), logits(ours, tokens), rtol=1e-4, atol=1e-4)
    back = load(str(tmp_path / "out"), device="cpu")
    torch.testing.assert_close(logits(back.transformer, tokens), logits(ours, tokens), rtol=1e-4, atol=1e-4)


def test_rows_that_the_base_lacks_are_told(tmp_path: Path) -> None:
    base = write_base(llama(), tmp_path / "base")
    grown = {"vocab_size": 140, "padded_vocab_size": 140}
    for tokens, told in (((139,), True), ((), False)):
        run = Trained(str(base), Adapter(kind="lora", tokens=tokens), grown=grown)
        notes = save_peft(run, str(tmp_path / f"out-{told}")).notes
        assert any("has 140 rows, that of the base 131: peft needs" in note for note in notes) == told


def test_a_bias_of_some_updated_modules_has_no_place_in_the_folder(tmp_path: Path) -> None:
    base = write_base(neox(), tmp_path / "base")
    run = Trained(str(base), Adapter(kind="lora", trained=("blocks.1.*.up_proj.bias",)))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.dense_h_to_4h trained whole beside its update"):
        save_peft(run, str(tmp_path / "out"))


def test_a_merge_is_base_and_adapter_rounded_once(adapter: Path, tmp_path: Path) -> None:
    """And a merge of the same again is the same: nothing is added twice."""
    half = tmp_path / "half"
    save_hf(weights_of(random_model(llama(), std=0.2)), llama(), str(half), dtype=torch.bfloat16)
    merged = []
    for name in ("once", "again"):
        _, weights = open_adapted(str(adapter), str(half))
        rounded = Rounded(weights, torch.bfloat16)
        save_hf(rounded, weights.config, str(tmp_path / name), dtype=torch.bfloat16)
        merged.append((tmp_path / name / "model.safetensors").read_bytes())
        _, written = open_weights(str(tmp_path / name))
        exact = weights.get("blocks.0.attention.q_proj.weight")
        assert torch.equal(written.get("blocks.0.attention.q_proj.weight"), exact.bfloat16())
        assert 0 < rounded.largest_difference < 0.02
    assert merged[0] == merged[1]
    with pytest.raises(ValueError, match="holds no adapter"):
        open_adapted(str(tmp_path / "once"), None)
