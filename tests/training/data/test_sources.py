from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from launchyard.training.data.prepare.sources import Reading, digest_of, documents, find_sources

TEXTS = ["One.\n\nTwo – ünïcödé ☃ 𝄞.", "", "a\r\nb", "x" * 300_000]


def read(*given: object, text_key: str = "text") -> list[str]:
    """All documents of some sources."""
    found = []
    for source in find_sources([str(item) for item in given]):
        found += ["".join(document) for document in documents(Reading(source), text_key=text_key)]
    return found


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"n": 1, "text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)],
)
def test_formats(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(TEXTS[0].encode()))
    (tmp_path / f"b.md{suffix}").write_bytes(pack(TEXTS[3].encode()))
    (tmp_path / f"c.jsonl{suffix}").write_bytes(pack(jsonl(TEXTS)))
    assert read(tmp_path) == [TEXTS[0], TEXTS[3], *TEXTS]


def test_members_of_compressed_files_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two") + b"\0" * 512)
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"three ") + zstandard.compress(b"four"))
    assert read(tmp_path) == ["one two", "three four"]


def test_parquet(tmp_path: Path) -> None:
    texts = [f"row {number}" for number in range(1000)]
    table = pyarrow.table({"id": list(range(1000)), "body": pyarrow.array([*texts[:-1], None], pyarrow.large_string())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert read(tmp_path / "a.parquet", text_key="body") == [*texts[:-1], ""]
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'text' \(it has id, body\); see --text-key"):
        read(tmp_path)
    with pytest.raises(ValueError, match="row 1 has 'id' of type int, not text"):
        read(tmp_path, text_key="id")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"-m pip install .*'pyarrow>=15'"):
        read(tmp_path)


def test_which_files_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.md", "image.png", ".hidden.txt", ".git/d.txt", "odd[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == ["a.txt", "b.txt", "deep/er/c.md", "odd[1].txt"]
    assert read(tmp_path / "*.txt") == ["a.txt", "b.txt", "odd[1].txt"]
    assert read(tmp_path / "**/*.md") == ["deep/er/c.md"]
    assert read(tmp_path / "odd[1].txt") == ["odd[1].txt"]
    assert read(tmp_path / "b.txt", f"file://{tmp_path}/a.txt") == ["b.txt", "a.txt"]
    monkeypatch.chdir(tmp_path)
    assert read("deep", "a.txt") == ["deep/er/c.md", "a.txt"]


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("a")
    (tmp_path / "texts" / ".hidden").mkdir(parents=True)
    (tmp_path / "texts" / ".hidden" / "b.txt").write_text("b")
    (tmp_path / "texts" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "texts")
    assert read(tmp_path / "texts") == ["a"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    """And named: fsspec leaves it out."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").chmod(0)
    script = f"from launchyard.training.data.prepare.sources import find_sources; find_sources([{str(tmp_path)!r}])"
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run([*drop, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    (tmp_path / "closed").chmod(0o700)
    assert done.returncode and done.stderr.splitlines()[-1].startswith("PermissionError")
    assert str(tmp_path / "closed") in done.stderr.splitlines()[-1]


def test_a_plan_for_local_text_does_not_wait_for_fsspec(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    script = f"from launchyard.training.data.prepare.sources import find_sources; find_sources([{str(tmp_path)!r}])"
    shown = f"{script}; import sys; print('fsspec' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", shown], text=True) == "False\n"


def test_urls(tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    try:
        for name in ("b.txt", "a.txt.gz"):
            raw = name.encode()
            fs.pipe_file(f"/{tmp_path.name}/{name}", gzip.compress(raw) if name.endswith("gz") else raw)
        url = f"memory://{tmp_path.name}"
        assert read(url) == read(f"{url}/*") == ["a.txt.gz", "b.txt"]
        assert read(f"{url}/b.txt") == ["b.txt"]
        with pytest.raises(ValueError, match="does not exist"):
            read(f"{url}/c.txt")
    finally:
        fs.rm(f"/{tmp_path.name}", recursive=True)


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("a.txt", b"caf\xe9 and more", r"a\.txt is not UTF-8 near byte 3; convert it"),
        ("a.txt", b"cut \xe2\x82", r"a\.txt is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": 1}\n', r"a\.jsonl:3 has 'text' of type int, not text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"content": "a", "id": 2}\n', r"a\.jsonl:1 has no key 'text' \(it has 'content', 'id'\)"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1 has no key 'text' \(it is list\)"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "no valid Unicode"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:-9], r"a\.jsonl\.gz is cut"),
        ("a.txt.gz", b"this is not gzip", r"a\.txt\.gz is damaged"),
        ("a.txt.zst", zstandard.compress(b"text" * 99)[:-3], r"a\.txt\.zst is cut"),
        ("a.txt.zst", b"this is not zstd", r"a\.txt\.zst is damaged"),
        ("a.parquet", b"this is not parquet", r"a\.parquet is no readable parquet file"),
        ("a.csv", b"a,b", r"a\.csv is of no known kind; allowed are \.txt"),
        ("a.parquet.gz", b"", "no known kind"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, raw: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / name)


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").touch()
    for given, said in [
        ([tmp_path / "no.txt"], "no.txt does not exist"),
        ([tmp_path / "*.md"], "matches no file"),
        ([tmp_path / "a.txt", tmp_path], "a.txt is named twice"),
        ([], "no sources were given"),
    ]:
        with pytest.raises(ValueError, match=said):
            read(*given)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match="holds no text among its 1 files"):
        read(tmp_path)


def test_a_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    [source] = find_sources([str(tmp_path / "a.txt")])
    (tmp_path / "a.txt").write_text("abcd")
    with pytest.raises(ValueError, match="changed while it was read: 3 bytes, then 4"):
        digest_of(source)


def test_names_hide_passwords(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    [source] = find_sources([str(tmp_path / "a.txt")])
    assert type(source)("ftp://me:secret@host/a.txt", "text", None, 1, "").name == "ftp://host/a.txt"
