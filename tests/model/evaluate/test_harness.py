"""Our answers to lm-eval against those of its own `--model hf` for the same folder: the same, task by task."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard import load
from tests.model.evaluate.conftest import MAX_LENGTH, NO_SYSTEM, TEMPLATE, write_model

NAMES = ["our_choice", "our_rolling", "our_until"]


@dataclass
class Both:
    ours: Any
    theirs: Any


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Both]]:
    """Ours and theirs, of a tokenizer that adds a BOS and one that adds none."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their imports
        patch.setenv("HF_HUB_OFFLINE", "1")
        from lm_eval.models.huggingface import HFLM

        from launchyard.model.evaluate.harness import HarnessModel

        found = {}
        for adds_bos in (False, True):
            folder = str(write_model(tmp_path_factory.mktemp("model"), adds_bos=adds_bos))
            loaded = load(folder, device="cpu", dtype=torch.float32)
            found[adds_bos] = Both(HarnessModel(loaded), HFLM(folder, device="cpu", dtype="float32", batch_size=1))
        yield found


def results(lm: Any, folder: Path, **settings: object) -> Any:
    from launchyard.model.evaluate.tasks import TaskList, TaskSettings, run_tasks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_tasks(lm, TaskList(NAMES, [str(folder)]), TaskSettings(**settings))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_tasks_end_as_theirs(both: dict[bool, Both], tasks: Path, adds_bos: bool, chat: bool) -> None:
    ours = results(both[adds_bos].ours, tasks, chat=chat)
    theirs = results(both[adds_bos].theirs, tasks, chat=chat)
    assert {sample["task"] for sample in ours.samples} == set(NAMES)
    for own, other in zip(ours.samples, theirs.samples, strict=True):
        assert own["arguments"] == other["arguments"]
        for mine, given in zip(own["resps"], other["resps"], strict=True):
            if own["task"] == "our_until":
                assert mine == given
            elif own["task"] == "our_choice":
                assert mine[0][0] == pytest.approx(given[0][0], abs=1e-3)
                assert mine[0][1] == given[0][1]
            else:
                assert mine[0] == pytest.approx(given[0], abs=1e-2, rel=1e-6)
    assert [row["value"] for row in ours.rows] == pytest.approx([row["value"] for row in theirs.rows], rel=1e-4)
    assert {row["n_shot"] for row in ours.rows} == {0, 1}


def asking(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, place, ("task", place, 1)) for place, one in enumerate(arguments)]


PAIRS = [
    ("the cat", " dog, the end of the tale"),
    ("the cat ", "yes 1 2"),
    ("the cat\n\n", "yes"),
    ("", "the cat"),
    ("", "<bos>the cat"),
    ("<bos>the cat", " yes 1 2"),
    ("Answer:", " yes 1"),  # one token holds the colon and the blank
    ("the tale: " * 40, "yes 1 2"),
    ("你好 😀", " ñ"),
    (" ", "yes 1"),
]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_pairs_score_as_theirs(both: dict[bool, Both], adds_bos: bool) -> None:
    pairs = PAIRS if adds_bos else PAIRS[:-1]  # theirs fails on a context of blanks alone
    ours = both[adds_bos].ours.loglikelihood(asking("loglikelihood", *pairs))
    theirs = both[adds_bos].theirs.loglikelihood(asking("loglikelihood", *pairs), disable_tqdm=True)
    assert [one[1] for one in ours] == [one[1] for one in theirs]
    assert [one[0] for one in ours] == pytest.approx([one[0] for one in theirs], abs=1e-3)


def test_a_context_of_blanks_is_an_empty_one(both: dict[bool, Both]) -> None:
    ours = both[False].ours
    assert ours.loglikelihood(asking("loglikelihood", (" ", "yes"))) == ours.loglikelihood(
        asking("loglikelihood", ("", " yes"))
    )


@pytest.mark.parametrize("adds_bos", [False, True])
def test_texts_end_as_theirs(both: dict[bool, Both], adds_bos: bool) -> None:
    lms = both[adds_bos]
    free = lms.ours.generate_until(asking("generate_until", ("the cat", {"max_gen_toks": 40})))[0]
    assert len(free) > 20
    asks = [
        ("the cat", {"until": [free[8:11]], "max_gen_toks": 40}),
        ("the cat", {"until": free[12:14], "max_new_tokens": 40}),
        ("the cat", {"until": [free[10:13], free[8:12]], "max_gen_toks": 40, "do_sample": False, "temperature": 0.7}),
        ("the cat", {"until": ["<end>"], "max_gen_toks": 40}),
        ("<bos>the cat", {"max_gen_toks": 10}),
        ("the tale: " * 40, {"max_gen_toks": 30}),
        ("the cat", {"max_gen_toks": 30, "repetition_penalty": 1.5}),
    ]
    ours = lms.ours.generate_until(asking("generate_until", *asks))
    theirs = [lms.theirs.generate_until(asking("generate_until", one), disable_tqdm=True)[0] for one in asks]
    assert ours == theirs
    assert ours[0] == free.partition(free[8:11])[0]
    assert ours[-1] != free[: len(ours[-1])]


