"""Resolves a MODEL (a Hugging Face folder, a GGUF file, a checkpoint or a run) to its files. Light; reads no tensor."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from launchyard.model.adapter import PROMPTED
from launchyard.model.config import ModelConfig
from launchyard.model.text.companions import TOKENIZER, read_companions
from launchyard.model.text.find import GGUF, carrier_in, read_tokenizer_files
from launchyard.model.text.special_tokens import with_ids
from launchyard.model.weights.adapters.peft_config import ADAPTER_CONFIG, is_peft, read_peft_config
from launchyard.model.weights.adapters.peft_keys import adapted_config
from launchyard.model.weights.headers import bins_of, stored_in
from launchyard.model.weights.tie import settled
from launchyard.model.zoo import config_from_hf
from launchyard.run import layout
from launchyard.run.checkpoints import newest_checkpoint
from launchyard.run.rundir import RunDir
from launchyard.storage.files import exists, listdir, normal, read_json, typed_path
from launchyard.storage.hub_cache import find_downloaded, hub_advice
from launchyard.storage.shards import MANIFEST, read_manifest

HF_CONFIG = "config.json"
_PART_OF = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")


@dataclass(frozen=True)
class Source:
    """`kind` is the format of the weights in `folder`, which is the file itself if it is gguf.

    `tokenizer` is the path or URL of the file with the vocabulary: of a folder whatever model/text/find.py reads, else
    a tokenizer.json; a GGUF file has its own inside, and is that file. `adapter`: a PEFT folder over the weights.
    """

    kind: Literal["hf", "checkpoint", "gguf"]
    folder: str
    tokenizer: str | None
    adapter: str | None = None
    base_tokenizer: str | None = None  # that of the weights, where the adapter has one of its own

    @property
    def name(self) -> str:
        """Of the adapter, or of the folder or file without its ending."""
        return posixpath.basename(self.adapter or self.folder).removesuffix(GGUF)

    def companions(self) -> dict[str, bytes]:
        """What stands beside the weights, by file name; of a checkpoint that is in tokenizer/ of its run.

        Special ids that config.json alone holds stand in generation_config.json.
        """
        found = self.stored_companions()
        return with_ids(found, read_hf_config(self.folder)) if self.kind == "hf" else found

    def stored_companions(self) -> dict[str, bytes]:
        """The same without those ids. ValueError names a vocabulary that cannot be turned into a tokenizer.json."""
        if self.adapter is not None:
            of_base = replace(self, adapter=None, tokenizer=self.base_tokenizer).stored_companions()
            of_adapter = carrier_in(self.adapter)
            return of_base | (read_tokenizer_files(of_adapter) if of_adapter else {})
        if self.kind == "gguf":
            from launchyard.model.weights.gguf_header import gguf_companions

            return gguf_companions(self.folder)
        if self.tokenizer is not None:
            return read_tokenizer_files(self.tokenizer)
        return read_companions(self.folder) if self.kind == "hf" else {}


def find_source(source: str) -> Source:
    """Local path or fsspec URL of an HF folder, a checkpoint folder or a run; of a run, the newest that counts.

    Or a GGUF file, or a folder that holds one and no other model; ValueError if there are several. A name of the
    Hugging Face hub means its files in the local cache, unless a local path has that name. A PEFT folder is over the
    base that it names, and BASE+ADAPTER is one over another. FileNotFoundError names the files and folders that were
    searched.
    """
    where = normal(typed_path(source))
    if (parts := base_and_adapter(source)) is not None:
        return _with_adapter(find_source(parts[0]), normal(typed_path(parts[1])))
    if is_peft(where) and not (stored_in(where) or bins_of(where)):
        return _with_adapter(_base_of(where), where)
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


def base_and_adapter(source: str) -> tuple[str, str] | None:
    """The parts of BASE+ADAPTER; None of a name without +, and of a place that has one in its name."""
    base, _, adapter = source.rpartition("+")
    if not base or not adapter or os.path.exists(typed_path(source)):
        return None
    return (base, adapter) if is_peft(normal(typed_path(adapter))) or "://" not in source else None


def _with_adapter(base: Source, adapter: str) -> Source:
    if not is_peft(adapter):
        raise FileNotFoundError(f"{adapter} is no adapter: it has no {ADAPTER_CONFIG}")
    if base.adapter is not None:
        raise ValueError(f"{adapter} is over {base.adapter}, an adapter too; merge that one with `launch merge` first")
    tokenizer = carrier_in(adapter) or base.tokenizer
    return replace(base, adapter=adapter, tokenizer=tokenizer, base_tokenizer=base.tokenizer)


def _base_of(adapter: str) -> Source:
    named = read_peft_config(adapter).base
    advice = f"name it: BASE+{adapter}, or --base of `launch merge`"
    if not named:
        raise ValueError(f"{adapter}/{ADAPTER_CONFIG} names no base (base_model_name_or_path); {advice}")
    try:
        return find_source(named)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the base of {adapter} is not there: {error}; {advice}") from error


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
    config = _config_of(found)
    return config if found.adapter is None else adapted_config(config, found.adapter)


def check_is_weights(found: Source, name: str) -> None:
    """ValueError for a run whose adapter is none of weights, so that they alone are another model."""
    if found.kind != "checkpoint":
        return
    kind = read_manifest(found.folder).base.get("adapter", {}).get("kind")
    if kind in PROMPTED:
        raise ValueError(
            f"{name} trained prompts ({kind}), for which no format of weights has a place. `launch generate` and "
            "`load` take the run itself; adapter.kind=lora trains what can be merged, exported and trained on"
        )


def _config_of(found: Source) -> ModelConfig:
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
        f"{source} holds no model: looked for {HF_CONFIG} (an HF folder), {ADAPTER_CONFIG} (of PEFT), *{GGUF}, "
        f"{MANIFEST} (a checkpoint) and {layout.CHECKPOINTS}/*/{MANIFEST} (a run that has saved) in {where}"
    )
