"""LoRA on one CPU thread beside peers: the same rows in the same order, the same first adapter, a fresh process each.

    python benchmarks/finetune.py MODEL --evals WHEEL [--steps 12] [--runs 3] [--precision fp32 bf16] [--sides peft]

MODEL is a folder of Hugging Face's with a chat template, such as SmolLM2-135M-Instruct written by `launch export`;
WHEEL is the wheel of the PyPI package evals, whose questions with their answers are the rows. Four rows a step, rank 8
on all linears, loss on the answers. Tokens are those of rows, not of padding; seconds are of the CPU; the memory is the
peak resident set of the process. peft trains as its users do: rows padded to the longest, AdamW, the model's own loss.
LitGPT has the step of its own command: the same padding, the head in chunks of 128, its chunked loss; MODEL is then one
that `litgpt convert_to_litgpt` has been through. trl has its SFTTrainer's collator and loss, with what that measures
beside. Needs transformers, and the peers that are asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS_A_STEP = 4
RANK, ALPHA, LR = 8, 16.0, 2e-4
FILES = ("quartz/samples", "logiqa/logiqa")
Row = tuple[list[int], int]  # tokens, and how many of them are the prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--evals")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--sides", nargs="+", default=["launchyard", "peft"], choices=SIDES)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.model or not options.evals:
        print("give MODEL and --evals WHEEL, see --help; nothing is measured without them")
        return
    if options.child:
        side, rows, precision = options.child
        print(json.dumps(measured(SIDES[side], options.model, json.loads(Path(rows).read_text()), precision)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        file.write_text(json.dumps(make_rows(options.model, options.evals, options.steps * ROWS_A_STEP)))
        for precision in options.precision:
            for _ in range(options.runs):
                for side in options.sides:
                    print(json.dumps(child(options, side, str(file), precision)), flush=True)


# -- in the parent ---------------------------------------------------------------------------------------------------
def make_rows(model: str, wheel: str, count: int) -> list[Row]:
    """Questions, each with its answer in full, as the model's chat template has them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    questions = []
    with zipfile.ZipFile(wheel) as archive:
        for file in FILES:
            lines = archive.read(f"evals/registry/data/{file}.jsonl").decode().splitlines()
            questions += [json.loads(line) for line in lines]
    random.Random(0).shuffle(questions)
    rows = []
    for question in questions:
        messages = question["input"]
        answer = [{"role": "assistant", "content": f"{answer_of(question)} {messages[-1]['content'].strip()[:160]}"}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(messages + answer, return_dict=False)
        if whole[: len(prompt)] == prompt and len(whole) <= 512:
            rows.append((whole, len(prompt)))
        if len(rows) == count:
            break
    tokens = sum(len(ids) for ids, _ in rows)
    answers = sum(len(ids) - prompt for ids, prompt in rows)
    print(json.dumps({"rows": len(rows), "tokens_a_row": tokens / len(rows), "answers": answers / tokens}), flush=True)
    return rows


def answer_of(question: dict[str, Any]) -> str:
    ideal = question["ideal"]
    return f"The answer is {ideal if isinstance(ideal, str) else ideal[0]}. The question was:"


def child(options: argparse.Namespace, side: str, rows: str, precision: str) -> dict[str, Any]:
    argv = [sys.executable, __file__, options.model, "--evals", options.evals, "--child", side, rows, precision]
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(argv, env=os.environ | threads, check=True, capture_output=True, text=True).stdout
    return {"side": side, "precision": precision, **json.loads(out.splitlines()[-1])}


# -- in the child ----------------------------------------------------------------------------------------------------
Step = Callable[[list[Row]], float]


def measured(make: Callable[[str, str], Step], model: str, rows: list[Row], precision: str) -> dict[str, Any]:
    """The first two steps are not timed."""
    import torch

    torch.set_num_threads(1)
    step = make(model, precision)
    batches = [rows[start : start + ROWS_A_STEP] for start in range(0, len(rows), ROWS_A_STEP)]
    losses = [step(batch) for batch in batches[:2]]
    began = time.process_time()
    losses += [step(batch) for batch in batches[2:]]
    seconds = time.process_time() - began
    tokens = sum(len(ids) for batch in batches[2:] for ids, _ in batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"tokens_per_cpu_second": round(tokens / seconds, 1), "peak_gib": round(peak, 2), "losses": losses}


def first_a(name: str, rank: int, width: int) -> Any:
    """The first A of a projection, by its name in our layout; B is zeros."""
    import torch

    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.randn(rank, width, generator=generator) / width**0.5


def with_peft(model: str, precision: str) -> Step:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config).train()
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            parameter.data.copy_(first_a(our_name(name), *parameter.shape))

    def loss_of(rows: list[Row]) -> Any:
        ids, mask, labels = padded(rows)
        return adapted(input_ids=ids, attention_mask=mask, labels=labels).loss

    return as_users_step(adapted, loss_of)