def test_a_text_ends_at_a_special_token(both: dict[bool, Both]) -> None:
    """Which the decoded text does not show; tokens behind it, of the same step, are no part of the text."""
    from launchyard.model.evaluate.until import _End

    tokenizer = both[False].ours.loaded.tokenizer
    ids = tokenizer.encode("the cat<end>\nyes")
    end = _End(tokenizer, ("<end>\n",))
    assert not end.came(ids[:-2])
    assert end.came(ids)
    assert end.text() == "the cat\n"


def test_rolling_windows_are_theirs(both: dict[bool, Both]) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from launchyard.model.evaluate.perplexity import rolling_windows

    for n in (0, 1, 7, 8, 9, 16, 17, 23):
        theirs = get_rolling_token_windows(list(range(n)), prefix_token=-1, max_seq_len=8, context_len=1)
        assert list(rolling_windows(list(range(n)), -1, 8)) == [make_disjoint_window(window) for window in theirs]


# -- chats -----------------------------------------------------------------------------------------------------------
CHAT = [{"role": "user", "content": "the cat? "}, {"role": "assistant", "content": "Answer:"}]


@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_a_chat_is_the_text_of_theirs(both: dict[bool, Both], add_generation_prompt: bool) -> None:
    chat = CHAT[: 1 + (not add_generation_prompt)]
    ours = both[True].ours.apply_chat_template(chat, add_generation_prompt=add_generation_prompt)
    assert ours == both[True].theirs.apply_chat_template(chat, add_generation_prompt=add_generation_prompt)
    assert ours.endswith("<turn>assistant\n" if add_generation_prompt else "Answer:")
    assert ours.count("<bos>") == 1


def harness(folder: Path, **options: Any) -> Any:
    from launchyard.model.evaluate.harness import HarnessModel

    return HarnessModel(load(str(folder), device="cpu", dtype=torch.float32), **options)


def test_what_a_template_made_gets_no_bos(both: dict[bool, Both], tmp_path: Path) -> None:
    """Where it wrote none, training and chat have none."""
    bare = harness(write_model(tmp_path, adds_bos=True, template=TEMPLATE.replace("{{ bos_token }}", "")))
    text = bare.apply_chat_template(CHAT[:1])
    assert bare.tok_encode(text) == bare.loaded.chat.ids_for_generation(CHAT[:1])
    assert bare.tok_encode("the cat")[0] == bare.prefix
    context, _ = bare._pairs([(text, "yes 1 2 3")])[0]
    assert bare.prefix not in context


def test_a_template_without_system_turns_gets_none(both: dict[bool, Both], tasks: Path, tmp_path: Path) -> None:
    refusing = harness(write_model(tmp_path, adds_bos=True, template=NO_SYSTEM + TEMPLATE))
    system = {"role": "system", "content": "Be brief."}
    assert refusing.apply_chat_template([system, *CHAT[:1]]) == both[True].ours.apply_chat_template(CHAT[:1])
    assert refusing.dropped_system
    with pytest.raises(ValueError, match="no system turns"):  # that a person asked for
        results(refusing, tasks, chat=True, system="Be brief.")


def test_a_continuation_without_a_token_is_refused(both: dict[bool, Both]) -> None:
    for pair in (("the cat", ""), ("", "")):
        with pytest.raises(ValueError, match="'' has no token of its own"):
            both[False].ours.loglikelihood(asking("loglikelihood", ("the", " cat 1 2"), pair))


# -- what a task asks for --------------------------------------------------------------------------------------------
def test_a_key_that_nothing_honours_is_refused(both: dict[bool, Both]) -> None:
    with pytest.raises(ValueError, match="has num_beams: 4; what is honoured: until, do_sample"):
        both[False].ours.generate_until(asking("generate_until", ("the", {"num_beams": 4})))
    with pytest.raises(ValueError, match=f"96 new tokens, which leaves no room .* of {MAX_LENGTH}"):
        both[False].ours.generate_until(asking("generate_until", ("the", {"max_gen_toks": 96})))


def test_a_seed_draws_the_same_texts_again(both: dict[bool, Both], tmp_path: Path) -> None:
    folder = write_model(tmp_path, adds_bos=False)
    asks = asking("generate_until", *[("the", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8})] * 3)
    first = harness(folder, seed=1).generate_until(asks)
    assert len(set(first)) > 1
    assert harness(folder, seed=1).generate_until(asks) == first != harness(folder, seed=2).generate_until(asks)


def test_rules_of_the_model_count_where_the_task_says_nothing() -> None:
    pytest.importorskip("lm_eval")
    from launchyard.model.evaluate.until import MAX_GEN_TOKS, asked

    rules = {
        "generation_config.json": b'{"repetition_penalty": 1.1, "temperature": 0.6, "top_k": 20, "do_sample": true}'
    }
    greedy = asked({"until": "x"}, rules)
    assert (greedy.stops, greedy.max_new_tokens, greedy.sampling.temperature) == (("x",), MAX_GEN_TOKS, 0)
    assert (greedy.sampling.repetition_penalty, greedy.sampling.top_k) == (1.1, None)
    drawn = asked({"do_sample": True, "top_k": 0}, rules).sampling
    assert (drawn.temperature, drawn.top_k, drawn.repetition_penalty) == (0.6, None, 1.1)
    assert asked({"temperature": 0.5}, {}).sampling.temperature == 0.5
    assert asked({"temperature": 0.5, "do_sample": False}, {}).sampling.temperature == 0
