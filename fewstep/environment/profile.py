"""What profiles ask for, read as Snakemake reads them.

Snakemake evaluates the value of a resource as Python. Here numbers, times and sizes with units, and
arithmetic with ``attempt`` and ``threads`` are understood; anything else is told as not checked.
"""

from __future__ import annotations

import argparse
import ast
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..common.gres import gpus_in
from ..config.base import read_yaml

Value = int | str | None
"""Of a resource; None if it cannot be told here."""

MOST_RETRIES = 5
"""Of jobs that begin anew each time; more in a profile are for those that resume."""
MINUTES = {
    "s|secs?|seconds?": 1 / 60,
    "m|mins?|minutes?": 1,
    "h|hours?": 60,
    "d|days?": 1440,
    "w|weeks?": 10080,
}
"""Of a unit of time."""
MEGABYTES = {"": 1e-6, "k": 1e-3, "m": 1, "g": 1e3, "t": 1e6}
"""Of a prefix of bytes; with an i, of powers of 1024."""
NUMBERS = {"runtime", "mem", "mem_mb", "mem_mib", "gpu", "nodes", "tasks", "cores"}
"""Resources that are numbers once they are evaluated."""
MEMORY = {"mem": "mem_mb", "mem_mib": "mem_mb"}
"""Other names of the memory of a node, which Snakemake keeps in MB."""
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "int": int, "round": round}


def profiles_of(words: list[str], places: Sequence[Path]) -> list[Path]:
    """Profiles that a call of snakemake names, those that replace others last; none if it names none.

    Each is looked for in ``places``: Snakemake has left the folder it was started in for that of --directory.
    """
    arguments = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    arguments.add_argument("--profile", action="append", default=[])
    arguments.add_argument("--workflow-profile", action="append", default=[])
    given, _ = arguments.parse_known_args(words)
    named = [Path(name) for name in [*given.profile, *given.workflow_profile]]
    return [next((place / name for place in places if (place / name).exists()), name) for name in named]


