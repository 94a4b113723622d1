"""Resolves a MODEL (a Hugging Face folder, a GGUF file, a checkpoint or a run) to its files. Light; reads no tensor."""

from __future__ import annotations

import json
import os
import posixpath
import re
from dataclasses import dataclass
from typing import Any, Literal

from launchyard.model.config import ModelConfig
from launchyard.model.text.companions import TOKENIZER, read_companions
from launchyard.model.text.find import GGUF, carrier_in, read_tokenizer_files
from launchyard.model.text.special_tokens import with_ids
from launchyard.model.weights.tie import settled
from launchyard.model.zoo import config_from_hf
from launchyard.run import layout
from launchyard.run.checkpoints import newest_checkpoint
from launchyard.run.rundir import RunDir
from launchyard.storage.files import exists, listdir, normal, read, typed_path
from launchyard.storage.hub_cache import find_downloaded, hub_advice
from launchyard.storage.shards import MANIFEST, read_manifest

HF_CONFIG = "config.json"
_PART_OF = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")


@dataclass(frozen=True)
class Source:
    """`kind` is the format of the weights in `folder`, which is the file itself if it is gguf.

    `tokenizer` is the path or URL of the file with the vocabulary: of a folder whatever model/text/find.py reads, else
    a tokenizer.json; a GGUF file has its own inside, and is that file.
    """

    kind: Literal["hf", "checkpoint", "gguf"]
    folder: str
    tokenizer: str | None

    @property
    def name(self) -> str:
        """Of the folder or file, without its ending."""
        return posixpath.basename(self.folder).removesuffix(GGUF)

    def companions(self) -> dict[str, bytes]:
        """What stands beside the weights, by file name; of a checkpoint that is in tokenizer/ of its run.

        Special ids that config.json alone holds stand in generation_config.json.
        """
        found = self.stored_companions()
        return with_ids(found, read_hf_config(self.folder)) if self.kind == "hf" else found

    def stored_companions(self) -> dict[str, bytes]:
        """The same without those ids. ValueError names a vocabulary that cannot be turned into a tokenizer.json."""
        if self.kind == "gguf":
            from launchyard.model.weights.gguf_header import gguf_companions

            return gguf_companions(self.folder)
        if self.tokenizer is not None:
            return read_tokenizer_files(self.tokenizer)
        return read_companions(self.folder) if self.kind == "hf" else {}


def find_source(source: str) -> Source:
    """Local path or fsspec URL of an HF folder, a checkpoint folder or a run; of a run, the newest that counts.

    Or a GGUF file, or a folder that holds one and no other model; ValueError if there are several. A name of the
    Hugging Face hub means its files in the local cache, unless a local path has that name. FileNotFoundError names the
    files and folders that were searched.
    """
    where = normal(typed_path(source))
    if "://" not in where and not os.path.exists(where):
        where = find_downloaded(source) or where
    if where.endswith(GGUF) and exists(where):
        return Source("gguf", where, where)
    if exists(f"{where}/{MANIFEST}"):
        return Source("checkpoint", where, _first(f"{where}/{TOKENIZER}", _run_tokenizer(where)))
    if exists(f"{where}/{HF_CONFIG}"):
        return Source("hf", where, carrier_in(where))
    run = RunDir(where)
    newest = newest_checkpoint(run)
    if newest is not None:
        folder = run.path(run.checkpoint_dir(newest))
        return Source("checkpoint", folder, _first(_run_tokenizer(folder)))
    file = _gguf_in(where)
    if file is not None:
        return Source("gguf", file, file)
    raise FileNotFoundError(_not_found(source, where))


def _gguf_in(folder: str) -> str | None:
    """The only GGUF file of a folder, or the first part of the only one; the file of an image reader is no model."""
    names = sorted(name for name in listdir(folder) if name.endswith(GGUF) and not name.startswith("mmproj"))
    wholes = {_PART_OF.sub("", name): name for name in reversed(names)}
    if len(wholes) > 1:
        raise ValueError(f"{folder} holds {len(wholes)} GGUF files, {', '.join(names[:4])}; name the one that is meant")
    return f"{folder}/{names[0]}" if names else None


def read_config(source: str) -> ModelConfig:
    """The config of any MODEL, without its weights."""
    found = find_source(source)
    if found.kind == "checkpoint":
        return ModelConfig.model_validate(read_manifest(found.folder).model)
    if found.kind == "gguf":
        from launchyard.model.weights.gguf_header import GgufHeader, gguf_config

        return gguf_config(GgufHeader(found.folder))
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


def _not_found(source: str, where: str) -> str:
    if "://" not in where and not os.path.isdir(where):
        advice = hub_advice(source)
        what = (
            f"{source}: no such folder or file. A model is an HF folder, a GGUF file, a checkpoint or a run: a path or "
            "an fsspec URL"
        )
        return f"{what}; {advice}" if advice else what
    return (
        f"{source} holds no model: looked for {HF_CONFIG} (an HF folder), *{GGUF}, {MANIFEST} (a checkpoint) and "
        f"{layout.CHECKPOINTS}/*/{MANIFEST} (a run that has saved) in {where}"
    )
