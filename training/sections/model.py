"""Recipe section `model`."""

from __future__ import annotations

from pydantic import Field, create_model

from launchyard.model.config import ModelConfig
from launchyard.training.sections.section import Section


class _ModelSource(Section):
    preset: str | None = Field(default=None, description="A named shape, see `launch models`.")
    init_from: str | None = Field(
        default=None,
        description="Weights to start from: an HF directory, a checkpoint or a run, anywhere; or a model of the hub "
        "that `launch download` got.",
    )


# Every knob of ModelConfig, each optional here: set over the preset, or all of them without one.
ModelSection: type[_ModelSource] = create_model(
    "ModelSection",
    __base__=_ModelSource,
    __doc__="The model: a preset, weights to start from, or its knobs one by one.",
    **{
        key: (field.annotation | None, Field(default=None, description=field.description))  # type: ignore[operator]
        for key, field in ModelConfig.model_fields.items()
    },  # type: ignore[call-overload]
)
