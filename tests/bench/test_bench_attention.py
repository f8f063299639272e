"""The benchmark of attention: every rule at every size, each with its errors, and failures of their own."""

from __future__ import annotations

import csv

import pytest
import torch

from fewstep.bench import attention
from fewstep.bench.__main__ import main


def rows(tmp_path, *words: str) -> list[dict[str, str]]:
    out = tmp_path / "x.csv"
    main(["attention", "--repeats", "1", *words, "--out", str(out)])
    with out.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_rule_at_every_size(tmp_path):
    names = ["value", "at once", "sliced"]
    found = rows(tmp_path, "--rules", *names)
    assert [(row["tokens"], row["rule"]) for row in found] == [
        (size, name) for size in attention.SMALL for name in names
    ]
    for row in found:
        assert not row["note"] and float(row["ms"]) > 0 and float(row["MiB"]) > 0
        assert 0 < float(row["value error"]) < 1e-6
        assert (row["tangent error"] == "") == (row["rule"] == "value")
        assert row["rule"] == "value" or 0 < float(row["tangent error"]) < 1e-6


def test_a_failure_costs_its_own_row(tmp_path, monkeypatch):
    def fails(*tensors):
        raise torch.OutOfMemoryError("too large\nin two lines")

    monkeypatch.setitem(attention.RULES, "sliced", fails)
    for row in rows(tmp_path, "--rules", "sliced", "value"):
        assert row["note"] == ("OutOfMemoryError: too large" if row["rule"] == "sliced" else "")
        assert bool(row["ms"]) == (row["rule"] == "value")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_the_kernel_says_what_it_needs(tmp_path):
    pytest.importorskip("triton")
    for row in rows(tmp_path, "--rules", "kernel"):
        assert row["note"] == "ValueError: needs a GPU, or TRITON_INTERPRET=1"


def test_backward_reaches_the_inputs():
    """Of the value, with what flows from above, by whatever rule."""
    tensors = [torch.randn(1, 2, 5, 16) for _ in range(7)]
    found = []

    def spied(*leaves):
        result = attention.at_once(*leaves)
        found.extend(leaves)
        return result

    attention._call(spied, *tensors)
    assert all((z.grad is not None) == (number % 2 == 0) for number, z in enumerate(found))
