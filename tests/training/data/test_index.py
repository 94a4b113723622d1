from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launchyard.model.text.special_tokens import tokenizer_vocab_size
from launchyard.training.data.dataset_spec import mix, open_dataset, vocab_size_of, with_validation
from launchyard.training.data.index import find_tokenizer, is_prepared
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.spec import TokenSource
from tests.support.litdata_reader import write_chunks


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, novel: str, tokenizer_file: str) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "a.txt").write_text(novel[:60_000])
    prepare([str(folder / "a.txt")], tokenizer=tokenizer_file, out=str(folder / "with"), validation=0.1)
    prepare([str(folder / "a.txt")], tokenizer=tokenizer_file, out=str(folder / "without"))
    return folder


def folders(sources: tuple[TokenSource, ...]) -> list[str]:
    return [source.folder for source in sources]


def test_prepared_folder(prepared: Path) -> None:
    spec = open_dataset(f"file://{prepared}/with/")
    assert folders(spec.train) == [f"{prepared}/with/train"]
    assert folders(spec.validation) == [f"{prepared}/with/validation"]
    assert spec.tokenizer == f"{prepared}/with/tokenizer/tokenizer.json"
    assert spec.n_tokens > 6 * spec.n_validation_tokens > 0
    assert vocab_size_of(f"{prepared}/with") == 2048
    without = open_dataset(str(prepared / "without"))
    assert without.validation == ()
    assert without.digest != spec.digest


def test_validation_from_another_folder(prepared: Path, tmp_path: Path) -> None:
    plain = open_dataset(str(prepared / "without"))
    spec = with_validation(plain, str(prepared / "with"))
    assert spec.train == plain.train
    assert folders(spec.validation) == [f"{prepared}/with/validation"]
    assert spec.digest != plain.digest
    spec = with_validation(open_dataset(str(prepared / "with")), str(prepared / "without"))
    assert folders(spec.validation) == [f"{prepared}/without/train"]
    write_chunks(tmp_path / "bare", [1, 2, 3], chunk=2)
    assert with_validation(spec, str(tmp_path / "bare")).n_validation_tokens == 3


def test_another_tokenizer(prepared: Path, tmp_path: Path, big_vocabulary: str) -> None:
    prepare([str(prepared / "a.txt")], tokenizer=big_vocabulary, out=str(tmp_path / "o"))
    spec, other = open_dataset(str(prepared / "with")), open_dataset(str(tmp_path / "o"))
    said = rf"{tmp_path}/o/train was made by another tokenizer than {prepared}/with/train"
    with pytest.raises(ValueError, match=said):
        with_validation(spec, str(tmp_path / "o"))
    with pytest.raises(ValueError, match=said):
        mix([spec, other], [1, 2])


def test_mixed_sources(prepared: Path, tmp_path: Path) -> None:
    one, two = open_dataset(str(prepared / "without")), open_dataset(str(prepared / "with"))
    write_chunks(tmp_path / "bare", [1, 2, 3], chunk=2)
    bare = open_dataset(str(tmp_path / "bare"))
    spec = mix([bare, one, two], [2, 1, 5])
    assert folders(spec.train) == [str(tmp_path / "bare"), f"{prepared}/without/train", f"{prepared}/with/train"]
    assert (spec.shares, spec.n_tokens) == ((0.25, 0.125, 0.625), bare.n_tokens + one.n_tokens + two.n_tokens)
    assert (spec.validation, spec.tokenizer) == (two.validation, one.tokenizer)
    others = [mix([bare, one, two], [2, 1, 4]), mix([one, bare, two], [2, 1, 5]), mix([bare, one], [2, 1])]
    assert len({spec.digest, *(other.digest for other in others)}) == 4
    assert mix([one], [7]) == one
    with pytest.raises(ValueError, match=rf"{prepared}/with/train is named twice"):
        mix([two, one, two], [1, 1, 1])


