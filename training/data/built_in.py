"""Sets of data that are known by a short name: where they lie on the Hugging Face hub, and what they hold. Light.

Names and paths are those of the hub. No set has been fetched where this was written: a path that is another one now is
an error of `launch download`, which lists what there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from launchyard.training.sections.data import DataKind


@dataclass(frozen=True)
class BuiltIn:
    """A set of the hub. files: patterns of the paths that are read; text_key: the key or column of its text."""

    repo: str
    kind: DataKind
    files: tuple[str, ...]
    text_key: str = "text"


BUILT_IN = {
    "alpaca": BuiltIn("tatsu-lab/alpaca", "instruct", ("data/train-*.parquet",)),
    "alpaca-cleaned": BuiltIn("yahma/alpaca-cleaned", "instruct", ("alpaca_data_cleaned.json",)),
    "alpaca-gpt4": BuiltIn("vicgalle/alpaca-gpt4", "instruct", ("data/train-*.parquet",)),
    "deita": BuiltIn("HuggingFaceH4/deita-10k-v0-sft", "instruct", ("data/train_sft-*.parquet",)),
    "dolly": BuiltIn("databricks/databricks-dolly-15k", "instruct", ("databricks-dolly-15k.jsonl",)),
    "flan": BuiltIn("Muennighoff/flan", "instruct", ("train/*.jsonl",)),
    "lima": BuiltIn("GAIR/lima", "instruct", ("train.jsonl",)),
    "longform": BuiltIn("akoksal/LongForm", "instruct", ("data/train-*.parquet",)),
    "openhermes": BuiltIn("teknium/OpenHermes-2.5", "instruct", ("openhermes2_5.json",)),
    "smoltalk": BuiltIn("HuggingFaceTB/smoltalk", "instruct", ("data/all/train-*.parquet",)),
    "ultrachat": BuiltIn("HuggingFaceH4/ultrachat_200k", "instruct", ("data/train_sft-*.parquet",)),
    "hh-rlhf": BuiltIn("Anthropic/hh-rlhf", "preference", ("*-base/train.jsonl.gz",)),
    "orca-pairs": BuiltIn("Intel/orca_dpo_pairs", "preference", ("orca_rlhf.jsonl",)),
    "ultrafeedback": BuiltIn("HuggingFaceH4/ultrafeedback_binarized", "preference", ("data/train_prefs-*.parquet",)),
    "fineweb": BuiltIn("HuggingFaceFW/fineweb", "tokens", ("sample/10BT/*.parquet",)),
    "fineweb-edu": BuiltIn("HuggingFaceFW/fineweb-edu", "tokens", ("sample/10BT/*.parquet",)),
    "fineweb-100bt": BuiltIn("HuggingFaceFW/fineweb", "tokens", ("sample/100BT/*.parquet",)),
    "fineweb-350bt": BuiltIn("HuggingFaceFW/fineweb", "tokens", ("sample/350BT/*.parquet",)),
    "fineweb-edu-100bt": BuiltIn("HuggingFaceFW/fineweb-edu", "tokens", ("sample/100BT/*.parquet",)),
    "fineweb-edu-350bt": BuiltIn("HuggingFaceFW/fineweb-edu", "tokens", ("sample/350BT/*.parquet",)),
    "openwebtext": BuiltIn("Skylion007/openwebtext", "tokens", ("plain_text/train-*.parquet",)),
    "slimpajama": BuiltIn("cerebras/SlimPajama-627B", "tokens", ("train/*.jsonl.zst",)),
    "starcoder": BuiltIn("bigcode/starcoderdata", "tokens", ("*/train-*.parquet",), text_key="content"),
    "tinystories": BuiltIn("roneneldan/TinyStories", "tokens", ("data/train-*.parquet",)),
}
# Files of a set that is none of these, and those beside it that say what it is.
ROW_FILES = ("**.parquet", "**.jsonl", "**.jsonl.gz", "**.jsonl.zst", "**.json", "**.json.gz", "**.txt", "**.arrow")
ABOUT = ("README.md", "LICENSE*")
