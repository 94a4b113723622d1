"""Llama and its nearest: tiny configurations, and the published numbers of parameters."""

from __future__ import annotations

from typing import Any

COMMON = {"vocab_size": 99, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 64}
LLAMA = {
    **COMMON, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, "model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 20},
    "llama-llama3": {**LLAMA, "model_type": "llama", "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": 8},
    "mistral-full": {**LLAMA, "model_type": "mistral", "sliding_window": None, "head_dim": 20},
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 5, "sliding_window": 8},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen2-window": {
        **LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
    },
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 20, "attention_bias": True, "tie_word_embeddings": True},
    "qwen3-moe": {
        **LLAMA, "model_type": "qwen3_moe", "head_dim": 20, "num_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [1],
    },
    "ernie4-5": {**LLAMA, "model_type": "ernie4_5", "head_dim": 20, "use_bias": True, "rms_norm_eps": 1e-3},
    "ernie4-5-untied": {**LLAMA, "model_type": "ernie4_5", "head_dim": None, "tie_word_embeddings": False},
    "internlm3": {
        **LLAMA, "model_type": "internlm3", "head_dim": 20, "qkv_bias": True, "bias": True,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0},
    },
}  # fmt: skip

PARAMETERS: dict[str, int] = {
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "codellama-7b": 6_738_546_688,
    "codellama-34b": 33_743_970_304,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "r1-distill-qwen-1.5b": 1_777_088_000,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "ernie-4.5-0.3b": 360_748_032,
    "internlm3-8b": 8_804_241_408,
}
