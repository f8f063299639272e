"""Values of the configuration replaced by what does not belong there: planned, or refused in clear lines."""

from __future__ import annotations

import copy
import datetime
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from configs import ROOT, make_plan

from fewstep.config import ConfigError, base, load

COUNT = int(os.environ.get("FEWSTEP_FAULTS", "120"))
"""Configurations with faults; for a campaign FEWSTEP_FAULTS=10000."""
PRESET = "config/demo.yaml"
LINE = re.compile(r"(config/[\w/-]+\.yaml|config/config.yaml or preset): \S.*: \S.*")
VALUES: list[Any] = [
    *(None, True, "", "x", "../../evil", "a\nb", "1e-4", "é" * 300, datetime.date(2026, 1, 1), b"x"),
    *(0, -1, 1, 7, 10**9, -(10**9), 10**30, 10**400, 0.5, -0.5, 1e300, math.nan, math.inf, -math.inf),
    *([], {}, [None], [[]], [0, 0], [{"id": []}], {"x": 1}, {5: 1}, {None: None}, {"x": {"y": [1]}}),
]


def read_all() -> dict[str, Any]:
    """File below the repository -> content."""
    return {
        str(path.relative_to(ROOT)): base.read_yaml(path)
        for path in sorted((ROOT / "config").rglob("*.yaml"))
    }


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a value, with a key in it."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in entries:
        yield value, key
        yield from places(inner)


def misspell(container: Any, key: Any, draws: random.Random) -> str:
    """Another key, or another text."""
    text = key if isinstance(container, dict) else container[key]
    if not isinstance(text, str) or len(text) < 2:
        return "as it was"
    at = draws.randrange(len(text))
    wrong = text[:at] + text[at + 1 :]
    if isinstance(container, dict):
        container[wrong] = container.pop(key)
    else:
        container[key] = wrong
    return f"is called {wrong!r}"


def spoil(container: Any, key: Any, draws: random.Random) -> str:
    """Put something wrong in a place; what was done."""
    way = draws.randrange(10)
    if way == 0:
        del container[key]
        return "is gone"
    if way == 1:
        return misspell(container, key, draws)
    if way == 2 and isinstance(container, dict):
        new = draws.choice([5, None, 1.5, True, "x", "../x"])
        container[new] = container[key]
        return f"stands as {new!r} too"
    container[key] = copy.deepcopy(draws.choice(VALUES))
    return f"is {base.shown(container[key])}"


def test_whatever_stands_in_a_file_is_planned_or_refused(monkeypatch: pytest.MonkeyPatch):
    files = read_all()
    contents: dict[str, Any] = {}

    def read(path: Path, shown: str = "", mistakes: Any = None) -> dict[str, Any]:
        name = os.path.relpath(path, ROOT)
        return contents[name] if name in contents else original(path, shown, mistakes)

    original = base.read_yaml
    monkeypatch.setattr(base, "read_yaml", read)
    monkeypatch.setattr(load, "read_yaml", read)
    draws = random.Random(0)
    outcomes: Counter[str] = Counter()
    for number in range(COUNT):
        contents = copy.deepcopy(files)
        done = []
        for _ in range(1 if number % 3 else 4):
            name = draws.choice(["config/config.yaml", PRESET, "config/settings.yaml", *files])
            container, key = draws.choice(list(places(contents[name])) or [(contents[name], "x")])
            done.append(f"{name}: {key} {spoil(container, key, draws)}")
        case = f"{number}: {done}"
        try:
            plan = make_plan(base.complete(contents[PRESET], ROOT))
            plan.targets()
            outcomes["planned"] += 1
        except ConfigError as error:
            for line in str(error).split("\n"):
                assert LINE.fullmatch(line), f"{case}: {line}"
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(case) from error
    assert min(outcomes["planned"], outcomes["refused"]) > COUNT / 20, outcomes
