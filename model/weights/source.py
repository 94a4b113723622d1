"""Resolves a MODEL (a Hugging Face folder, a checkpoint or a run) to its files. Light; reads no tensor."""

from __future__ import annotations

import json
import os
import posixpath
import re
from dataclasses import dataclass
from typing import Any, Literal

from launchyard.model.config import ModelConfig
from launchyard.model.text.companions import TOKENIZER, read_companions
from launchyard.model.text.special_tokens import with_ids
from launchyard.model.weights.tie import settled
from launchyard.model.zoo import config_from_hf
from launchyard.run import layout
from launchyard.run.checkpoints import newest_checkpoint
from launchyard.run.rundir import RunDir
from launchyard.storage.files import exists, normal, read, typed_path
from launchyard.storage.shards import MANIFEST, read_manifest

HF_CONFIG = "config.json"
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")  # gpt2, EleutherAI/pythia-160m


@dataclass(frozen=True)
class Source:
    """`kind` is the format of the weights in `folder`; `tokenizer` is the path or URL of a tokenizer.json."""

    kind: Literal["hf", "checkpoint"]
    folder: str
    tokenizer: str | None

    def companions(self) -> dict[str, bytes]:
        """What stands beside the weights, by file name; of a checkpoint that is in tokenizer/ of its run.

        Special ids that config.json alone holds stand in generation_config.json.
        """
        if self.kind == "hf":
            return with_ids(read_companions(self.folder), read_hf_config(self.folder))
        return read_companions(posixpath.dirname(self.tokenizer)) if self.tokenizer else {}


def find_source(source: str) -> Source:
    """Local path or fsspec URL of an HF folder, a checkpoint folder or a run; of a run, the newest that counts.

    FileNotFoundError names the files and folders that were searched.
    """
    where = normal(typed_path(source))
    if exists(f"{where}/{MANIFEST}"):
        return Source("checkpoint", where, _first(f"{where}/{TOKENIZER}", _run_tokenizer(where)))
    if exists(f"{where}/{HF_CONFIG}"):
        return Source("hf", where, _first(f"{where}/{TOKENIZER}"))
    run = RunDir(where)
    newest = newest_checkpoint(run)
    if newest is not None:
        folder = run.path(run.checkpoint_dir(newest))
        return Source("checkpoint", folder, _first(_run_tokenizer(folder)))
    raise FileNotFoundError(_not_found(source, where))


def read_config(source: str) -> ModelConfig:
    """The config of any MODEL, without its weights."""
    found = find_source(source)
    if found.kind == "checkpoint":
        return ModelConfig.model_validate(read_manifest(found.folder).model)
    hf = read_hf_config(found.folder)
    return settled(config_from_hf(hf), hf, found.folder)


def read_hf_config(folder: str) -> dict[str, Any]:
    """config.json of a Hugging Face folder, local or URL; ValueError if it is no JSON object."""
    return read_json(f"{normal(folder)}/{HF_CONFIG}")


def read_json(path: str) -> dict[str, Any]:
    try:
        value = json.loads(read(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def _run_tokenizer(checkpoint: str) -> str:
    """RUN/tokenizer/tokenizer.json of RUN/checkpoints/step-N."""
    if "://" not in checkpoint:
        checkpoint = os.path.abspath(checkpoint)
    return f"{posixpath.dirname(posixpath.dirname(checkpoint))}/{layout.TOKENIZER}"


def _first(*paths: str) -> str | None:
    return next((path for path in paths if exists(path)), None)


def hub_advice(name: str) -> str:
    """Returns a sentence for a name that could be one of the Hugging Face hub; empty if it cannot."""
    if not _HUB_NAME.fullmatch(name):
        return ""
    folder = name.rpartition("/")[2]
    return (
        "names of the Hugging Face hub are not fetched; get the files first: "
        f"hf download {name} --local-dir {folder}, then name ./{folder}"
    )


def _not_found(source: str, where: str) -> str:
    if "://" not in where and not os.path.isdir(where):
        advice = hub_advice(source)
        what = f"{source}: no such folder. A model is an HF folder, a checkpoint or a run: a path or an fsspec URL"
        return f"{what}; {advice}" if advice else what
    return (
        f"{source} holds no model: looked for {HF_CONFIG} (an HF folder), {MANIFEST} (a checkpoint) and "
        f"{layout.CHECKPOINTS}/*/{MANIFEST} (a run that has saved) in {where}"
    )
