"""Recipe section `data`: what is read, and in which order."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from launchyard.training.sections.ramp import Ramp, check_ramp
from launchyard.training.sections.section import Section

DataKind = Literal["tokens", "instruct", "preference"]
MIN_SHARE = 1e-5  # of a source in a mixture: a smaller one could not be met to better than a tenth


class MixedSource(Section):
    """One source of a mixture."""

    source: str | list[str] = Field(description="As `data.source`: prepared folder or URL, or text.")
    kind: DataKind | None = Field(default=None, description="Default: data.kind.")
    weight: float = Field(gt=0, description="Frequency relative to the others; weights may have any sum.")


class MixtureStage(Section):
    """Other weights of a mixture from a step on."""

    from_step: int = Field(ge=0, description="Finished steps when these weights begin; 0: from the beginning.")
    weights: list[Annotated[float, Field(ge=0)]] = Field(
        min_length=2, description="One for each source of data.mixture, in its order; 0: nothing of it is read."
    )


class DataConfig(Section):
    """The tokens. A source is a prepared folder (`launch prepare`), litdata chunks, or text that is prepared first."""

    kind: DataKind = Field(
        default="tokens",
        description="tokens: next-token prediction on a stream of text; instruct: rows of instructions or "
        "conversations, of which the answers are trained for; preference: pairs of a better and a worse answer.",
    )
    source: str | list[str] | None = Field(
        default=None, description="Prepared folder or URL; or text files, folders, globs."
    )
    mixture: list[MixedSource] | None = Field(
        default=None, min_length=1, description="Instead of `source`: several, each with a weight and its own epochs."
    )
    mixture_schedule: list[MixtureStage] | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="Weights that replace those of `mixture` from a step on; each source goes on where it was. A "
        "resume may change those of steps to come.",
    )
    seq_len: int = Field(
        default=1024,
        ge=1,
        description="Tokens a sequence; each reads one more as its last label. preference: of both answers together.",
    )
    seq_len_ramp: Ramp = Field(
        default=(),
        description="tokens: shorter sequences at first: [[0, length], [from_step, length], …], divisors of seq_len, "
        "the last seq_len. Sequences of seq_len are cut, so a step has the same tokens as without; default: none.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the order in which samples are read.")
    shuffle: bool = Field(default=True, description="Read in a seeded random order, or as the tokens lie.")
    validation: float | str | None = Field(
        default=None, description="Share of documents held out when text is prepared (0.05), or a prepared folder."
    )
    packing: bool = Field(
        default=True, description="instruct: a sequence holds as many rows as fit, kept apart; false: one row."
    )
    too_long: Literal["drop", "cut-prompt", "cut-answer"] = Field(
        default="drop",
        description="instruct: what happens to rows of more than seq_len + 1 tokens. cut-prompt: the prompt loses its "
        "beginning; cut-answer: the answer loses its end, and then does not end. Also of pairs that are too long.",
    )
    style: str | None = Field(
        default=None, description="instruct: a prompt style by name; default: the chat template of the tokenizer."
    )
    template: str | None = Field(
        default=None,
        description="instruct: a Jinja chat template, as text or a .jinja file; default: the tokenizer's.",
    )
    mask_prompt: bool = Field(
        default=True, description="instruct: answers and their ends are trained for alone; false: prompts too."
    )
    columns: dict[str, str] | None = Field(
        default=None, description="instruct: our name of a column to its own, such as {prompt: query}."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.validation, (int, float)) and not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}; a share must lie in [0, 1)")
        if self.source is not None and self.mixture is not None:
            raise ValueError("give source or mixture, not both")
        check_ramp(self.seq_len_ramp, "seq_len_ramp", self.seq_len, "seq_len")
        if odd := [length for _, length in self.seq_len_ramp if self.seq_len % length]:
            raise ValueError(f"seq_len_ramp: {odd[0]} does not divide seq_len, {self.seq_len}, which is cut")
        kinds = {source.kind or self.kind for source in self.mixture or ()} | {self.kind}
        if len(kinds) > 1 and "preference" in kinds:
            raise ValueError("pairs of answers (preference) are trained for in another way than text; mix them alone")
        if not self.mask_prompt and kinds != {"instruct"}:
            raise ValueError("mask_prompt: only rows of kind instruct have prompts to train for; leave it out")
        if self.seq_len_ramp and kinds != {"tokens"}:
            raise ValueError("seq_len_ramp: rows are not cut, so it is for kind tokens alone; leave it out")
        weights = [source.weight for source in self.mixture or ()]
        for number, weight in enumerate(weights):
            if weight < MIN_SHARE * sum(weights):
                least = f"at least 1/{1 / MIN_SHARE:,.0f} of their sum"
                raise ValueError(f"mixture.{number}.weight is {weight:g} of {sum(weights):g}; each must be {least}")
        _check_stages(self.mixture_schedule or [], len(weights))
        return self


def _check_stages(stages: list[MixtureStage], n_sources: int) -> None:
    """ValueError unless every stage fits a mixture of so many sources."""
    if stages and n_sources < 2:
        raise ValueError("mixture_schedule changes the weights of data.mixture, which needs at least two sources")
    for number, stage in enumerate(stages):
        where = f"mixture_schedule.{number}"
        if len(stage.weights) != n_sources:
            raise ValueError(f"{where}.weights has {len(stage.weights)} numbers; data.mixture has {n_sources} sources")
        if number and stage.from_step <= stages[number - 1].from_step:
            before = stages[number - 1].from_step
            raise ValueError(f"{where}.from_step is {stage.from_step}, after {before}; steps must rise")
        total = sum(stage.weights)
        if not 0 < total < math.inf:
            raise ValueError(f"{where}.weights are {stage.weights}; one at least must be above zero")
        for weight in stage.weights:
            if 0 < weight < MIN_SHARE * total:
                least = f"0, or at least 1/{1 / MIN_SHARE:,.0f} of their sum"
                raise ValueError(f"{where}.weights has {weight:g} of {total:g}; each must be {least}")
