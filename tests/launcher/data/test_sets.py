"""More held-out data by name: found as any source is, whole, by the same tokenizer, and part of the digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchyard.errors import MissingDataError, UserError
from launchyard.launcher.data.resolve import Resolved, ensure_prepared, resolve
from launchyard.training.data.index import read_dataset
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.sections.data import DataConfig
from tests.support.litdata_reader import write_chunks

Sets = dict[str, str | list[str]]


@pytest.fixture
def place(tmp_path: Path, novel: str, tokenizer_file: str) -> Path:
    """Texts `a`, `b` and `c`, of which `b` is prepared as `made`, with a part held out."""
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.txt").write_text(novel[number * 40_000 : (number + 1) * 40_000])
    (tmp_path / "tokenizer.json").write_bytes(Path(tokenizer_file).read_bytes())
    prepare([str(tmp_path / "b.txt")], tokenizer=tokenizer_file, out=str(tmp_path / "made"), validation=0.1)
    return tmp_path


def found(place: Path, sets: Sets, *, tokenizer: str | None = "tokenizer.json", **data: object) -> Resolved:
    section = DataConfig(**{"source": "a.txt", "validation": 0.1} | data)
    return resolve(section, tokenizer, base=str(place), cache=str(place / "cache"), sets=sets)


def n_tokens(resolved: Resolved) -> dict[str, int]:
    return {name: sum(one.n_tokens for one in sources) for name, sources in resolved.spec.sets.items()}


def test_text_and_prepared_folders_whole(place: Path) -> None:
    guess = found(place, {"web": ["c.txt"], "made": "made"})
    assert not guess.prepared and n_tokens(guess)["web"] == 40_000 // 4
    exact = ensure_prepared(guess)
    assert exact.prepared and found(place, {"web": "c.txt", "made": "made"}) == exact
    made = read_dataset(str(place / "made"))
    alone = prepare([str(place / "c.txt")], tokenizer=str(place / "tokenizer.json"), out=str(place / "alone"))
    assert made is not None and set(made.splits) == {"train", "validation"}
    assert n_tokens(exact) == {"web": alone.tokens, "made": made.tokens}
    assert [one.folder for one in exact.spec.sets["made"]] == [f"{place}/made/{part}" for part in made.splits]
    assert exact.spec.train == ensure_prepared(found(place, {})).spec.train, "what is trained on is as it was"


def test_all_of_it_is_part_of_the_digest(place: Path) -> None:
    def digest(sets: Sets) -> str:
        return ensure_prepared(found(place, sets)).spec.digest

    both = digest({"web": "c.txt", "made": "made"})
    assert both == digest({"made": "made", "web": "c.txt"}), "not their order"
    others = [digest(sets) for sets in ({}, {"web": "c.txt"}, {"web": "made", "made": "c.txt"}, {"made": "made"})]
    assert len({both, *others}) == 5
    (place / "c.txt").write_text("other text " * 1000)
    assert digest({"web": "c.txt", "made": "made"}) != both


def test_text_takes_the_tokenizer_of_the_tokens(place: Path) -> None:
    """Whether a prepared folder has it, or another text."""
    resolved = ensure_prepared(found(place, {"web": "c.txt"}, tokenizer=None, source="made", validation=None))
    web = read_dataset(str(Path(resolved.spec.sets["web"][0].folder).parent))
    made = read_dataset(str(place / "made"))
    assert web is not None and made is not None and web.tokenizer.sha256 == made.tokenizer.sha256


def test_what_is_refused_is_named(place: Path, big_vocabulary: str) -> None:
    prepare([str(place / "c.txt")], tokenizer=big_vocabulary, out=str(place / "other"))
    with pytest.raises(UserError, match=r"validation\.sets\.web: .*is not the one that made the tokens of .*other"):
        found(place, {"web": "other"})
    with pytest.raises(UserError, match=r"validation\.sets\.web: .*made/.* is not the one that made .*other"):
        found(place, {"web": "other"}, tokenizer=None, source="made", validation=None)
    with pytest.raises(MissingDataError, match=r"validation\.sets\.web: .*nowhere\.txt does not exist"):
        found(place, {"code": "c.txt", "web": "nowhere.txt"})
    with pytest.raises(UserError, match=r"validation\.sets\.web lists a prepared folder among others"):
        found(place, {"web": ["made", "c.txt"]})
    write_chunks(place / "bare", list(range(300)), chunk=90)
    with pytest.raises(UserError, match=r"tokenizer is missing: validation\.sets\.web is text"):
        found(place, {"web": "c.txt"}, tokenizer=None, source="bare", validation=None)
    with pytest.raises(UserError, match=r"validation\.sets\.web: .*holds tokens, and its kind is instruct"):
        rows = place / "rows.jsonl"
        rows.write_text('{"prompt": "a", "response": "b"}\n' * 40)
        found(place, {"web": "made"}, source="rows.jsonl", kind="instruct", style="alpaca", seq_len=256)


def test_conversations(place: Path) -> None:
    for name, n in (("rows", 40), ("more", 30)):
        lines = [f'{{"prompt": "{number}", "response": "b"}}' for number in range(n)]
        (place / f"{name}.jsonl").write_text("\n".join(lines))
    keys: dict[str, object] = {"source": "rows.jsonl", "kind": "instruct", "style": "alpaca", "seq_len": 256}
    resolved = ensure_prepared(found(place, {"more": "more.jsonl"}, **keys))
    (source,) = resolved.spec.sets["more"]
    assert source.instruct is not None and source.instruct.rows == 30
