"""The families, a file each; see docs/guides/add-a-family.md. To add one: its file, and its name in the list here."""

from __future__ import annotations

from launchyard.model.zoo.families import (
    arcee,
    bloom,
    cohere,
    deepseek,
    exaone4,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    llama,
    llama4,
    mistral,
    mpt,
    nemotron,
    nope_gpt,
    olmo,
    opt,
    phi,
    qwen2,
    qwen2_moe,
    qwen3,
    seed_oss,
    smollm3,
    stablelm,
    starcoder,
)

MODULES = (
    gpt_neox, llama, mistral, qwen2, qwen2_moe, qwen3, gemma, olmo, cohere, smollm3, exaone4, nemotron, stablelm,
    seed_oss, arcee, gpt_oss, granite, glm, deepseek, llama4, gpt2, starcoder, phi, opt, bloom, mpt, falcon, nope_gpt,
)  # fmt: skip