def test_bare_litdata_folder(tmp_path: Path) -> None:
    write_chunks(tmp_path / "a", [1, 2, 3], chunk=2)
    write_chunks(tmp_path / "b", [1, 2, 3, 4], chunk=2)
    spec = open_dataset(str(tmp_path / "a"))
    assert (folders(spec.train), spec.tokenizer, spec.n_tokens) == ([str(tmp_path / "a")], None, 3)
    assert spec.digest != open_dataset(str(tmp_path / "b")).digest
    assert vocab_size_of(str(tmp_path / "a")) is None
    assert is_prepared(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {"data_format": ["no_header_numpy:9"]}}, "data_format is"),
        ({"config": {"data_format": ["jpeg"]}}, "data_format is"),
        ({"config": {"data_format": None}}, "data_format is"),
        ({"config": {"encryption": {"algorithm": "fernet"}}}, "encrypted chunks cannot be read"),
        ({"config": {"compression": "lz4"}}, "compression is 'lz4'"),
        ({"config": {"item_loader": "PyTreeLoader"}, "chunks": {"dim": None}}, "was not written with a TokensLoader"),
        ({"chunks": {"filename": "../chunk"}}, "is no file name inside the folder"),
        ({"chunks": {"chunk_size": "many"}}, r"chunks\.0\.chunk_size"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, dict[str, object]], said: str) -> None:
    write_chunks(tmp_path / "a", [1, 2, 3], chunk=3)
    index = json.loads((tmp_path / "a" / "index.json").read_text())
    index["config"].update(change.get("config", {}))
    index["chunks"][0].update(change.get("chunks", {}))
    (tmp_path / "a" / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=said) as caught:
        open_dataset(str(tmp_path / "a"))
    assert f"{tmp_path}/a/index.json" in str(caught.value)


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist .* make it with `launch prepare TEXT"):
        open_dataset(str(tmp_path / "no"))
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json: .*damaged"):
        open_dataset(str(tmp_path))
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"holds no tokens \(neither dataset\.json nor index\.json\)"):
        open_dataset(str(tmp_path))
    (tmp_path / ".prepare").mkdir()
    with pytest.raises(ValueError, match="was interrupted; run the same command again"):
        open_dataset(str(tmp_path))
    assert not is_prepared(str(tmp_path))


def test_vocabulary_of_tokenizer_files(tokenizer_file: str, big_vocabulary: str) -> None:
    for path, size in [(tokenizer_file, 2048), (big_vocabulary, 200_000)]:
        assert tokenizer_vocab_size(Path(path).read_bytes(), name=path) == size
    unigram = {"model": {"vocab": [["a", 0.0], ["b", 0.0]]}, "added_tokens": [{"id": 7, "content": "</s>"}]}
    assert tokenizer_vocab_size(json.dumps(unigram).encode(), name="x") == 8
    for raw in (b"{}", b"[]", b"no", b'{"model": {"vocab": {}}}'):
        with pytest.raises(ValueError, match=r"x is no tokenizer\.json"):
            tokenizer_vocab_size(raw, name="x")


def test_find_tokenizer(tokenizer_file: str, tmp_path: Path) -> None:
    assert find_tokenizer(tokenizer_file) == find_tokenizer(str(Path(tokenizer_file).parent)) == tokenizer_file
    for wrong in (tmp_path, tmp_path / "t.json"):
        with pytest.raises(ValueError, match="no tokenizer at"):
            find_tokenizer(str(wrong))


def test_planning_stays_light() -> None:
    """The launcher reads these before it knows that anything heavy is needed."""
    modules = (
        "launchyard.training.data.index, launchyard.training.data.prepare.sources, "
        "launchyard.launcher.data.resolve, launchyard.launcher.cli.data"
    )
    program = (
        f"import sys, {modules}; heavy = {{'torch', 'numpy', 'fsspec', 'tokenizers', 'pyarrow', 'xxhash', 'rich'}}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
