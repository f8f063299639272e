"""A mistake in the configuration is one clear error, before any job."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from configs import ROOT, make_plan, raw_config

from fewstep.config import ConfigError
from fewstep.config.base import complete, merge, read_yaml
from fewstep.config.load import load


def over(**overrides) -> dict:
    return merge(raw_config("demo"), {"overrides": overrides})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"methods": {"decm": {"los": {}}}}, ["methods/consistency.yaml", "decm.los", "misspelt"]),
        (
            {"methods": {"decm": {"loss": {"frequency": 3}}}},
            ["methods/consistency.yaml", "decm", "frequency", "misspelt"],
        ),
        (
            {"methods": {"decm": {"train": {"optimizer": {"lr": "1e-4"}}}}},
            ["methods/consistency.yaml", "decm.train.optimizer.lr", "1.0e-4"],
        ),
        (
            {"settings": {"recipes": {"digits": {"train": {"steps": "200"}}}}},
            ["settings.yaml", "digits.train.steps", "without quotes"],
        ),
        (
            {"methods": {"decm": {"recipe": "digit"}}},
            ["methods/consistency.yaml", "decm.recipe", "did you mean 'digits'"],
        ),
        (
            {"tables": {"table3": {"rows": {"a": {"method": "teachr"}}}}},
            ["table3.yaml", "rows.a.method", "teacher"],
        ),
        ({"tables": {"table3": {"rows": {"zz": {}}}}}, ["table3", "zz"]),
        (
            {"tables": {"table3": {"rows": {"m": {"variant": "freq-5"}}}}},
            ["table3.yaml", "freq-5", "otherwise"],
        ),
        (
            {"tables": {"table4": {"rows": {"mix": {"steps": [1, 8, 12, 16]}}}}},
            ["table4.yaml", "mix", "at least 2"],
        ),
        ({"methods": {"decm": {"loss": {"freq": 500}}}}, ["decm", "freq", "500", "200"]),
        ({"methods": {"ayf": {"loss": {"warmup": 500}}}}, ["ayf.loss.warmup", "500", "200"]),
        ({"methods": {"scm": {"loss": {"warmup": 500}}}}, ["scm.loss.warmup", "500", "200"]),
        (
            {"tables": {"table3": {"rows": {"o": {"set": {"loss": {"freq": 500}}}}}}},
            ["decm, variant freq-5.loss.freq", "500", "200"],
        ),
        (
            {"settings": {"recipes": {"digits": {"train": {"optimizer": {"warmup": 200}}}}}},
            ["settings.yaml", "warmup", "200"],
        ),
        ({"settings": {"protocols": {"digits": {"images": 1999}}}}, ["digits.images", "1999", "10 classes"]),
        (
            {"settings": {"recipes": {"digits": {"guidance": {"interval": [0.5, 0.2]}}}}},
            ["interval", "rise"],
        ),
        ({"methods": {"teacher": {"teacher": True}}}, ["teacher", "cannot teach itself"]),
        (
            {"methods": {"teacher": {"weights": {"asset": "lightningdit-xl1-800ep", "file": "x.pt"}}}},
            ["x.pt"],
        ),
        ({"method": {}}, ["overrides", "did you mean 'methods'"]),
    ],
)
def test_one_error_names_file_and_key(overrides, words):
    with pytest.raises(ConfigError) as error:
        make_plan(over(**overrides))
    for word in words:
        assert word in str(error.value), str(error.value)
    assert "Traceback" not in str(error.value)


def test_unknown_top_level_key():
    with pytest.raises(ConfigError, match=r"seed: unknown key"):
        make_plan({**raw_config(), "seed": 3})


def test_method_standing_twice(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config/methods/mine.yaml").write_text("decm: {title: mine}\n")
    with pytest.raises(ConfigError, match=r"methods/mine\.yaml: decm: stands in config/methods/consistency"):
        load(raw_config("demo"), tmp_path)


def test_key_standing_twice(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml: line 3: key 'a' stands twice"):
        read_yaml(file)


def test_a_preset_based_on_another(tmp_path):
    (tmp_path / "config").mkdir()
    for name, lines in {"config": "a: 1\nb: {c: 1, d: 1}\n", "reduced": "b: {c: 2}\n"}.items():
        (tmp_path / f"config/{name}.yaml").write_text(lines)
    assert complete({"a": 3, "based_on": "config/reduced.yaml"}, tmp_path) == {"a": 3, "b": {"c": 2, "d": 1}}
    assert complete({}, tmp_path) == {"a": 1, "b": {"c": 1, "d": 1}}


def test_snakemake_shows_the_error_before_any_job(tmp_path):
    """The whole way: a misspelt key in a file, `snakemake`, one message, nothing made."""
    for name in ("Snakefile", "workflow", "config", "fewstep", "profiles"):
        source = ROOT / name
        target = tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    methods = tmp_path / "config/methods/consistency.yaml"
    methods.write_text(methods.read_text().replace("name: decm", "name: decm, frequenzy: 3"))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--profile", "profiles/demo", "results/demo/table3.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "config/methods/consistency.yaml: decm.loss.frequenzy: unknown key" in done.stderr
    assert not (tmp_path / "results").exists()
