"""config/methods: what it says differs from the defaults of fewstep/methods, and is marked."""

from __future__ import annotations

import copy

import pytest
from configs import ROOT, make_plan, raw_config

from fewstep import methods
from fewstep.config.base import ConfigError, parse, read_yaml

ENTRIES = {
    name: entry
    for path in sorted((ROOT / "config/methods").glob("*.yaml"))
    for name, entry in read_yaml(path).items()
    if "loss" in entry
}


def paths(raw):
    """Keys of a mapping and of those in it, as tuples."""
    for key, value in raw.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *inner) for inner in paths(value))


def resolved(raw):
    """None where that is no valid loss."""
    try:
        return parse(methods.parameter_classes()[raw["name"]], raw, "")
    except ConfigError:
        return None


@pytest.mark.parametrize("name", ENTRIES)
def test_no_key_of_a_loss_repeats_its_default(name):
    loss = ENTRIES[name]["loss"]
    for path in paths(loss):
        if path == ("name",):
            continue
        without = copy.deepcopy(loss)
        inner = without
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        assert resolved(without) != resolved(loss), f"{name}: loss.{'.'.join(path)} is the default"


def test_the_reader_sees_repeats():
    assert resolved({"name": "decm", "freq": 3}) == resolved({"name": "decm"})
    assert resolved({"name": "decm", "times": {"law": "uniform", "segments": 3}}) is None


def test_an_average_of_another_kind_replaces_that_of_the_recipe():
    """Keys of one kind of average mean nothing to another."""
    plan = make_plan(raw_config("small"))
    assert plan.config.methods["afm"].train["ema"]["kind"] == "constant"
    assert plan.runs["afm/base"].recipe.train.ema.kind == "power"
    assert plan.runs["afm/base"].train.ema.kind == "constant"
