"""Every benchmark runs and says what it measured; how fast is nobody's business here."""

from __future__ import annotations

import csv

import pytest
import torch

from fewstep import bench

CASES = {
    "encode": ["pixels", "autoencoder", "vavae"],
    "load": ["digits", "digits", "digits", "digits", "VA-VAE", "VA-VAE", "VA-VAE", "VA-VAE"],
    "sample": ["euler", "euler"],
    "score": ["conv-classifier", "statistics"],
    "train-step": ["functorch", "fused", "split", "central"],
}


@pytest.fixture(autouse=True)
def _random_state():
    """Benchmarks seed torch's own generator."""
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)


@pytest.mark.parametrize("what", CASES)
def test_benchmarks(what, tmp_path, capsys):
    out = tmp_path / "x.csv"
    bench.main([what, "--repeats", "1", "--batch", "4", "--out", str(out)])
    with out.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["case"].replace(",", " ").replace(":", " ").split()[0] for line in lines] == CASES[what]
    assert all(float(line["best"]) >= float(line["median"]) > 0 for line in lines)
    assert lines[0]["relative"] == "1.000"
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(lines) + 1 and shown[0].split()[:2] == ["benchmark", "case"]


def test_shares_are_those_of_the_part():
    clock = bench.Clock()

    def call() -> None:
        with clock():
            sum(range(1000))

    case = bench.Case("all of it", call, 1, "calls", clock, "inside")
    for _ in range(3):
        case.turn()
    assert len(case.shares) == 3 and all(0 < share <= 1 for share in case.shares)


@pytest.mark.parametrize("words", [["encode", "--repeats", "0"], ["encode", "--batch", "1"], ["nothing"]])
def test_impossible_calls(words, capsys):
    with pytest.raises(SystemExit):
        bench.main(words)
    capsys.readouterr()
