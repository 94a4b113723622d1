from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.dataset_spec import open_dataset, vocab_size_of
from launchyard.training.data.index import Dataset, read_dataset
from launchyard.training.data.prepare import prepare as room
from launchyard.training.data.prepare.encode import PrepareError
from launchyard.training.data.prepare.journal import PrepareProgress
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.data.token_store import TokenStore
from tests.support.litdata_reader import read_items, read_tokens


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def told(sources: list[str], **options: Any) -> list[str]:
    """What preparing says on the way."""
    seen: list[PrepareProgress] = []
    prepare(sources, on_progress=seen.append, **options)
    return [now.note for now in seen if now.note]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, short_texts: list[str], novel: str) -> Path:
    """Two files of text and one of short documents."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text(novel[:150_000])
    (folder / "c.md").write_text(novel[300_000:330_000])
    write_jsonl(folder / "b.jsonl", short_texts)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, short_texts: list[str], novel: str) -> Path:
    """The same, shorter: for what must be done many times."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "a.txt").write_text(novel[:60_000])
    write_jsonl(folder / "b.jsonl", short_texts[:100])
    return folder


def test_tokens_are_those_of_the_text(tmp_path: Path, corpus: Path, tokenizer_file: str, tokenizer: Tokenizer) -> None:
    """Every document, whole, in order, each with its end; read by two independent readers."""
    made = prepare([str(corpus / "b.jsonl")], tokenizer=tokenizer_file, out=str(tmp_path / "o"), chunk_tokens=10_000)
    texts = [json.loads(line)["text"] for line in (corpus / "b.jsonl").read_text().splitlines()]
    expected = []
    for text in texts:
        expected += [*tokenizer.encode(text).ids, 0]
    assert read_tokens(tmp_path / "o" / "train") == expected
    store = TokenStore(f"{tmp_path}/o/train")
    assert store.read(0, store.n_tokens).tolist() == expected
    assert made.tokens == len(expected)
    assert made.documents == len(texts)
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["dataset.json", "tokenizer", "train"]
    items = read_items(tmp_path / "o" / "train")
    assert sum(item[-1] == 0 for item in items) == len(texts)
    assert all(0 not in item[:-1] for item in items)


def test_sections_join_to_the_text(tmp_path: Path, corpus: Path, tokenizer_file: str, tokenizer: Tokenizer) -> None:
    """With a hold-out, both parts together are the text, and no gap is read across."""
    out = tmp_path / "o"
    made = prepare([str(corpus / "a.txt")], tokenizer=tokenizer_file, out=str(out), validation=0.1)
    text = (corpus / "a.txt").read_text()
    parts = {}
    for split in ("train", "validation"):
        decoded = tokenizer.decode(read_tokens(out / split), skip_special_tokens=False)
        parts[split] = decoded.removesuffix("<|endoftext|>").split("<|endoftext|>")
        assert len(parts[split]) == made.splits[split].documents
    assert sum(len(part) for found in parts.values() for part in found) == len(text)
    places = sorted((text.index(part), part) for found in parts.values() for part in found)
    assert "".join(part for _, part in places) == text
    assert sum(map(len, parts["validation"])) == pytest.approx(0.1 * len(text), rel=0.2)
    assert made.splits["train"].tokens + made.splits["validation"].tokens == made.tokens


