"""Which seeds are played, and the table of what was really done at the end."""

from __future__ import annotations

import json
from collections import Counter

import pytest

pytest.register_assert_rewrite("tests.chaos.harness", "tests.chaos.witness")

from tests.chaos.plan import CLAIMS, FAULTS, INSTANTS  # noqa: E402
from tests.chaos.runs import References  # noqa: E402

SEEDS = "0-1"
KINDS = {*FAULTS, *(f"kill: {instant}" for instant in (*INSTANTS, *CLAIMS))}
_session: dict[str, pytest.Config] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", default=SEEDS, help="of chaos: 7, or 0-39, or 1,5,8-9")
    parser.addoption("--faults", type=int, default=0, help="of chaos: fail unless so many were really brought about")
    parser.addoption("--every-kind", action="store_true", help="of chaos: fail if a kind of fault was never met")


def seeds_of(text: str) -> list[int]:
    """The numbers in a list of numbers and ranges."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", seeds_of(metafunc.config.getoption("--seeds", SEEDS)))


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory.mktemp("undisturbed"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Progress, in the process that has the terminal."""
    said = dict(report.user_properties).get("said")
    if said and report.when == "call" and not hasattr(_session.get("config"), "workerinput"):
        print(f"\n{report.outcome}: {said}", flush=True)


def pytest_configure(config: pytest.Config) -> None:
    _session["config"] = config


# -- the table -------------------------------------------------------------------------------------------------------
def tallies(reporter: pytest.TerminalReporter) -> list[dict[str, object]]:
    """What the cases recorded, in whichever process they ran."""
    reports = [report for name in ("passed", "failed") for report in reporter.stats.get(name, [])]
    return [json.loads(value) for report in reports for name, value in report.user_properties if name == "chaos"]


def summed(found: list[dict[str, object]], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in found:
        total.update(one[name])  # type: ignore[call-overload]
    return total


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = tallies(terminalreporter)
    if not found:
        return
    faults, requests = summed(found, "faults"), summed(found, "requests")
    terminalreporter.section("chaos")
    for kind, count in sorted(faults.items()):
        more = f"  ({requests[kind]} requests)" if kind in requests else ""
        terminalreporter.line(f"{count:5}  {kind}{more}")
    attempts = sum(int(str(one["attempts"])) for one in found)
    terminalreporter.line(f"{faults.total():5}  faults in {len(found)} runs of {attempts} attempts")
    for name in ("victims", "ways"):
        said = ", ".join(f"{count} {kind}" for kind, count in summed(found, name).most_common())
        terminalreporter.line(f"       {name}: {said}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Too little chaos proves too little."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus or reporter is None or hasattr(session.config, "workerinput"):
        return
    faults = summed(tallies(reporter), "faults")
    missing = sorted(KINDS - faults.keys()) if session.config.getoption("--every-kind") else []
    least = int(session.config.getoption("--faults"))
    if missing or faults.total() < least:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(f"\nchaos: {faults.total()} faults of {least}; never met: {', '.join(missing) or 'none'}")
