"""A mistake in the configuration is one clear error, before any job."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from configs import ROOT, make_plan, raw_config

from fewstep.config import ConfigError
from fewstep.config.base import complete, merge, read_yaml
from fewstep.config.load import load
from fewstep.plan import Plan


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
    preset = {"a": 3, "based_on": "config/reduced.yaml"}
    assert complete(preset, tmp_path) == preset | {"b": {"c": 2, "d": 1}}
    assert complete({}, tmp_path) == {"a": 1, "b": {"c": 1, "d": 1}}


# Changes of the files (file, old text, new text), what is given besides, and the lines told.
TOGETHER = {
    "keys, types and choices": (
        [
            ("assets.yaml", "kind: sklearn", "kind: sklaern"),
            ("settings.yaml", "euler: {kind: euler}", "euler: {kind: eulr}"),
            ("settings.yaml", "    depth: 4\n", "    depth: four\n"),
            ("methods/consistency.yaml", "name: decm", "name: decm, frequenzy: 3"),
            ("claims.yaml", 'relation: ">="', 'relation: ">>"'),
            ("tables/table4.yaml", "\nkind: ", "\nkint: "),
        ],
        {},
        [
            "config/assets.yaml: digits.kind: 'sklaern' is not one of sklearn, hub, http, local; "
            "did you mean 'sklearn'?",
            "config/settings.yaml: backbones.unet-cifar10.depth: input should be a valid integer, not 'four'",
            "config/settings.yaml: backbones.unet-cifar10-dual.depth: input should be a valid integer, "
            "not 'four'",
            "config/settings.yaml: samplers.euler.kind: 'eulr' is not one of euler, cm, mix, jump, ucgm; "
            "did you mean 'euler'?",
            "config/methods/consistency.yaml: decm.loss.frequenzy: unknown key, perhaps misspelt; "
            "did you mean 'freq'?",
            "config/tables/table4.yaml: kind: is missing",
            "config/tables/table4.yaml: kint: unknown key, perhaps misspelt; did you mean 'kind'?",
            "config/claims.yaml: claims.teacher-needs-steps.relation: '>>' is not one of <, <=, >, >=; "
            "did you mean '>'?",
        ],
    ),
    "references": (
        [
            ("settings.yaml", "asset: cifar10", "asset: cifar"),
            ("settings.yaml", "statistics_file: latents_stats.pt", "statistics_file: stats.pt"),
            ("settings.yaml", "protocols: [moons]", "protocols: [moon]"),
            ("tables/table4.yaml", "method: decm", "method: demc"),
            ("claims.yaml", "left: {method: teacher,", "left: {method: teachr,"),
            ("costs.yaml", "  digits-ae:", "  digits-ea:"),
        ],
        {"bench": {"methods": ["facn"]}, "targets": ["tabel1"]},
        [
            "config/config.yaml or preset: targets: unknown name 'tabel1'; did you mean 'table1'?",
            "config/config.yaml or preset: bench.methods: unknown name 'facn'; did you mean 'facm'?",
            "config/settings.yaml: datasets.cifar10.asset: unknown name 'cifar'; did you mean 'cifar10'?",
            "config/settings.yaml: tokenizers.vavae-f16d32.statistics_file: unknown name 'stats.pt'; "
            "did you mean 'latents_stats.pt'?",
            "config/settings.yaml: recipes.moons.protocols: unknown name 'moon'; did you mean 'moons'?",
            "config/claims.yaml: claims.teacher-needs-steps.left.method: unknown name 'teachr'; "
            "did you mean 'teacher'?",
            "config/tables/table4.yaml: rows.euler.method: unknown name 'demc'; did you mean 'decm'?",
            "config/costs.yaml: encode: unknown name 'digits-ea'; did you mean 'digits-ae'?",
        ],
    ),
    "doubled keys, numbers that are text, names": (
        [
            ("config.yaml", "seeds: [0]\n", "seeds: [0]\nseeds: [1]\n"),
            ("settings.yaml", "\n  cm: {kind: cm}\n", "\n  c m: {kind: cm}\n  cm: {}\n  cm: {kind: cm}\n"),
            ("methods/consistency.yaml", "name: decm", "name: decm, r_max: 1e-2"),
        ],
        {},
        [
            "config/config.yaml: line N: key 'seeds' stands twice",
            "config/settings.yaml: line N: key 'cm' stands twice",
            "config/settings.yaml: samplers.c m: 'c m' is not a name: use letters, digits, '.', '_' and '-', "
            "not digits alone",
            "config/methods/consistency.yaml: line N: YAML reads 1e-2 as text: write the number with a "
            "decimal point and a sign (1.0e-4), text in quotes",
        ],
    ),
    "what is right in itself and does not fit": (
        [],
        {
            "overrides": {
                "methods": {"tcm": {"teacher": "tcm"}},
                "tables": {"table4": {"rows": {"mix": {"steps": [1, 8, 12, 16]}}}},
                "settings": {"backbones": {"unet-cifar10": {"classes": 11}}},
            }
        },
        [
            "config/settings.yaml: backbones.unet-cifar10.classes: 11, but latents cifar10 have 10",
            "config/methods/tcm.yaml: tcm.teacher: tcm cannot teach itself; set it to false",
            "config/tables/table4.yaml: rows.mix: sampler 'mix' needs at least 2 steps, not 1",
        ],
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_mistakes_are_told_together(case, tmp_path):
    changes, given, lines = TOGETHER[case]
    shutil.copytree(ROOT / "config", tmp_path / "config")
    for name, old, new in changes:
        file = tmp_path / "config" / name
        assert old in file.read_text(), (name, old)
        file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        Plan(complete(given, tmp_path), tmp_path)
    assert re.sub(r"line \d+", "line N", str(error.value)).splitlines() == lines


def test_what_snakemake_has_read_is_read_again(tmp_path):
    """It lets the last of two equal keys win."""
    preset = tmp_path / "preset.yaml"
    preset.write_text("seeds: [0]\nseeds: [1]\n")
    with pytest.raises(ConfigError, match=r"preset\.yaml: line 2: key 'seeds' stands twice"):
        Plan(raw_config(), ROOT, [preset])


def test_numbers_on_the_command_line():
    """Snakemake leaves those inside of lists and mappings text."""
    given = {"seeds": ["0", "1"], "bench": {"batches": ["8"]}, "title": "Seeds 0, 1", "targets": ["table1"]}
    raw = complete({}, ROOT, given)
    assert (raw["seeds"], raw["bench"]["batches"], raw["title"]) == ([0, 1], [8], "Seeds 0, 1")
    assert make_plan(raw).wanted == ["table1"]


def test_one_recipe_takes_the_place_of_many(demo_plan):
    assert {run.recipe.scale for run in demo_plan.runs.values()} == {"demo", "toy", "paper"}
    assert not [name for name in demo_plan.parts.recipes if name.startswith("imagenet")]
    with pytest.raises(ConfigError, match=r"replace_recipes: no recipe is called 'imagnet\*'"):
        make_plan(raw_config() | {"replace_recipes": {"imagnet*": "digits"}})


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
