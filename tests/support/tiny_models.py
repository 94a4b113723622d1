"""Tiny models, tokenizers and checkpoints for the tests of this folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.network.transformer import Transformer
from launchyard.storage.safetensors import DTYPE_BYTES, safetensors_header
from launchyard.storage.shards import MANIFEST, FileEntry, Manifest, TensorEntry, TensorPiece, sealed

LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=16)


def neox(**knobs: object) -> ModelConfig:
    """GPT-NeoX with partial rotation, biases and a parallel residual, unless said otherwise."""
    base: dict[str, object] = {
        "family": "gpt_neox", "dim": 48, "n_layers": 3, "n_heads": 4, "ffn_dim": 96, "vocab_size": 131,
        "padded_vocab_size": 131, "max_seq_len": 64, "rope_fraction": 0.5, "norm": "layernorm", "activation": "gelu",
        "gated_mlp": False, "parallel_residual": True, "attention_bias": True, "mlp_bias": True,
    }  # fmt: skip
    return ModelConfig.model_validate(base | knobs)


def llama(**knobs: object) -> ModelConfig:
    """Llama with two queries a key, unless said otherwise."""
    base: dict[str, object] = {
        "family": "llama", "dim": 48, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 80, "vocab_size": 131,
        "padded_vocab_size": 131, "max_seq_len": 64, "rope_theta": 5000.0,
    }  # fmt: skip
    return ModelConfig.model_validate(base | knobs)


# Every switch that a family has, at least once.
CONFIGS = {
    "neox": neox(),
    "neox-sequential": neox(parallel_residual=False),
    "neox-tied-tanh": neox(tie_embeddings=True, activation="gelu_tanh", rope_fraction=1.0),
    "neox-no-attention-bias": neox(attention_bias=False, rope_theta=500.0, norm_eps=1e-3),
    "neox-padded": neox(vocab_size=100),
    "llama": llama(),
    "llama-multi-head": llama(n_kv_heads=4, attention_bias=True, mlp_bias=True),
    "llama-one-kv-tied": llama(n_kv_heads=1, tie_embeddings=True),
    "llama-scaled": llama(rope_scaling=LLAMA3),
    "llama-wide-heads": llama(head_dim=20, norm_eps=1e-3),
    "qwen2": llama(family="qwen2", qkv_bias=True),
}


def random_model(config: ModelConfig, *, seed: int = 0, std: float = 0.2) -> Transformer:
    """Weights large enough that every part of the model shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
    return model.eval()


def random_tokens(config: ModelConfig, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def weights_of(model: Transformer) -> dict[str, Tensor]:
    """Parameters by name, a tied one once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def byte_tokenizer(path: Path, *, vocab_size: int = 131) -> str:
    """A byte-level BPE with some merges, so that one id may be part of a character or several characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size, 300),
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the dog, the end of the tale: " * 5, "äöü é ñ 你好 😀"], trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return str(path)


def word_tokenizer(path: Path) -> str:
    """Words with a leading mark for the space, as SentencePiece has them: its decoder strips the first space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<unk>", "</s>", *(["▁the", "▁cat", "▁sat", "▁on", "▁mat", "s", ".", ",", "▁", "é"])]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return str(path)


def write_checkpoint(
    folder: Path, config: ModelConfig, weights: dict[str, Tensor], *, step: int = 1, **more: object
) -> Manifest:
    """One file, every tensor in two pieces of rows, and beside it a moment that no model asks for.

    more: fields of the manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{key}": tensor for key, tensor in weights.items()} | {
        "optimizer.embed.weight.exp_avg": torch.ones(3)
    }
    parts = {
        (key, start): tensor[start:stop].contiguous()
        for key, tensor in tensors.items()
        for start, stop in ((0, len(tensor) // 2), (len(tensor) // 2, len(tensor)))
    }
    header = safetensors_header({f"{key}@{start}": ("F32", tuple(part.shape)) for (key, start), part in parts.items()})
    data, pieces = bytearray(header), {key: [] for key in tensors}
    for (key, start), part in parts.items():
        raw = part.numpy().tobytes()
        offsets = (start, *[0] * (part.ndim - 1))
        pieces[key].append(
            TensorPiece(offsets=offsets, sizes=tuple(part.shape), file="a.safetensors", start=len(data),
                        length=len(raw), xxh3=xxhash.xxh3_64_hexdigest(raw))
        )  # fmt: skip
        assert len(raw) == DTYPE_BYTES["F32"] * part.numel()
        data += raw
    (folder / "a.safetensors").write_bytes(data)
    entry = FileEntry(bytes=len(data), header_xxh3=xxhash.xxh3_64_hexdigest(header), header_bytes=len(header))
    manifest = Manifest(
        step=step, attempt=0, world_size=1, kind="permanent", created=time.time(), train_state={"step": step},
        model=config.model_dump(mode="json"), data_digest="d", recipe_hash="r", versions={},
        files={"a.safetensors": entry},
        tensors={
            key: TensorEntry(dtype="F32", shape=tuple(tensor.shape), pieces=tuple(pieces[key]))
            for key, tensor in tensors.items()
        },
    )  # fmt: skip
    manifest = manifest.model_copy(update=more)
    (folder / MANIFEST).write_text(sealed(manifest))
    return manifest


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None takes a key away."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: each for key, each in value.items() if each is not None}))
