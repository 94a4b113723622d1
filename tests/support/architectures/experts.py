"""gpt-oss, Granite, GLM, DeepSeek and Llama 4: tiny configurations, and the published numbers of parameters."""

from __future__ import annotations

from typing import Any

from tests.support.architectures.llama_like import LLAMA

_YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
_GRANITE = {
    "embedding_multiplier": 6.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 3.0,
}  # fmt: skip
_LATENT = {
    **LLAMA, "num_key_value_heads": 4, "q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6, "v_head_dim": 14, "moe_intermediate_size": 24, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
}  # fmt: skip
_LLAMA4 = {
    **LLAMA, "model_type": "llama4_text", "num_hidden_layers": 4, "intermediate_size": 24, "intermediate_size_mlp": 40,
    "head_dim": 12, "num_local_experts": 3, "attention_chunk_size": 8, "floor_scale": 5, "attn_scale": 0.3,
}  # fmt: skip

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt-oss": {
        **LLAMA, "model_type": "gpt_oss", "head_dim": 20, "num_local_experts": 5, "num_experts_per_tok": 2,
        "sliding_window": 8, "rope_parameters": {**_YARN, "truncate": False},
    },
    "gpt-oss-plain": {
        **LLAMA, "model_type": "gpt_oss", "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 3,
        "layer_types": ["full_attention"] * 3, "attention_bias": False, "rope_parameters": {"rope_type": "default"},
    },
    "granite": {**LLAMA, **_GRANITE, "model_type": "granite", "attention_bias": True, "mlp_bias": True,
                "tie_word_embeddings": True},
    "granitemoe": {**LLAMA, **_GRANITE, "model_type": "granitemoe", "num_local_experts": 6, "num_experts_per_tok": 3},
    "glm": {**LLAMA, "model_type": "glm", "head_dim": 24},
    "glm-whole": {**LLAMA, "model_type": "glm", "head_dim": 16, "attention_bias": False, "tie_word_embeddings": True,
                  "partial_rotary_factor": 1.0},
    "glm4": {**LLAMA, "model_type": "glm4", "head_dim": 24},
    "glm4-moe": {
        **LLAMA, "model_type": "glm4_moe", "head_dim": 24, "attention_bias": True, "use_qk_norm": True,
        "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2,
        "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5, "first_k_dense_replace": 1,
    },
    "glm4-moe-plain": {
        **LLAMA, "model_type": "glm4_moe", "moe_intermediate_size": 24, "n_routed_experts": 6, "norm_topk_prob": False,
        "num_experts_per_tok": 2, "first_k_dense_replace": 0,
    },
    "deepseek-v2": {
        **_LATENT, "model_type": "deepseek_v2", "topk_method": "group_limited_greedy", "attention_bias": True,
        "rope_parameters": {**_YARN, "mscale": 0.7, "mscale_all_dim": 0.5},
    },
    "deepseek-v2-lite": {
        **_LATENT, "model_type": "deepseek_v2", "q_lora_rank": None, "n_group": 1, "topk_group": 1,
        "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek-v3": {
        **_LATENT, "model_type": "deepseek_v3", "attention_bias": True, "n_shared_experts": 2,
        "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "deepseek-v3-plain": {**_LATENT, "model_type": "deepseek_v3", "q_lora_rank": None, "norm_topk_prob": False},
    "llama4": {**_LLAMA4, "attention_bias": True, "interleave_moe_layer_step": 2},
    "llama4-plain": {
        **_LLAMA4, "num_experts_per_tok": 2, "moe_layers": [0, 3], "use_qk_norm": False, "no_rope_layers": [1, 0, 0, 1],
        "attn_temperature_tuning": False, "tie_word_embeddings": True,
    },
}  # fmt: skip

PARAMETERS: dict[str, int] = {
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "granite-3.3-2b": 2_533_539_840,
    "granite-3.3-8b": 8_170_864_640,
    "glm-4-9b": 9_399_951_360,
    "glm-4-9b-0414": 9_400_279_040,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352 + 58 * 256,  # and a bias of each expert for its choice
}

# config.json of models that presets are named after, as transformers 4 wrote them.
_DEEPSEEK = {
    "attention_bias": False, "hidden_act": "silu", "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "moe_layer_freq": 1, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "tie_word_embeddings": False, "v_head_dim": 128,
}  # fmt: skip
_YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
RELEASES: dict[str, dict[str, Any]] = {
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "attention_bias": True, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2880, "initial_context_length": 4096, "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072,
        "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "num_local_experts": 32, "rms_norm_eps": 1e-05, "rope_theta": 150000, "sliding_window": 128,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn", "truncate": False,
                         "original_max_position_embeddings": 4096},
        "swiglu_limit": 7.0, "tie_word_embeddings": False, "vocab_size": 201088,
    },
    "granite-3.3-2b": {
        "model_type": "granite", "attention_bias": False, "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "logits_scaling": 8.0, "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "rope_theta": 10000000.0, "tie_word_embeddings": True, "vocab_size": 49159,
    },
    "glm-4-9b": {
        "model_type": "glm", "attention_bias": True, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 13696, "max_position_embeddings": 131072, "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-07,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 151552,
    },
    "deepseek-v2-lite": {
        **_DEEPSEEK, "model_type": "deepseek_v2", "first_k_dense_replace": 1, "hidden_size": 2048,
        "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 16, "num_experts_per_tok": 6,
        "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None, "routed_scaling_factor": 1.0,
        "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}, "scoring_func": "softmax",
        "topk_group": 1, "topk_method": "greedy", "vocab_size": 102400,
    },
    "deepseek-v3": {
        **_DEEPSEEK, "model_type": "deepseek_v3", "ep_size": 1, "first_k_dense_replace": 3, "hidden_size": 7168,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_group": 8, "n_routed_experts": 256,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
        "routed_scaling_factor": 2.5, "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        "scoring_func": "sigmoid", "topk_group": 4, "topk_method": "noaux_tc", "vocab_size": 129280,
    },
    "llama-2-70b": {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 8192, "intermediate_size": 28672,
        "max_position_embeddings": 4096, "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "tinyllama-1.1b": {
        "model_type": "llama", "attention_bias": False, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 5632, "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 22,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "smollm2-135m": {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
        "is_llama_config": True, "max_position_embeddings": 8192, "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
        "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152,
    },
}  # fmt: skip
