"""Families that took GPT-2's shape or left it for their own: tiny configurations, published numbers of parameters."""

from __future__ import annotations

from typing import Any

from tests.support.architectures.llama_like import COMMON, LLAMA

IDS = {"vocab_size": 99, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
GPT2 = {**IDS, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
OPT = {
    **COMMON, "hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "word_embed_proj_dim": 48,
}  # fmt: skip
BLOOM = {**IDS, "model_type": "bloom", "hidden_size": 48, "n_layer": 3, "n_head": 4, "seq_length": 64}
MPT = {**IDS, "model_type": "mpt", "d_model": 48, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}
FALCON = {
    **COMMON, "model_type": "falcon", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 5000.0, "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5],
    "long_factor": [1.0, 1.4, 2.0, 3.0, 5.0, 8.0],
}  # fmt: skip

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "model_type": "gpt2", "n_inner": 80, "layer_norm_epsilon": 1e-3},
    "gpt2-unscaled": {
        **GPT2, "model_type": "gpt2", "scale_attn_weights": False, "tie_word_embeddings": False,
        "activation_function": "relu",
    },
    "gptj": {**GPT2, "model_type": "gptj", "n_inner": 80, "rotary_dim": 8, "layer_norm_epsilon": 1e-3},
    "gptj-tied": {
        **GPT2, "model_type": "gptj", "rotary_dim": 12, "activation_function": "relu", "tie_word_embeddings": True,
    },
    "gpt-bigcode": {**GPT2, "model_type": "gpt_bigcode", "n_inner": 80},
    "gpt-bigcode-multi-head": {**GPT2, "model_type": "gpt_bigcode", "multi_query": False, "scale_attn_weights": False},
    "starcoder2": {**LLAMA, "model_type": "starcoder2", "sliding_window": 8, "norm_epsilon": 1e-3},
    "starcoder2-plain": {**LLAMA, "model_type": "starcoder2", "use_bias": False, "tie_word_embeddings": False},
    "phi": {
        **COMMON, "model_type": "phi", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4,
    },
    "phi-grouped": {
        **LLAMA, "model_type": "phi", "head_dim": 20, "layer_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.4},
    },
    "phi3": {**LLAMA, "model_type": "phi3", "sliding_window": 8, "rms_norm_eps": 1e-3},
    "phi3-partial": {
        **LLAMA, "model_type": "phi3", "hidden_size": 64, "tie_word_embeddings": True,
        "rope_parameters": {**LONG, "partial_rotary_factor": 0.75}, "original_max_position_embeddings": 48,
    },
    "phi3-long": {
        **LLAMA, "model_type": "phi3", "rope_parameters": LONG, "original_max_position_embeddings": 16,
    },
    "phimoe": {
        **LLAMA, "model_type": "phimoe", "num_local_experts": 5, "attention_bias": True, "lm_head_bias": True,
        "router_jitter_noise": 0.2, "sliding_window": 8,
    },
    "phimoe-long": {  # transformers 5 takes short_factor at every length, so this is no longer than it
        **LLAMA, "model_type": "phimoe", "num_local_experts": 5, "rms_norm_eps": 1e-3,
        "rope_parameters": {
            **LONG, "short_mscale": 1.3, "long_mscale": 1.3, "original_max_position_embeddings": 48,
        },
    },
    "opt": {**OPT, "model_type": "opt"},
    "opt-plain": {
        **OPT, "model_type": "opt", "enable_bias": False, "layer_norm_elementwise_affine": False,
        "tie_word_embeddings": False, "activation_function": "gelu",
    },
    "opt-narrow": {**OPT, "model_type": "opt", "do_layer_norm_before": False, "word_embed_proj_dim": 24},
    "opt-untied": {
        **OPT, "model_type": "opt", "do_layer_norm_before": False, "word_embed_proj_dim": 24,
        "tie_word_embeddings": False,
    },
    "bloom": {**BLOOM, "layer_norm_epsilon": 1e-3},
    "bloom-six-heads": {**BLOOM, "n_head": 6, "tie_word_embeddings": False},
    "mpt": {**MPT, "attn_config": {"clip_qkv": 1.5, "softmax_scale": 0.3}, "layer_norm_epsilon": 1e-3},
    "mpt-six-heads": {**MPT, "n_heads": 6, "tie_word_embeddings": False},
    "falcon": {**FALCON, "layer_norm_epsilon": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "falcon-multi-head": {**FALCON, "multi_query": False, "bias": True, "tie_word_embeddings": False},
    "falcon-rw": {  # so many heads that bf16 rounds
        **FALCON, "multi_query": False, "bias": True, "alibi": True, "parallel_attn": False, "num_attention_heads": 24,
    },
    "falcon-40b": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 80},
    "falcon-11b": {
        **FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1,
        "tie_word_embeddings": False,
    },
}  # fmt: skip

PARAMETERS: dict[str, int] = {
    "gpt-j-6b": 6_050_882_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "phi-4-mini": 3_836_021_760,
    "phi-4": 14_659_507_200,
    "phi-3.5-moe": 41_873_153_344,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "bloom-560m": 559_214_592,
    "mpt-7b": 6_649_286_656,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "nope-gpt-small": 353_503_232,
    "nope-gpt-medium": 1_713_672_192,
    "nope-gpt-large": 6_853_443_584,
    "nope-gpt-xl": 13_296_156_672,
    "nope-gpt-xxl": 53_179_203_584,
    "nope-gpt-xxxl": 104_719_859_712,
    "starcoderbase-1b": 1_137_207_296,
    "starcoder-15b": 15_517_456_384,
    "starcoder2-3b": 3_030_371_328,
    "starcoder2-7b": 7_173_923_840,
    "starcoder2-15b": 15_655_899_136,
}
