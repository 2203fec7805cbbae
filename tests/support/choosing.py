"""Choice of the cases: `make test` leaves out slow tests and most combinations of parameters, `make test-all` none."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import pytest


def left_out_of_make_test(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Return the tests marked slow, and of each other test the cases that are not needed to try every parameter."""
    left_out, tests = set(), defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow"):
            left_out.add(item)
        elif not item.get_closest_marker("skip"):
            tests[item.parent, getattr(item, "originalname", item.name)].append(item)
    for cases in tests.values():
        chosen = covering([_values(case) for case in cases])
        left_out.update(case for i, case in enumerate(cases) if i not in chosen)
    return left_out


def _values(case: pytest.Item) -> dict[str, Hashable]:
    """Return the value of each parameter of a case."""
    parameters = case.callspec.params if isinstance(case, pytest.Function) and hasattr(case, "callspec") else {}
    return {name: _key(value) for name, value in parameters.items()}


def _key(value: object) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def covering(cases: Sequence[dict[str, Any]]) -> set[int]:
    """Return the indices of few cases in which every value of every parameter occurs, paired with others in turn.

    cases: for each, the value of each parameter.

    >>> sorted(covering([{"dtype": i, "backend": j} for i in range(2) for j in range(3)]))
    [0, 2, 4]
    """
    having: dict[tuple[str, Hashable], list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        for value in case.items():
            having[value].append(i)
    if not having:
        return set(range(len(cases)))
    values = Counter(name for name, _ in having)
    chosen: set[int] = set()
    used: Counter[tuple[str, Hashable]] = Counter()
    # Begin with the parameter of the largest number of values: its cases cover values of the others.
    for value in sorted(having, key=lambda value: -values[value[0]]):
        if not used[value]:
            best = min(having[value], key=lambda i: sum(used[other] for other in cases[i].items()))
            chosen.add(best)
            used.update(cases[best].items())
    return chosen


def left_to_others(items: Sequence[pytest.Item], usual: Any) -> set[pytest.Item]:
    """Return the cases of tests marked in_turn that are spared Triton's interpreter, which takes much longer.

    A case has that value of the parameter whose turn it is by the positions of its other values in their lists: each
    value of one parameter is tried, and meets several of the others. usual: the backend of a test without parameters.
    """
    tests: dict[object, list[Any]] = defaultdict(list)
    for item in items:
        mark, parameters = item.get_closest_marker("in_turn"), getattr(getattr(item, "callspec", None), "params", {})
        if mark and mark.args[0] in parameters and parameters.get("backend", usual).name == "triton":
            tests[item.parent, item.originalname].append(item)
    left_out = set()
    for cases in tests.values():
        (named,) = cases[0].get_closest_marker("in_turn").args
        given = [{name: str(value) for name, value in case.callspec.params.items()} for case in cases]
        values = {name: list(dict.fromkeys(one[name] for one in given)) for name in given[0]}
        others = [name for name in values if name != named and len(values[name]) > 1]
        for case, one in zip(cases, given, strict=True):
            turn = sum(values[name].index(one[name]) for name in others) % len(values[named])
            if others and one[named] != values[named][turn]:
                left_out.add(case)
    return left_out
