"""The counters of a run come back as they were saved."""

from __future__ import annotations

import json

from launchyard.training.checkpoint.state import TrainState


def test_counters_survive() -> None:
    state = TrainState(step=7, tokens_seen=90, validation_loss=1.5, validated_step=6)
    assert TrainState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_manifests_of_the_first_version_are_read() -> None:
    saved = {"step": 7, "tokens_seen": 90, "validation_loss": 1.5, "extra": {"validated_step": 6}}
    assert TrainState.from_json(saved) == TrainState(step=7, tokens_seen=90, validation_loss=1.5, validated_step=6)
    assert TrainState.from_json({"step": 1, "extra": {}}).validated_step is None