def test_paths_may_begin_with_the_home(tmp_path: Path, tokenizer_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("A short text.")
    (tmp_path / "tokenizer.json").write_bytes(Path(tokenizer_file).read_bytes())
    prepare(["~/a.txt"], tokenizer="~/tokenizer.json", out="~/out", workers=1)
    assert (tmp_path / "out/train").is_dir()


@pytest.mark.parametrize("workers", [2, 4])
def test_the_same_bytes_for_any_workers(
    tmp_path: Path, corpus: Path, tokenizer_file: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BYTES_PER_WORKER", 1)
    monkeypatch.setattr("launchyard.training.data.prepare.encode.BATCH_CHARS", 5_000)
    options = {"tokenizer": tokenizer_file, "validation": 0.1, "chunk_tokens": 3_000}
    prepare([str(corpus)], out=str(tmp_path / "one"), workers=1, **options)
    prepare([str(corpus)], out=str(tmp_path / "many"), workers=workers, **options)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")


KILLED = """
import sys, threading, os, signal
from launchyard.storage import files
from launchyard.training.data.prepare import encode, prepare
encode.BATCH_CHARS = 5_000
prepare.BYTES_PER_WORKER = 1
puts, limit = 0, int(sys.argv[4])
put = files.write
def counted(path, raw, *, sync=False):
    global puts
    puts += 1
    if puts == limit:
        if sys.argv[5] == "half":
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path + ".0123abcd.tmp", "wb").write(raw[: len(raw) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    put(path, raw, sync=sync)
files.write = counted
if __name__ == "__main__":
    options = {"tokenizer": sys.argv[2], "out": sys.argv[3], "workers": int(sys.argv[6])}
    prepare.prepare([sys.argv[1]], validation=0.1, chunk_tokens=3_000, **options)
"""


@pytest.mark.slow
def test_killed_and_run_again(
    tmp_path: Path, small: Path, tokenizer_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL before any of its writes: nothing counts as done, and running it again ends with the same bytes."""
    monkeypatch.setattr("launchyard.training.data.prepare.encode.BATCH_CHARS", 5_000)
    monkeypatch.setattr(room, "BYTES_PER_WORKER", 1)
    options = {"tokenizer": tokenizer_file, "validation": 0.1, "chunk_tokens": 3_000}
    prepare([str(small)], out=str(tmp_path / "whole"), **options)
    (tmp_path / "killed.py").write_text(KILLED)
    out, went_on, puts, killed = tmp_path / "out", 0, 0, True
    while killed:
        puts += 1 + puts // 2
        how = [str(puts), "half" if puts % 2 else "", "2" if puts == 5 else "1"]
        arguments = [str(small), tokenizer_file, str(out), *how]
        done = subprocess.run([sys.executable, str(tmp_path / "killed.py"), *arguments], capture_output=True, text=True)
        killed = done.returncode == -signal.SIGKILL
        assert killed or done.returncode == 0, done.stderr
        if killed:
            assert read_dataset(str(out)) is None
            with pytest.raises(ValueError, match=r"is not finished|does not exist"):
                open_dataset(str(out))
        if killed and puts % 5:  # go on from here; else kill again what goes on
            went_on += any("going on after" in note for note in told([str(small)], out=str(out), **options))
            assert tree(out) == tree(tmp_path / "whole"), puts
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            out.rmdir()
    assert went_on > 1
    assert tree(out) == tree(tmp_path / "whole")


def test_a_damaged_journal_starts_anew(
    tmp_path: Path, small: Path, tokenizer_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchyard.training.data.prepare.encode.BATCH_CHARS", 5_000)
    options = {"tokenizer": tokenizer_file, "validation": 0.1, "chunk_tokens": 3_000}
    prepare([str(small)], out=str(tmp_path / "whole"), **options)
    (tmp_path / "killed.py").write_text(KILLED)
    for victim in ("state.json", "*.tail", "../train/chunk-0-1.bin"):
        out = tmp_path / f"out{len(victim)}"
        arguments = [str(small), tokenizer_file, str(out), "14", "", "1"]
        subprocess.run([sys.executable, str(tmp_path / "killed.py"), *arguments], check=False)
        damaged = sorted((out / ".prepare").glob(victim))
        assert damaged
        for path in damaged:
            path.write_bytes(path.read_bytes()[:-2])
        notes = told([str(small)], out=str(out), **options)
        assert not any("going on after" in note for note in notes)
        assert tree(out) == tree(tmp_path / "whole")


def test_changed_text_is_noticed(tmp_path: Path, tokenizer_file: str, corpus: Path) -> None:
    source = tmp_path / "in" / "a.txt"
    source.parent.mkdir()
    source.write_text("Some text. " * 50)
    out = str(tmp_path / "out")
    notes: list[str] = []

    def again(**changes: object) -> Dataset:
        options = {"tokenizer": tokenizer_file, "out": out} | changes
        return prepare([str(source.parent)], on_progress=lambda now: notes.append(now.note), **options)

    first = again()
    before = tree(tmp_path / "out")
    assert again() == first
    assert "nothing to do" in notes[-1]
    source.write_text("Some test. " * 50)
    with pytest.raises(ValueError, match=r"holds another data set: a\.txt has changed; choose another --out"):
        again()
    with pytest.raises(ValueError, match=r"seed was 0 and is 3 now"):
        again(seed=3)
    (source.parent / "b.txt").write_text("More.")
    with pytest.raises(ValueError, match=r"b\.txt was not part of it"):
        again()
    assert tree(tmp_path / "out") == before


def test_options_changed_after_an_interruption(tmp_path: Path, corpus: Path, tokenizer_file: str) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    out = tmp_path / "out"
    arguments = [str(corpus), tokenizer_file, str(out), "30", "half", "1"]
    subprocess.run([sys.executable, str(tmp_path / "killed.py"), *arguments], check=False)
    notes = told([str(corpus)], tokenizer=tokenizer_file, out=str(out))
    assert any("have changed since: starting over" in note for note in notes)
    prepare([str(corpus)], tokenizer=tokenizer_file, out=str(tmp_path / "fresh"))
    assert tree(out) == tree(tmp_path / "fresh")


def test_other_folders_are_left_alone(tmp_path: Path, corpus: Path, tokenizer_file: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    before = tree(tmp_path)
    for out, said in [("mine", "is not empty and holds no data set of ours"), ("mine/thesis.txt", "is a file")]:
        with pytest.raises(ValueError, match=said):
            prepare([str(corpus)], tokenizer=tokenizer_file, out=str(tmp_path / out))
    assert tree(tmp_path) == before
    (tmp_path / "mine" / ".prepare").mkdir()  # a folder that looks like ours: still nothing of theirs may go
    (tmp_path / "mine" / "train").mkdir()
    (tmp_path / "mine" / "train" / "notes.md").write_text("precious")
    prepare([str(corpus / "c.md")], tokenizer=tokenizer_file, out=str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "mine" / "train" / "notes.md").read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation": 1.0}, "validation is 1.0; a share must lie in"),
        ({"workers": 0}, "workers is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"chunk_tokens": 1}, "chunk_tokens is 1; a chunk holds 2 to"),
        ({"chunk_tokens": 2**31}, "a chunk holds 2 to"),
        ({"eos": "<nope>"}, "--eos '<nope>' is no token of"),
        ({"tokenizer": "/nope"}, "no tokenizer at /nope"),
        ({"text_key": "body", "validation": 0.1}, "no key 'body'"),
    ],
)
def test_mistakes_leave_nothing_behind(
    tmp_path: Path, corpus: Path, tokenizer_file: str, changes: dict[str, object], said: str
) -> None:
    options = {"tokenizer": tokenizer_file, "out": str(tmp_path / "out")} | changes
    with pytest.raises(ValueError, match=said):
        prepare([str(corpus)], **options)
    assert not (tmp_path / "out").exists()


def test_text_that_is_too_short(tmp_path: Path, tokenizer_file: str) -> None:
    (tmp_path / "a.txt").write_text("Hi.")
    for share, part in [(0.0, "train"), (0.05, "validation")]:
        if part == "train":
            (tmp_path / "a.txt").write_text("")
        else:
            (tmp_path / "a.txt").write_text("Hi.")
        with pytest.raises(ValueError, match=f"the {part} part has 0 tokens: there is too little text"):
            prepare([str(tmp_path / "a.txt")], tokenizer=tokenizer_file, out=str(tmp_path / "out"), validation=share)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fault_in_the_text_keeps_what_is_done(
    tmp_path: Path, short_texts: list[str], tokenizer_file: str, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Mending a file, here to a shorter one, redoes that file's part; the bytes are those of a fresh run."""
    monkeypatch.setattr("launchyard.training.data.prepare.encode.BATCH_CHARS", 5_000)
    monkeypatch.setattr(room, "BYTES_PER_WORKER", 1)
    options = {"tokenizer": tokenizer_file, "validation": 0.1, "chunk_tokens": 3_000, "workers": workers}
    corpus = tmp_path / "in"
    corpus.mkdir()
    write_jsonl(corpus / "a.jsonl", short_texts)
    write_jsonl(corpus / "b.jsonl", short_texts)
    write_jsonl(corpus / "c.jsonl", short_texts[:50])
    with (corpus / "b.jsonl").open("a") as file:
        file.write("{oops\n")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=rf"b\.jsonl:{len(short_texts) + 1} is not JSON.* tokens before it are kept"):
        prepare([str(corpus)], out=str(out), **options)
    assert len(list((out / "train").iterdir())) > 8
    write_jsonl(corpus / "b.jsonl", short_texts[:20])
    first = prepare([str(corpus / "a.jsonl")], out=str(tmp_path / "first"), **options)
    assert told([str(corpus)], out=str(out), **options) == [f"going on after {first.tokens:,} tokens that are done"]
    prepare([str(corpus)], out=str(tmp_path / "fresh"), **options)
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_fault_before_any_work_leaves_nothing(tmp_path: Path, tokenizer_file: str) -> None:
    (tmp_path / "a.jsonl").write_text("{oops\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:1 is not JSON"):
        prepare([str(tmp_path / "a.jsonl")], tokenizer=tokenizer_file, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_invalid_documents_are_skipped_on_request(
    tmp_path: Path, short_texts: list[str], tokenizer_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their number and reasons; also when the run goes on after it was refused."""
    monkeypatch.setattr("launchyard.training.data.prepare.encode.BATCH_CHARS", 5_000)
    options = {"tokenizer": tokenizer_file, "chunk_tokens": 3_000}
    corpus = tmp_path / "in"
    corpus.mkdir()
    write_jsonl(corpus / "a.jsonl", short_texts[:100])
    clean = prepare([str(corpus)], out=str(tmp_path / "clean"), **options)
    with (corpus / "a.jsonl").open("ab") as file:
        file.write(b'{"text": "caf\xe9"}\n{"body": "x"}\n{"text": 3}\n')
    (corpus / "b.txt").write_bytes(b"caf\xe9")
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match=r"a\.jsonl:101 is not JSON.*--skip-invalid leaves"):
        prepare([str(corpus)], out=out, **options)
    notes = told([str(corpus)], out=out, skip_invalid=True, **options)
    made = read_dataset(out)
    assert made and notes[0].startswith("going on after")
    assert (made.rejected_documents, made.digest, made.documents) == (4, clean.digest, clean.documents)
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(Path(row["file"]).name, row["line"]) for row in rejects] == [
        ("a.jsonl", 101),
        ("a.jsonl", 102),
        ("a.jsonl", 103),
        ("b.txt", None),
    ]
    assert rejects[2]["reason"] == "has 'text' of type int, not text"
    assert rejects[3]["reason"].startswith("is not UTF-8 near byte")
    with pytest.raises(ValueError, match="4 invalid documents were left out of it by --skip-invalid"):
        prepare([str(corpus)], out=out, **options)


def test_element_type_follows_the_vocabulary(tmp_path: Path, big_vocabulary: str, tokenizer_file: str) -> None:
    (tmp_path / "a.txt").write_text("w300 w65536 w199999")
    made = prepare([str(tmp_path / "a.txt")], tokenizer=big_vocabulary, out=str(tmp_path / "big"))
    assert (made.dtype, made.vocab_size) == ("int32", 200_000)
    assert read_tokens(tmp_path / "big" / "train") == [300, 65_536, 199_999, 256]
    assert TokenStore(f"{tmp_path}/big/train").read(0, 4).tolist() == [300, 65_536, 199_999, 256]
    small = prepare([str(tmp_path / "a.txt")], tokenizer=tokenizer_file, out=str(tmp_path / "small"))
    assert (small.dtype, vocab_size_of(str(tmp_path / "small"))) == ("uint16", 2048)
    size = (tmp_path / "small" / "train" / "chunk-0-0.bin").stat().st_size
    assert size == 12 + 2 * small.tokens


def test_truncation_and_padding_of_a_tokenizer_are_ignored(tmp_path: Path, tokenizer: Tokenizer, novel: str) -> None:
    limited = Tokenizer.from_str(tokenizer.to_str())
    limited.enable_truncation(8)
    limited.enable_padding(length=64)
    limited.save(str(tmp_path / "tokenizer.json"))
    write_jsonl(tmp_path / "a.jsonl", [novel[:500], "short"])
    prepare([str(tmp_path / "a.jsonl")], tokenizer=str(tmp_path), out=str(tmp_path / "o"))
    text = tokenizer.decode(read_tokens(tmp_path / "o" / "train"), skip_special_tokens=False)
    assert text == f"{novel[:500]}<|endoftext|>short<|endoftext|>"


def test_which_token_ends_a_document(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("abc")
    raw = json.loads(tokenizer.to_str())
    ends = []
    cases: list[tuple[str, Any, str | None]] = [
        ("</s>", None, None),
        ("<odd>", {"eos_token": "<odd>"}, None),
        ("<odd>", {"eos_token": {"content": "<odd>"}}, None),
        ("<odd>", None, "a"),
    ]
    for number, (token, config, eos) in enumerate(cases):
        folder = tmp_path / f"t{number}"
        folder.mkdir()
        changed = json.loads(json.dumps(raw).replace("<|endoftext|>", token))
        (folder / "tokenizer.json").write_text(json.dumps(changed))
        if config:
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
        out = tmp_path / f"o{number}"
        ends.append(prepare([str(tmp_path / "a.txt")], tokenizer=str(folder), out=str(out), eos=eos).tokenizer.eos)
    assert ends == ["</s>", "<odd>", "<odd>", "a"]
    with pytest.raises(ValueError, match=r"does not say which token ends a document.*name one with --eos"):
        prepare([str(tmp_path / "a.txt")], tokenizer=str(tmp_path / "t3"), out=str(tmp_path / "out"))


def test_empty_documents_are_counted(tmp_path: Path, tokenizer_file: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one", "", "two", ""])
    made = prepare([str(tmp_path / "a.jsonl")], tokenizer=tokenizer_file, out=str(tmp_path / "o"))
    assert (made.documents, made.empty_documents, made.splits["train"].documents) == (2, 2, 2)


def test_compressed_sources_give_the_same_chunks(tmp_path: Path, corpus: Path, tokenizer_file: str) -> None:
    (tmp_path / "z").mkdir()
    for path in corpus.iterdir():
        (tmp_path / "z" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    plain = prepare([str(corpus)], tokenizer=tokenizer_file, out=str(tmp_path / "a"), validation=0.0)
    packed = prepare([str(tmp_path / "z")], tokenizer=tokenizer_file, out=str(tmp_path / "b"), validation=0.0)
    assert plain.digest == packed.digest


def test_moved_sources_are_the_same(tmp_path: Path, tokenizer_file: str) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "a.txt").write_text("some text " * 9)
        (tmp_path / place / "sub" / "b.txt").write_text("more text " * 9)
        prepare([str(tmp_path / place)], tokenizer=tokenizer_file, out=str(tmp_path / f"{place}.out"))
    assert tree(tmp_path / "here.out") == tree(tmp_path / "there.out")
    assert [source.name for source in read_dataset(f"{tmp_path}/here.out").sources] == ["a.txt", "sub/b.txt"]


def test_to_an_object_store(tmp_path: Path, corpus: Path, tokenizer_file: str) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    url = f"memory://{tmp_path.name}"
    options = {"tokenizer": tokenizer_file, "validation": 0.1, "chunk_tokens": 50_000}
    try:
        made = prepare([str(corpus)], out=url, **options)
        prepare([str(corpus)], out=str(tmp_path / "o"), **options)
        found = {name.removeprefix(f"/{tmp_path.name}/"): fs.cat_file(name) for name in fs.find(f"/{tmp_path.name}")}
        assert found == tree(tmp_path / "o")
        assert open_dataset(url).digest == made.digest
        assert TokenStore(open_dataset(url).train[0].folder, cache=ChunkCache(str(tmp_path / "c"))).read(
            0, 5
        ).shape == (5,)
    finally:
        fs.rm(f"/{tmp_path.name}", recursive=True)


def test_one_at_a_time(tmp_path: Path, corpus: Path, tokenizer_file: str) -> None:
    with room.lock_out(str(tmp_path / "out")), pytest.raises(PrepareError, match="another `launch prepare` is writing"):
        prepare([str(corpus)], tokenizer=tokenizer_file, out=str(tmp_path / "out"))


def test_progress_tells_how_far(tmp_path: Path, corpus: Path, tokenizer_file: str) -> None:
    seen: list[PrepareProgress] = []
    prepare([str(corpus)], tokenizer=tokenizer_file, out=str(tmp_path / "out"), on_progress=seen.append)
    assert seen[-1].bytes_done == seen[-1].bytes_total == sum(path.stat().st_size for path in corpus.iterdir())
    assert [now.tokens for now in seen] == sorted(now.tokens for now in seen)


VICTIM = """
import sys
from launchyard.training.data.prepare import prepare
prepare.BYTES_PER_WORKER = 1
if __name__ == "__main__":
    prepare.prepare([sys.argv[1]], tokenizer=sys.argv[2], out=sys.argv[3], workers=2)
"""


def children(pid: int) -> list[int]:
    import psutil

    found = psutil.Process(pid).children(recursive=True)
    return [child.pid for child in found if any("multiprocessing.spawn" in part for part in child.cmdline())]


@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_a_dying_process_is_an_error_and_no_hang(tmp_path: Path, tokenizer_file: str, novel: str, victim: str) -> None:
    import psutil

    draw = random.Random(0)
    with (tmp_path / "a.jsonl").open("w") as file:
        for _ in range(60_000):
            at = draw.randrange(len(novel) - 500)
            file.write(json.dumps({"text": novel[at : at + 500]}) + "\n")
    (tmp_path / "victim.py").write_text(VICTIM)
    arguments = [str(tmp_path / "a.jsonl"), tokenizer_file, str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "victim.py"), *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 60
        while len(workers := children(process.pid)) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(workers[0] if victim == "worker" else process.pid, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode
        if victim == "worker":
            assert "PrepareError: a tokenizing process died" in said
        _, alive = psutil.wait_procs([psutil.Process(pid) for pid in workers if psutil.pid_exists(pid)], timeout=30)
        assert not alive
        assert not (tmp_path / "out" / "dataset.json").exists()
    finally:
        process.kill()
        process.wait()
