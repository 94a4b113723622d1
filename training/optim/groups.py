"""The rules of a recipe for parameters by name. Light: the launcher asks it, too; knows names alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from launchyard.training.sections.optimizer import GroupRule


def rule_of(name: str, rules: Sequence[GroupRule]) -> GroupRule | None:
    """The first that matches."""
    return next((rule for rule in rules if fnmatchcase(name, rule.match)), None)


def check_rules(rules: Sequence[GroupRule], trained: Iterable[str]) -> None:
    """ValueError for a rule that decides about no parameter that trains."""
    names = list(trained)
    for number, rule in enumerate(rules):
        if any(rule_of(name, rules) is rule for name in names):
            continue
        matched = [name for name in names if fnmatchcase(name, rule.match)]
        if matched:
            first = rule_of(matched[0], rules)
            assert first is not None
            raise ValueError(f"{number}.match: {rule.match} comes behind {first.match}, which has all that it matches")
        listed = ", ".join(names[:4])
        raise ValueError(f"{number}.match: no parameter that trains matches {rule.match}; their names are {listed}, …")
