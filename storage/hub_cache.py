"""The cache of the Hugging Face hub on this machine: its layout, and what lies in it. Asks no hub and needs no package.

The layout is huggingface_hub's own, so that transformers and others share the files: models--ORG--NAME/, of a set of
data datasets--ORG--NAME/, holds refs/REVISION (the hash of a commit), snapshots/HASH/FILE (links) and blobs/ETAG (the
files).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launchyard.host.environment import variable

RepoKind = Literal["model", "dataset"]
DEFAULT_REVISION = "main"
GGUF_SUFFIX = ".gguf"
_REPO = r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?"  # gpt2, EleutherAI/pythia-160m
_NAME = re.compile(rf"(?P<repo>{_REPO})(?:@(?P<revision>[\w.][\w./-]*))?(?::(?P<file>[\w.][\w./ +-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_SPLIT = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")
_IN_CACHE = re.compile(r"\bmodels--(?P<repo>[^/\s]+)/snapshots/(?P<commit>[0-9a-f]{40})(?![0-9a-f])")


@dataclass(frozen=True)
class HubName:
    """ORG/NAME[@REVISION][:FILE]. `file` is a path in the repository, or a part of a GGUF file's name: Q4_K_M."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}{f':{self.file}' if self.file else ''}"


def parse_hub_name(text: str) -> HubName | None:
    """Returns the parts of a text that could name a model of the hub; None if it cannot."""
    found = _NAME.fullmatch(text)
    if found is None or any(bad in text for bad in ("..", "--")) or found["repo"].endswith((".", "-")):
        return None
    return HubName(**found.groupdict())


def hub_cache() -> str:
    """Returns the folder of the cache, by the variables that huggingface_hub reads."""
    home = variable("HF_HOME") or os.path.join(variable("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = variable("HF_HUB_CACHE") or variable("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return os.path.abspath(os.path.expanduser(os.path.expandvars(folder)))


def repo_folder(repo: str, kind: RepoKind = "model") -> str:
    return os.path.join(hub_cache(), f"{kind}s--{repo.replace('/', '--')}")


def find_downloaded_dataset(name: str) -> str | None:
    """Returns the snapshot of a set of data in the cache, ORG/NAME[@REVISION]; None if it is not there."""
    parsed = parse_hub_name(name)
    if parsed is None:
        return None
    return _snapshot(repo_folder(parsed.repo, "dataset"), parsed.revision or DEFAULT_REVISION)


def find_downloaded(name: str) -> str | None:
    """Returns the snapshot of a hub name in the cache, or its GGUF file; None if it is not there, or no such name.

    The path holds the hash of the commit, so it means the same files for ever. ValueError if it is not clear which of
    several GGUF files is meant.
    """
    parsed = parse_hub_name(name)
    if parsed is None:
        return None
    folder = _snapshot(repo_folder(parsed.repo), parsed.revision or DEFAULT_REVISION)
    if folder is None:
        return None
    if parsed.file is None and os.path.exists(os.path.join(folder, "config.json")):
        return folder
    files = sorted(
        os.path.relpath(os.path.join(where, file), folder)
        for where, _, names in os.walk(folder)
        for file in names
        if file.endswith(GGUF_SUFFIX)
    )
    if parsed.file is None and not files:
        return folder
    found = match_gguf(files, parsed.file)
    if len(found) > 1:
        listed = ", ".join(found)
        raise ValueError(f"{name} holds several GGUF files: {listed}; name one of them: {parsed.repo}:{found[0]}")
    return os.path.join(folder, found[0]) if found else None


def match_gguf(paths: Sequence[str], wanted: str | None) -> list[str]:
    """Returns the GGUF files that `wanted` means: that path, else those with this part in their name; None: all.

    Of a model in several files, the first stands for all.
    """
    whole = [path for path in paths if path.endswith(GGUF_SUFFIX) and _number(path) == 1 and not _reads_images(path)]
    if wanted is None or wanted in paths:
        return whole if wanted is None else [wanted]
    return [path for path in whole if wanted.lower() in os.path.basename(path).lower()]


def parts_of_gguf(paths: Sequence[str], first: str) -> list[str]:
    """Returns all files of a model of which `first` is one."""
    found = _SPLIT.search(first)
    if found is None:
        return [first]
    total = first[found.end(1) :]  # -of-00003.gguf
    return [path for path in paths if path.startswith(first[: found.start()]) and path.endswith(total)]


def _reads_images(path: str) -> bool:
    """The part that llama.cpp keeps apart from the language model."""
    return os.path.basename(path).startswith("mmproj")


def _number(path: str) -> int:
    found = _SPLIT.search(path)
    return int(found[1]) if found else 1


def _snapshot(folder: str, revision: str) -> str | None:
    """Returns the folder of a branch, a tag or a commit, which may be a beginning of its hash."""
    snapshots = os.path.join(folder, "snapshots")
    try:
        with open(os.path.join(folder, "refs", revision)) as file:
            commits = [file.read().strip()]
    except OSError:
        there = os.listdir(snapshots) if _COMMIT.fullmatch(revision) and os.path.isdir(snapshots) else []
        commits = [commit for commit in there if commit.startswith(revision)]
    found = os.path.join(snapshots, commits[0]) if len(commits) == 1 and commits[0] else None
    return found if found is not None and os.path.isdir(found) else None


def origin_in_cache(path: str) -> HubName | None:
    """Returns repository and commit of a path in a cache of the hub, or of a text with one; None without one."""
    found = _IN_CACHE.search(path)
    return None if found is None else HubName(found["repo"].replace("--", "/", 1), found["commit"])


def downloaded_models() -> list[str]:
    """Returns the sorted names of the models in the cache."""
    try:
        names = os.listdir(hub_cache())
    except OSError:
        return []
    return sorted(name.removeprefix("models--").replace("--", "/", 1) for name in names if name.startswith("models--"))


def hub_advice(name: str, options: str = "") -> str:
    """Returns a sentence for a name that could be one of the Hugging Face hub; empty if it cannot."""
    parsed = parse_hub_name(name)
    if parsed is None:
        return ""
    return (
        f"a model of the Hugging Face hub comes into the cache of this machine by `launch download {parsed}{options}`"
    )
