"""Tiny models as folders, and tasks of our own, to evaluate in our way and in that of lm-eval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launchyard.model.text.companions import companions_beside
from launchyard.model.weights.hf_export import save_hf
from tests.support.tiny_models import llama, random_model, weights_of

MAX_LENGTH = 96
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
WORDS = ["the cat and the dog, the end of the tale: 1 2 3\n" * 5, "äöü é ñ 你好 😀", "Question: Answer: yes no"]


def gemma_like(*, adds_bos: bool) -> str:
    """The tokenizer.json of a BPE over characters with a mark for spaces."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\n"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "<end>"]
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return str(tokenizer.to_str())


def write_model(folder: Path, *, adds_bos: bool, template: str = TEMPLATE) -> Path:
    """A random llama with such a tokenizer, as a Hugging Face folder."""
    (folder / "t").mkdir(parents=True)
    raw = gemma_like(adds_bos=adds_bos)
    (folder / "t/tokenizer.json").write_text(raw)
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings |= {"chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "t/tokenizer_config.json").write_text(json.dumps(settings))
    rows = 1 + max(json.loads(raw)["model"]["vocab"].values())
    config = llama(vocab_size=rows, padded_vocab_size=rows, max_seq_len=MAX_LENGTH)
    companions = companions_beside(str(folder / "t/tokenizer.json"))
    save_hf(weights_of(random_model(config)), config, str(folder / "hf"), companions=companions)
    return folder / "hf"


def write_tasks(folder: Path) -> Path:
    """A task of each kind, over rows that lie beside it."""
    rows = {
        "choice": [
            {
                "q": f"Question: the cat {'and the dog ' * n}",
                "choices": ["yes", "no", "the end of the tale"],
                "gold": n % 3,
            }
            for n in range(12)
        ],
        "rolling": [{"text": "the cat and the dog, äöü " * n} for n in (1, 3, 30)],
        "until": [{"q": f"the tale: {'1 2 3 ' * n}", "a": "yes"} for n in (0, 1, 5, 20)],
    }
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        task = {
            "task": f"our_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / f"{name}.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            **OF_KIND[name],
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


OF_KIND = {
    "choice": {
        "output_type": "multiple_choice",
        "description": "Say yes or no. ",
        "doc_to_text": "{{q}}Answer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "num_fewshot": 1,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "until": {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["e", "\n\n"], "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))