@dataclass(frozen=True)
class Profile:
    """Entries of profiles, each replacing those of the ones before it, as in Snakemake."""

    entries: Mapping[str, Any]

    @classmethod
    def read(cls, folders: Sequence[Path]) -> Profile:
        """A single configfile is relative to its profile, as in Snakemake; several to the working directory.

        Raises:
            ConfigError: a profile cannot be read.
        """
        entries: dict[str, Any] = {}
        for folder in folders:
            found = read_yaml(folder / "config.yaml")
            preset = found.get("configfile")
            if isinstance(preset, str):
                found["configfile"] = [folder / preset if (folder / preset).exists() else preset]
            entries |= {key: value for key, value in found.items() if value is not None}
        return cls(entries)

    def text(self, key: str) -> str:
        """An entry as text, "" if there is none."""
        value = self.entries.get(key)
        return "" if value is None or value is False else str(value)

    @property
    def configfiles(self) -> list[str]:
        given = self.entries.get("configfile", [])
        return [str(name) for name in (given if isinstance(given, list) else [given])]

    def number(self, key: str, otherwise: int) -> int | None:
        """A number, ``otherwise`` if there is none, None if it is something else, as "unlimited"."""
        try:
            return int(str(self.entries.get(key, otherwise)))
        except ValueError:
            return None

    @property
    def retries(self) -> int:
        """How often a job that resumes is started again."""
        return self.number("retries", 0) or 0

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Resources of rules that name none of their own, unevaluated."""
        return pairs(self.entries.get("default-resources"))

    @cached_property
    def limits(self) -> dict[str, Any]:
        """Of the resources of all jobs that run at one time, unevaluated."""
        return pairs(self.entries.get("resources"))

    @cached_property
    def by_rule(self) -> dict[str, dict[str, Any]]:
        """Rule -> its resources and its ``cores``, unevaluated; "" is any other rule."""
        given = self.entries.get("set-resources")
        if isinstance(given, Mapping):
            own = {str(rule): pairs(entry) for rule, entry in given.items()}
        else:
            own = {}
            for name, value in pairs(given).items():
                rule, _, resource = name.partition(":")
                own.setdefault(rule, {})[resource] = value
        for rule, cores in pairs(self.entries.get("set-threads")).items():
            own.setdefault(rule, {})["cores"] = cores
        return {"": self.defaults, **{rule: {**self.defaults, **entry} for rule, entry in own.items()}}

    def resources(self, rule: str, attempt: int = 1) -> dict[str, Value]:
        """Resources of a rule in one attempt: ``cores``, memory as ``mem_mb``, and the others by name."""
        given = self.by_rule.get(rule, self.defaults)
        threads = evaluate("cores", given.get("cores", 1), {"attempt": attempt})
        names = {"attempt": attempt, **({"threads": threads} if isinstance(threads, int) else {})}
        found: dict[str, Value] = {"nodes": 1, "cores": 1}
        for name, value in given.items():
            found[MEMORY.get(name, name)] = evaluate(name, value, names)
        return found

    def unknown(self) -> list[str]:
        """Entries of the resources whose value cannot be told here, with their keys."""
        found = []
        for rule, given in self.by_rule.items():
            values = self.resources(rule)
            for name, value in given.items():
                inherited = rule and name in self.defaults and self.defaults[name] is value
                if not inherited and values.get(MEMORY.get(name, name)) is None:
                    key = f"set-threads.{rule}" if name == "cores" else f"set-resources.{rule}.{name}"
                    found.append(f"{key if rule else f'default-resources.{name}'}: {value}")
        return found


def pairs(given: Any) -> dict[str, Any]:
    """A mapping, or words NAME=VALUE, as a mapping; other words are left out."""
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    words = given if isinstance(given, list) else str(given or "").split()
    return {name: value for name, found, value in (str(word).partition("=") for word in words) if found}


def evaluate(name: str, value: Any, names: Mapping[str, int]) -> Value:
    """Value of a resource; None if it cannot be told here.

    Args:
        names: what an expression may use.
    """
    text = os.path.expandvars(str(value)).strip()
    plain = text.strip("'\"")
    if name not in NUMBERS:
        return plain
    found = quantity(name, plain)
    if found is None:
        found = arithmetic(text, names)
    if found is not None and name == "mem_mib":
        found *= 1.024**2
    return None if found is None else round(found)


def quantity(name: str, text: str) -> float | None:
    """A number, or a time in minutes or a size in megabytes with its unit; None if it is neither."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.lower())
    if parts is None:
        return None
    amount, unit = float(parts[1]), parts[2]
    if not unit:
        return amount
    if name == "runtime":
        known = (minutes for names, minutes in MINUTES.items() if re.fullmatch(names, unit))
        minutes = next(known, None)
        return None if minutes is None else max(1, amount * minutes)
    size = re.fullmatch(r"([kmgt]?)(i?)b?(?:ytes?)?", unit) if name == "mem" else None
    if size is None:
        return None
    binary = 1.024 ** list(MEGABYTES).index(size[1]) if size[2] else 1
    return max(1, amount * MEGABYTES[size[1]] * binary)


def arithmetic(text: str, names: Mapping[str, int]) -> float | None:
    """Value of an expression of numbers and ``names``; None if there is more in it."""

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.Name(id=name):
                return names[name]
            case ast.BinOp(left=left, op=sign, right=right):
                return OPERATORS[type(sign)](value(left), value(right))
            case ast.UnaryOp(op=sign, operand=operand):
                return OPERATORS[type(sign)](value(operand))
            case ast.Call(func=ast.Name(id=function), args=arguments, keywords=[]):
                return FUNCTIONS[function](*map(value, arguments))
        raise KeyError

    try:
        return float(value(ast.parse(text, mode="eval").body))
    except (SyntaxError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
        return None


def gpus_of_job(resources: Mapping[str, Value]) -> int:
    """GPUs of all nodes of a job that has some; 1 where it cannot be told."""
    nodes = resources.get("nodes")
    return (gpus_of(resources) or 1) * (nodes if isinstance(nodes, int) else 1)


def gpus_of(resources: Mapping[str, Value]) -> int | None:
    """GPUs of one node that a rule asks for; None if it cannot be told."""
    if resources.get("gpu", 0) != 0:
        gpu = resources["gpu"]
        return gpu if isinstance(gpu, int) else None
    try:
        return gpus_in(str(resources.get("gres") or ""))
    except ValueError:
        return None
