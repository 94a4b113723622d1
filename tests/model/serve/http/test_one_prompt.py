"""The ids of a chat are those of transformers in training, chat and serve: a BOS comes once or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launchyard.model.serve.conversation import Dialogue
from launchyard.model.serve.requests import Request
from launchyard.training.data.instruct.conversation import Conversation, Turn
from launchyard.training.data.instruct.render import Renderer
from tests.model.evaluate.conftest import TEMPLATE, write_model
from tests.model.serve.served import served

ASKED = [{"role": "system", "content": "the end"}, {"role": "user", "content": "the cat and the dog"}]
TEMPLATES = {"with BOS": TEMPLATE, "without BOS": TEMPLATE.removeprefix("{{ bos_token }}")}


@pytest.mark.parametrize("adds_bos", [False, True], ids=["plain tokenizer", "tokenizer that adds BOS"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_one_chat_has_one_prompt_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, adds_bos: bool
) -> None:
    from transformers import AutoTokenizer

    folder = write_model(tmp_path / "m", adds_bos=adds_bos, template=TEMPLATES[name])
    theirs: Any = AutoTokenizer.from_pretrained(str(folder))
    expected = theirs.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert expected.count(theirs.bos_token_id) == (name == "with BOS")
    with served(folder) as tiny:
        asked: list[list[int]] = []
        submit = tiny.server.service.submit

        def noted(requests: list[Request], **options: Any) -> Any:
            asked.extend(list(request.prompt) for request in requests)
            return submit(requests, **options)

        monkeypatch.setattr(tiny.server.service, "submit", noted)
        answer = tiny.post("/v1/chat/completions", {"messages": ASKED, "max_tokens": 2})
        assert answer.json()["usage"]["prompt_tokens"] == len(expected)
        assert asked == [expected]
        dialogue = Dialogue(tiny.model, system=ASKED[0]["content"])
        assert list(dialogue.answer(ASKED[1]["content"], max_new_tokens=2).prompt) == expected
        dialogue.close()
        turns = [Turn(one["role"], one["content"]) for one in ASKED]
        said = Turn("assistant", "yes", trained=True)
        row = Renderer(tiny.model.tokenizer).row(Conversation((*turns, said), "here"))
        assert row is not None
        assert row.ids[: len(expected)].tolist() == expected
        assert row.trained.nonzero()[0][0] == len(expected)
