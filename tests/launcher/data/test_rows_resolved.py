"""Prepared instructions as the data of a recipe: their kind, the sequences of each epoch, and a mixture with text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from launchyard.errors import UserError
from launchyard.launcher.data.resolve import resolve
from launchyard.launcher.submit.run_data import count_more
from launchyard.training.batching import count_steps
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.index import Dataset, HoldOut, Options, TokenizerEntry
from launchyard.training.data.instruct.conversation import Row
from launchyard.training.data.mixed_reader import MixedReader
from launchyard.training.data.open_reader import open_reader
from launchyard.training.data.prepare.rows import write_rows
from launchyard.training.data.row_reader import RowReader
from launchyard.training.recipe import Recipe
from launchyard.training.sections.data import DataConfig
from launchyard.training.spec import DataSpec
from tests.support.small_runs import RECIPE, write_data

SEQ_LEN = 16


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Instructions as `launch prepare --kind instruct` leaves them."""
    folder = tmp_path_factory.mktemp("rows")
    lengths = [3 + number * 7 % (SEQ_LEN - 1) for number in range(50)]
    made = [Row(np.full(n, number), np.arange(n) > n // 2, "") for number, n in enumerate(lengths)]
    splits = write_rows([[row] for row in made], str(folder), chunk_tokens=100)
    dataset = Dataset(
        kind="instruct",
        digest="d",
        tokenizer=TokenizerEntry(file="tokenizer/tokenizer.json", sha256="t", eos="e", eos_id=0),
        vocab_size=97,
        dtype="uint32",
        documents=50,
        empty_documents=0,
        tokens=sum(lengths),
        holdout=HoldOut(unit="nothing"),
        options=Options(chunk_tokens=100),
        sources=[],
        splits=splits,
    )
    (folder / "dataset.json").write_text(dataset.model_dump_json())
    return str(folder)


def config(source: str, **keys: object) -> DataConfig:
    return DataConfig.model_validate({"kind": "instruct", "source": source, "seq_len": SEQ_LEN, **keys})


@pytest.mark.parametrize("packing", [True, False])
def test_the_plan_counts_the_steps_that_the_reader_makes(rows: str, packing: bool) -> None:
    data = config(rows, packing=packing, seed=4)
    spec = resolve(data, None, epochs=2.5).spec
    train = {"max_epochs": 2.5, "global_batch_size": 4}
    recipe = Recipe.model_validate({**RECIPE, "data": data.model_dump(), "train": train})
    steps = count_steps(recipe, spec)
    reader = open_reader(spec.train, recipe=recipe, global_batch_size=4, cache=ChunkCache(), training=True)
    assert isinstance(reader, RowReader)
    assert reader.batch(steps - 1).n_valid > 0
    assert reader.batch(steps).n_valid == 0
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_epochs": 4})})
    with pytest.raises(ValueError, match="max_steps"):
        count_steps(longer, spec)
    more = count_more(longer, spec)  # of a resume
    assert more.train[0].instruct == resolve(data, None, epochs=4).spec.train[0].instruct
    assert count_steps(recipe, more) == steps < count_steps(longer, more)
    assert count_more(recipe, spec) is spec


def test_data_of_the_other_kind_is_refused_with_the_key_that_mends_it(rows: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds instruct") as caught:
        resolve(config(rows, kind="tokens"), None)
    assert caught.value.hint == "data.kind=instruct"
    write_data(tmp_path / "text")
    mixture = [{"source": rows, "weight": 1}, {"source": str(tmp_path / "text/train"), "weight": 1}]
    with pytest.raises(UserError, match="holds tokens") as caught:
        resolve(DataConfig.model_validate({"kind": "instruct", "mixture": mixture, "seq_len": SEQ_LEN}), None)
    assert caught.value.hint == "data.mixture.1.kind=tokens"


def test_a_row_that_fits_no_sequence_is_refused_with_the_length_that_is_needed(rows: str) -> None:
    with pytest.raises(UserError, match="longest row") as caught:
        resolve(config(rows, seq_len=SEQ_LEN // 2), None)
    hint = caught.value.hint
    assert hint is not None
    needed = int(hint.partition(",")[0].removeprefix("data.seq_len="))
    assert resolve(config(rows, seq_len=needed), None).spec.train[0].instruct is not None


def test_instructions_and_text_are_mixed_by_weight(rows: str, tmp_path: Path) -> None:
    write_data(tmp_path / "text")
    text = {"source": str(tmp_path / "text/train"), "weight": 3, "kind": "tokens"}
    mixture = [{"source": rows, "weight": 1}, text]
    data = DataConfig.model_validate({"kind": "instruct", "mixture": mixture, "seq_len": SEQ_LEN})
    spec: DataSpec = resolve(data, None).spec
    recipe = Recipe.model_validate({**RECIPE, "data": data.model_dump()})
    reader = open_reader(spec.train, recipe=recipe, global_batch_size=8, cache=ChunkCache(), training=True)
    assert isinstance(reader, MixedReader)
    sources, _ = reader.plan(0, 0, 8, 20)
    assert abs(int((sources == 1).sum()) - 120) <= 2
    batch = reader.batch(2)
    assert batch.documents is not None
    for source, documents, labels in zip(sources[2].tolist(), batch.documents, batch.labels, strict=True):
        whole = documents == (SEQ_LEN,)
        assert whole == (source == 1)
        assert source == 0 or int((labels >= 0).sum()) == SEQ_LEN
