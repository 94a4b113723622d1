"""A loaded model: text in, text out, by the options of Python."""

from __future__ import annotations

import pytest

from launchyard.model.loaded import LoadedModel
from launchyard.model.serve.drafts import PromptLookup
from launchyard.model.weights.load import load
from tests.support.tiny_models import byte_tokenizer, neox, random_model, weights_of, write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("run")
    config = neox(vocab_size=300, padded_vocab_size=384)
    byte_tokenizer(folder / "tokenizer/tokenizer.json")
    write_checkpoint(folder / "checkpoints/step-00000001", config, weights_of(random_model(config)))
    return load(str(folder))


def test_several_prompts_are_written_as_each_alone(model: LoadedModel) -> None:
    prompts = ["the cat", "d", "", "the end of the tale"]
    texts = model.generate(prompts, seed=5, max_new_tokens=20, stop=["the", "x"])
    assert texts == [
        model.generate(prompt, seed=5 + n, max_new_tokens=20, stop=["the", "x"]) for n, prompt in enumerate(prompts)
    ]
    assert len(set(texts)) == 4
    assert model.generate([]) == []
    with pytest.raises(ValueError, match="several prompts are not streamed"):
        model.generate(prompts, stream=True)  # type: ignore[call-overload]


def test_a_text_of_many_says_when_it_has_ended(model: LoadedModel) -> None:
    ended = [number for number, piece, text in model.write(["the cat", "d"], seed=3) if text.ended and not piece]
    assert sorted(ended) == [0, 1]


def test_guesses_bias_and_beams_by_their_names(model: LoadedModel) -> None:
    plain = model.generate("the cat", seed=5, max_new_tokens=20)
    for drafter in (PromptLookup(), model.drafted_by(model)):
        assert model.generate("the cat", seed=5, max_new_tokens=20, drafter=drafter, n_guesses=2) == plain
    (token,) = model.tokenizer.encode("d")
    assert model.generate("the cat", max_new_tokens=5, logit_bias={token: 100.0}) == "ddddd"
    found = model.beam_search("the cat", width=4, n=4, max_new_tokens=6)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert len(found) == 4


def test_a_benchmark_tells_speed(model: LoadedModel) -> None:
    told = model.benchmark("the cat", max_new_tokens=8, repeats=2)
    assert told["first_token_seconds"] > 0
    assert told["tokens_per_second"] > 0
    assert (told["n_prompt"], told["repeats"]) == (len(model.tokenizer.encode("the cat")), 2)
