"""Names of the hub, and what they mean in its cache on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launchyard.storage.hub_cache import (
    HubName,
    downloaded_models,
    find_downloaded,
    hub_advice,
    hub_cache,
    origin_in_cache,
    parse_hub_name,
    parts_of_gguf,
)

OLD, NEW = "a" * 40, "ab" * 20


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--tiny"
    for commit in (OLD, NEW):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
    for name, commit in (("main", NEW), ("v1.0", OLD), ("refs/pr/1", OLD)):
        (folder / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / name).write_text(commit)
    return folder


def test_a_name_has_up_to_three_parts() -> None:
    assert parse_hub_name("gpt2") == HubName("gpt2")
    assert parse_hub_name("org/a.b-c_d@refs/pr/1:Q4_K_M") == HubName("org/a.b-c_d", "refs/pr/1", "Q4_K_M")
    assert parse_hub_name("org/a:sub/x.gguf") == HubName("org/a", None, "sub/x.gguf")
    for wrong in ("", "/abs/path", "a/b/c", "./a", "~/a", "s3://bucket/a", "a--b/c", "../a", "org/a@../../x", "$X/a"):
        assert parse_hub_name(wrong) is None and not hub_advice(wrong) and find_downloaded(wrong) is None


def test_a_revision_is_a_branch_a_tag_or_a_commit(repo: Path) -> None:
    found = {name: find_downloaded(f"org/tiny{name}") for name in ("", "@v1.0", "@refs/pr/1", f"@{NEW}", "@ababababab")}
    commits = {name: path and os.path.basename(path) for name, path in found.items()}
    assert commits == {"": NEW, "@v1.0": OLD, "@refs/pr/1": OLD, f"@{NEW}": NEW, "@ababababab": NEW}
    for absent in ("org/tiny@v2", "org/tiny@abababa0", "org/other", "tiny"):
        assert find_downloaded(absent) is None
    assert origin_in_cache(f"{found['']}/config.json") == HubName("org/tiny", NEW)
    assert downloaded_models() == ["org/tiny"]


def test_the_cache_is_where_huggingface_hub_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/one")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub_cache() == "/home/one/.cache/huggingface/hub"
    for name, value, expected in (
        ("XDG_CACHE_HOME", "/x", "/x/huggingface/hub"),
        ("HF_HOME", "~/hf", "/home/one/hf/hub"),
        ("HUGGINGFACE_HUB_CACHE", "$HOME/old", "/home/one/old"),
        ("HF_HUB_CACHE", "/new", "/new"),
    ):
        monkeypatch.setenv(name, value)
        assert hub_cache() == expected


def test_a_gguf_file_is_named_by_a_part_of_its_name(repo: Path) -> None:
    snapshot = repo / "snapshots" / NEW
    (snapshot / "config.json").unlink()
    names = ["m-Q4_K_M.gguf", "m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]
    (snapshot / names[0]).touch()
    assert find_downloaded("org/tiny") == str(snapshot / names[0])
    for name in names[1:]:
        (snapshot / name).touch()
    with pytest.raises(ValueError, match=r"several GGUF files: m-F16-00001-of-00002.gguf, m-Q4_K_M.gguf"):
        find_downloaded("org/tiny")
    assert find_downloaded("org/tiny:q4_k_m") == str(snapshot / names[0])
    assert find_downloaded("org/tiny:F16") == str(snapshot / names[1])
    assert find_downloaded(f"org/tiny:{names[2]}") == str(snapshot / names[2])
    assert find_downloaded("org/tiny:Q8_0") is None
    assert parts_of_gguf(names, names[1]) == names[1:]
