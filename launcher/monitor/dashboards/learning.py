"""The panels of how a run learns."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import timeseries

from launchyard.launcher.monitor.dashboards.panels import RATE, RUN, lines


def learning() -> list[Any]:
    return [
        lines(
            "Loss",
            "Falls, quickly at first; the validation loss stays near the training loss.",
            (f"max by (run_id) (trainer_loss{{{RUN}}})", "training {{run_id}}"),
            (f"max by (run_id, set) (trainer_validation_loss{{{RUN}}})", "validation {{set}} {{run_id}}"),
            span=16,
        ),
        lines(
            "Trouble",
            "Nothing: no step with a loss that is not finite, and no spikes. In fp16 a skipped step now and then.",
            (f"sum by (run_id) (increase(trainer_loss_spikes_total{{{RUN}}}[{RATE}]))", "spikes {{run_id}}"),
            (f"sum by (run_id) (increase(trainer_nonfinite_steps_total{{{RUN}}}[{RATE}]))", "not finite {{run_id}}"),
            (f"sum by (run_id) (increase(trainer_skipped_steps_total{{{RUN}}}[{RATE}]))", "skipped {{run_id}}"),
            low=0,
        ),
        *_of_held_out_text(),
        lines(
            "Scores of tasks",
            "Of `validation.tasks` alone: rise, and less and less. Without a task there is nothing here.",
            (
                f"max by (run_id, task, metric, filter) (trainer_task_score{{{RUN}}})",
                "{{task}} {{metric}} {{filter}} {{run_id}}",
            ),
            span=24,
        ),
        *_of_preferences(),
        *of_updates(),
    ]


def _of_held_out_text() -> list[timeseries.Panel]:
    return [
        lines(
            "Perplexity of held-out text",
            "Falls with the loss, of which it is exp: among so many tokens the model is as unsure as of equal ones.",
            (f"max by (run_id, set) (trainer_validation_perplexity{{{RUN}}})", "{{set}} {{run_id}}"),
            span=12,
        ),
        lines(
            "Bits per byte of held-out text",
            "Falls; unlike the loss it compares models whose tokenizers differ. Not of tokens without a tokenizer.",
            (f"max by (run_id, set) (trainer_validation_bpb{{{RUN}}})", "{{set}} {{run_id}}"),
            span=12,
            low=0,
        ),
    ]


def _of_preferences() -> list[timeseries.Panel]:
    return [
        lines(
            "Figures of your own",
            "Of `code` alone: what the loss, or on_step, of your own file measures. Without one there is nothing here.",
            (
                f"max by (run_id, figure, dataset, set) (trainer_own_figure{{{RUN}}})",
                "{{figure}} {{dataset}} {{set}} {{run_id}}",
            ),
            span=24,
        ),
        lines(
            "Rewards of answers",
            "Training on preferences alone: the margin grows; rewards of chosen answers do not fall with the others.",
            (
                f"max by (run_id, dataset, set) (trainer_reward_chosen{{{RUN}}})",
                "chosen {{dataset}} {{set}} {{run_id}}",
            ),
            (
                f"max by (run_id, dataset, set) (trainer_reward_rejected{{{RUN}}})",
                "rejected {{dataset}} {{set}} {{run_id}}",
            ),
            (
                f"max by (run_id, dataset, set) (trainer_reward_margin{{{RUN}}})",
                "margin {{dataset}} {{set}} {{run_id}}",
            ),
            span=12,
        ),
        lines(
            "Pairs told apart",
            "Training on preferences alone: above one half, in validation too.",
            (f"max by (run_id, dataset, set) (trainer_reward_accuracy{{{RUN}}})", "{{dataset}} {{set}} {{run_id}}"),
            span=12,
            unit="percentunit",
            low=0,
        ),
    ]


def of_updates() -> list[timeseries.Panel]:
    scale = (f"max by (run_id) (trainer_loss_scale{{{RUN}}})", "{{run_id}}")
    return [
        lines(
            "Gradient norm",
            "Settles after the warm-up; slow growth over hours announces a divergence.",
            (f"max by (run_id) (trainer_grad_norm{{{RUN}}})", "{{run_id}}"),
            low=0,
        ),
        lines("Scale of the loss", "In fp16 alone: falls at first, then rests.", scale),
        lines(
            "Learning rate",
            "The schedule that you meant, going on where it was after every resume.",
            (f"max by (run_id) (trainer_learning_rate{{{RUN}}})", "{{run_id}}"),
            unit="sci",
            low=0,
        ),
        lines(
            "Gradient norm by part",
            "Of `metrics.grad_norms` alone: parts keep their order; one that leaves the others names where it begins.",
            (f"max by (run_id, part) (trainer_part_grad_norm{{{RUN}}})", "{{part}} {{run_id}}"),
            (f"max by (run_id, group) (trainer_group_grad_norm{{{RUN}}})", "group {{group}} {{run_id}}"),
            span=24,
            low=0,
        ),
    ]