def with_trl(model: str, precision: str) -> Step:
    """SFTTrainer's model, collator and loss, which measures entropy and accuracy of tokens too, as by default."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    known = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}  # of a row; the rows themselves come step by step
    words = {"bf16": False, "gradient_checkpointing": False, "report_to": "none", "use_cpu": True}
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(model, dtype=dtype),
            SFTConfig(output_dir=folder, per_device_train_batch_size=ROWS_A_STEP, **words),
            train_dataset=Dataset.from_list([known]),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=lora,
        )
    adapted = trainer.model.train()
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            parameter.data.copy_(first_a(our_name(name), *parameter.shape))

    def loss_of(rows: list[Row]) -> Any:
        examples = [{"input_ids": ids, "labels": [*[-100] * at, *ids[at:]]} for ids, at in rows]
        return trainer.compute_loss(adapted, trainer.data_collator(examples))

    return as_users_step(adapted, loss_of)


def as_users_step(adapted: Any, loss_of: Callable[[list[Row]], Any]) -> Step:
    """AdamW on what trains, after clipping."""
    import torch

    learned = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LR, betas=(0.9, 0.95), weight_decay=0.0)

    def step(rows: list[Row]) -> float:
        loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def padded(rows: list[Row]) -> tuple[Any, Any, Any]:
    """(rows, longest): tokens, where they are, and labels of answers that are not shifted yet."""
    import torch

    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full((len(rows), longest), -100)
    for number, (tokens, prompt) in enumerate(rows):
        ids[number, : len(tokens)] = torch.tensor(tokens)
        mask[number, : len(tokens)] = 1
        labels[number, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
    return ids, mask, labels


def our_name(name: str) -> str:
    """base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight -> blocks.3.attention.q_proj"""
    parts = name.split(".")
    at = parts.index("layers")
    part = {"self_attn": "attention", "mlp": "mlp"}[parts[at + 2]]
    return f"blocks.{parts[at + 1]}.{part}.{parts[at + 3]}"


def with_litgpt(model: str, precision: str) -> Step:
    import torch
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    from litgpt.utils import chunked_cross_entropy

    where = ("query", "key", "value", "projection", "mlp")
    config = Config.from_file(
        Path(model) / "model_config.yaml", lora_r=RANK, lora_alpha=ALPHA, **{f"lora_{part}": True for part in where}
    )
    adapted = GPT(config)
    adapted.load_state_dict(torch.load(Path(model) / "lit_model.pth", weights_only=True), strict=False)
    adapted.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    mark_only_lora_as_trainable(adapted)
    for name, parameter in adapted.named_parameters():
        if name.endswith("lora_A"):
            parts = [first_a(part, RANK, parameter.shape[1]) for part in litgpt_parts(name)]
            parameter.data.copy_(torch.cat(parts))

    def loss_of(rows: list[Row]) -> Any:
        ids, _, labels = padded(rows)
        adapted.max_seq_length = max(adapted.max_seq_length, ids.shape[1])
        logits = adapted(ids, lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        return chunked_cross_entropy(logits, labels[..., 1:])

    return as_users_step(adapted, loss_of)


def litgpt_parts(name: str) -> list[str]:
    """transformer.h.3.mlp.fc_1.lora_A -> blocks.3.mlp.gate_proj; its qkv is three of ours."""
    _, _, layer, module, part, _ = name.split(".")
    ours = {"qkv": ("q_proj", "k_proj", "v_proj"), "fc_1": ("gate_proj",), "fc_2": ("up_proj",)}
    found = ours.get(part) or (("o_proj",) if module == "attn" else ("down_proj",))
    return [f"blocks.{layer}.{'attention' if module == 'attn' else 'mlp'}.{each}" for each in found]


def with_launchyard(model: str, precision: str) -> Step:
    import torch

    from launchyard.model.adapter import Adapter
    from launchyard.model.weights.load import open_weights
    from launchyard.training.build import build_model
    from launchyard.training.data.micro_batch import micro_batches
    from launchyard.training.data.reader import Batch
    from launchyard.training.optim.optimizers import make_optimizer
    from launchyard.training.recipe import Recipe
    from launchyard.training.step import train_step

    cpu = torch.device("cpu")
    train = {"max_steps": 1, "global_batch_size": ROWS_A_STEP, "precision": precision, "device": "cpu"}
    config, _ = open_weights(model)
    recipe = Recipe.model_validate(
        {
            "name": "finetune", "data": {"source": "x"}, "train": train, "optimizer": {"lr": LR, "weight_decay": 0.0},
            "model": {**config.model_dump(exclude_none=True), "init_from": model},
        }
    )  # fmt: skip
    adapted = build_model(config, recipe, world_size=1, device=cpu, adapter=Adapter(kind="lora", r=RANK, alpha=ALPHA))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith("lora_a"):
                parameter.copy_(first_a(name.removesuffix(".lora_a"), *parameter.shape))
    optimizer = make_optimizer(adapted, recipe.optimizer)
    done = 0

    def step(rows: list[Row]) -> float:
        nonlocal done
        done += 1
        lengths = [len(ids) - 1 for ids, _ in rows]
        inputs = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
        labels = torch.full(inputs.shape, -100)
        for number, (ids, prompt) in enumerate(rows):
            inputs[number, : lengths[number]] = torch.tensor(ids[:-1])
            labels[number, prompt - 1 : lengths[number]] = torch.tensor(ids[prompt:])
        batch = Batch(inputs, labels, int((labels != -100).sum()), 0, tuple((length,) for length in lengths))
        parts = micro_batches(batch, len(rows), cpu)
        loss, _ = train_step(adapted, optimizer, parts, n_parts=batch.n_valid, number=done, lr=LR, max_grad_norm=1.0)
        return float(loss)

    return step


SIDES: dict[str, Callable[[str, str], Step]] = {
    "launchyard": with_launchyard,
    "peft": with_peft,
    "litgpt": with_litgpt,
    "trl": with_trl,
}


if __name__ == "__main__":
    main()
