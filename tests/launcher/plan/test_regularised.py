"""What a plan says of regularisers and averages: where they do not fit, and what they take."""

from __future__ import annotations

from tests.launcher.plan.test_planner import plan_of, problems_of


def test_what_regularises_single_tokens_is_not_for_pairs() -> None:
    pairs = {"data__kind": "preference", "preference__loss": "simpo"}
    for key in ("label_smoothing", "z_loss", "dropout"):
        assert f"train.{key}" in problems_of(**pairs, **{f"train__{key}": 0.1})
    assert (
        "parallel.tp" in problems_of(train__dropout=0.1, parallel__tp=2, resources__nproc_per_node=2)["train.dropout"]
    )
    assert "set train.ema_decay" in problems_of(validation__ema=True)["validation.ema"]


def test_averages_and_dropout_are_counted() -> None:
    plain, averaged, dropped = plan_of(), plan_of(train__ema_decay=0.9), plan_of(train__dropout=0.1)
    one_moment = plain.memory["optimizer"] // 2
    less = {plan.memory["total"] - plan.memory["staging"] for plan in (plain, averaged)}
    assert max(less) - min(less) == one_moment
    assert averaged.memory["optimizer"] == 3 * one_moment
    assert averaged.checkpoint_bytes * 3 == plain.checkpoint_bytes * 4
    weights = plain.model.n_layers * plain.model.n_heads * plain.batch.seq_len**2 * plain.batch.micro_batch_size
    assert dropped.memory["activations"] - plain.memory["activations"] > 8 * weights
