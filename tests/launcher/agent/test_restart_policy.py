"""The one owner of restarts, as a table and as rules that hold for any history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.launcher.agent.restart_policy import (
    AGENT_LOST,
    BACK_OFF_CAP,
    NODE_BAD,
    NODE_LOST,
    AttemptSummary,
    after_attempt,
)


def done(outcome: str, reason: str = "x", *, fatal: bool = False, progressed: bool = False) -> AttemptSummary:
    return AttemptSummary(0, outcome, reason, fatal, progressed)


def unstarted(reason: str) -> AttemptSummary:
    return AttemptSummary(0, "failed", reason, stepped=False)


FAILED, PROGRESSED = done("failed", "error"), done("failed", "error", progressed=True)
PREEMPTED = done("stopped", "preempted")
LOST = done("failed", NODE_LOST)


@pytest.mark.parametrize(
    ("history", "action", "delay"),
    [
        ([done("completed", "done")], "end", 0),
        ([done("stopped", "stop")], "end", 0),
        ([done("stopped", "terminated")], "end", 0),
        ([done("stopped", "cancelled")], "end", 0),
        ([PREEMPTED], "again", 0),
        ([done("stopped", "time limit")], "again", 0),
        ([PREEMPTED] * 50, "again", 0),
        ([done("failed", "non-finite", fatal=True)], "end", 0),
        ([FAILED], "again", 0),
        ([FAILED, FAILED], "again", 2),
        ([FAILED, FAILED, FAILED], "end", 0),
        ([unstarted(AGENT_LOST)], "again", 10),
        ([unstarted(AGENT_LOST)] * 2, "again", 20),
        ([unstarted(AGENT_LOST)] * 3, "end", 0),
        ([unstarted("error")] * 2, "again", 2),
        ([done("failed", AGENT_LOST)], "again", 0),
        ([unstarted("error")], "again", 1),
        ([FAILED, FAILED, PROGRESSED], "again", 0),
        ([PROGRESSED] * 50, "again", 0),
        ([FAILED, FAILED, PROGRESSED, FAILED, FAILED], "again", 2),
        ([LOST] * 50, "again", 0),
        ([FAILED, LOST, LOST, LOST, FAILED], "again", 2),
        ([FAILED, LOST, FAILED, LOST, FAILED], "end", 0),
        ([FAILED, FAILED, done("failed", NODE_BAD)], "again", 0),
        ([FAILED, PREEMPTED, FAILED, PREEMPTED, FAILED], "end", 0),
        ([FAILED, FAILED, done("stopped", "preempted", progressed=True), FAILED], "again", 0),
    ],
)
def test_table(history: list[AttemptSummary], action: str, delay: float) -> None:
    decision = after_attempt(history, max_failures=3)
    assert (decision.action, decision.delay_seconds) == (action, delay)
    assert decision.why


def test_back_off_doubles_up_to_its_cap() -> None:
    delays = [after_attempt([FAILED] * n, max_failures=100).delay_seconds for n in range(1, 12)]
    assert delays[:6] == [0, 2, 4, 8, 16, 32]
    assert set(delays[6:]) == {BACK_OFF_CAP}


def test_no_failure_is_allowed_where_none_is() -> None:
    assert after_attempt([FAILED], max_failures=0).action == "end"
    assert after_attempt([PREEMPTED], max_failures=0).action == "again"


summaries = st.builds(
    AttemptSummary,
    st.just(0),
    st.sampled_from(["completed", "stopped", "failed"]),
    st.sampled_from(["preempted", "time limit", "stop", "error"]),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(summaries, min_size=1, max_size=20), st.integers(0, 5))
def test_a_preemption_always_goes_on_and_a_crash_loop_always_ends(
    history: list[AttemptSummary], max_failures: int
) -> None:
    assert after_attempt([*history, PREEMPTED], max_failures=max_failures).action == "again"
    assert after_attempt([*history, *[FAILED] * max(1, max_failures)], max_failures=max_failures).action == "end"
    assert 0 <= after_attempt(history, max_failures=max_failures).delay_seconds <= BACK_OFF_CAP


@given(st.lists(st.one_of(summaries, st.just(LOST)), max_size=20), st.integers(0, 5))
def test_a_lost_node_never_counts_as_a_failure(history: list[AttemptSummary], max_failures: int) -> None:
    helped = [one for one in history if one != LOST]
    decision = after_attempt([*history, FAILED], max_failures=max_failures)
    assert decision == after_attempt([*helped, FAILED], max_failures=max_failures)
    assert after_attempt([*history, LOST], max_failures=max_failures).action == "again"


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        after_attempt([], max_failures=3)
