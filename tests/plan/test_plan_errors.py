"""A mistake in the configuration is one clear error, before any job."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from configs import ROOT, copied, make_plan, raw_config, told
from snakemake.cli import parse_config
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from fewstep.config import ConfigError
from fewstep.config.base import command_line_values, complete, merge, passed_on, read_yaml
from fewstep.config.load import Root, load
from fewstep.config.settings import EXTRACTORS, Metric
from fewstep.config.tables import TABLE_COLUMNS
from fewstep.config.text import PROMPT_METRICS
from fewstep.plan import Plan
from fewstep.plan.jobs import maker
from fewstep.plan.targets import check, explain
from fewstep.reporting import rows

# What a preset says wrongly, laid over the demo's, and the lines told.
MISTAKES = {
    "a key of a method": (
        "overrides: {methods: {decm: {los: {}}}}",
        [
            "config/mine.yaml: overrides.methods.decm.los: unknown key, perhaps misspelt; did"
            " you mean 'loss'?",
        ],
    ),
    "a key of a loss": (
        "overrides: {methods: {decm: {loss: {frequency: 3}}}}",
        [
            "config/mine.yaml: overrides.methods.decm.loss.frequency: unknown key, perhaps "
            "misspelt; did you mean 'freq'?",
        ],
    ),
    "a number that is text": (
        'overrides: {methods: {decm: {train: {optimizer: {lr: "1e-4"}}}}}',
        [
            "config/mine.yaml: overrides.methods.decm.train.optimizer.lr: is the text '1e-4',"
            " not a number: write it without quotes and with a decimal point (YAML reads 1e-4"
            " as text, 1.0e-4 as a number)",
        ],
    ),
    "a whole number in quotes": (
        'overrides: {settings: {recipes: {digits: {train: {steps: "200"}}}}}',
        [
            "config/mine.yaml: overrides.settings.recipes.digits.train.steps: is the text "
            "'200', not a number: write it without quotes and with a decimal point (YAML "
            "reads 1e-4 as text, 1.0e-4 as a number)",
        ],
    ),
    "a recipe": (
        "overrides: {methods: {decm: {recipe: digit}}}",
        [
            "config/mine.yaml: overrides.methods.decm.recipe: unknown name 'digit'; did you mean 'digits'?",
        ],
    ),
    "a method of a row": (
        "overrides: {tables: {table3: {rows: {a: {method: teachr}}}}}",
        [
            "config/mine.yaml: overrides.tables.table3.rows.a.method: unknown name 'teachr'; "
            "did you mean 'teacher'?",
        ],
    ),
    "a row": (
        "overrides: {tables: {table3: {rows: {zz: {}}}}}",
        [
            "config/mine.yaml: overrides.tables.table3.rows.zz: unknown name 'zz'; known are "
            "a, b, c, d, e, f, g, h, i, j, k, l, m, n, o",
        ],
    ),
    "a table": (
        "overrides: {tables: {tabel3: {title: x}}}",
        [
            "config/mine.yaml: overrides.tables.tabel3: unknown name 'tabel3'; did you mean 'table3'?",
        ],
    ),
    "a method to change": (
        "overrides: {methods: {decmm: {loss: {freq: 4}}}}",
        [
            "config/mine.yaml: overrides.methods.decmm: unknown name 'decmm'; did you mean 'decm'?",
        ],
    ),
    "a recipe to change": (
        "overrides: {settings: {recipes: {digit: {label_dropout: 0.0}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.digit: unknown name 'digit'; did "
            "you mean 'digits'?",
        ],
    ),
    "a part of the settings": (
        "overrides: {settings: {recipe: {}}}",
        [
            "config/mine.yaml: overrides.settings.recipe: unknown name 'recipe'; did you mean 'recipes'?",
        ],
    ),
    "a section": (
        "overrides: {method: {}}",
        [
            "config/mine.yaml: overrides.method: unknown name 'method'; did you mean 'methods'?",
        ],
    ),
    "a top-level key": (
        "seed: 3",
        [
            "config/mine.yaml: seed: unknown key, perhaps misspelt; did you mean 'seeds'?",
        ],
    ),
    "a pattern of replaced recipes": (
        'replace_recipes: {"imagnet*": digits}',
        [
            "config/mine.yaml: replace_recipes.imagnet*: no recipe is called 'imagnet*'; did "
            "you mean 'imagenet256-tvm'?",
        ],
    ),
    "a recipe that replaces": (
        'replace_recipes: {"imagenet*": digts}',
        [
            "config/mine.yaml: replace_recipes.imagenet*: unknown name 'digts'; did you mean 'digits'?",
        ],
    ),
    "a variant defined twice": (
        "overrides: {tables: {table3: {rows: {m: {variant: freq-5}}}}}",
        [
            "config/tables/table3.yaml: rows.o.set: variant 'freq-5' is defined otherwise in "
            "config/tables/table3.yaml: rows.m.set",
            "config/claims.yaml: freq-three-best-at-one.variant: unknown name 'freq-1'; did "
            "you mean 'freq-5'?",
        ],
    ),
    "a variant that leaves the folder": (
        "overrides: {tables: {table3: {rows: {o: {variant: ../../evil}}}}}",
        [
            "config/mine.yaml: overrides.tables.table3.rows.o.variant: '../../evil' is not a "
            "name: use letters, digits, '.', '_' and '-', a letter or digit first, not digits"
            " alone",
        ],
    ),
    "too few steps": (
        "overrides: {tables: {table4: {rows: {mix: {steps: [1, 8, 12, 16]}}}}}",
        [
            "config/mine.yaml: overrides.tables.table4.rows.mix: sampler 'mix' needs at least 2 steps, not 1",
        ],
    ),
    "a frequency beyond the training": (
        "overrides: {methods: {decm: {loss: {freq: 500}}}}",
        [
            "config/mine.yaml: overrides.methods.decm.loss.freq: 500 is beyond the 200 training steps",
        ],
    ),
    "the same in a variant": (
        "overrides: {tables: {table3: {rows: {o: {set: {loss: {freq: 500}}}}}}}",
        [
            "config/mine.yaml: overrides.tables.table3.rows.o.set.loss.freq: 500 is beyond "
            "the 200 training steps",
        ],
    ),
    "a warm-up beyond the training": (
        "overrides: {settings: {recipes: {digits: {train: {optimizer: {warmup: 200}}}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.digits.train: warmup 200 is not below steps 200",
        ],
    ),
    "images and classes": (
        "overrides: {settings: {protocols: {digits: {images: 1999}}}}",
        [
            "config/mine.yaml: overrides.settings.protocols.digits.images: 1999 balanced "
            "images do not divide into 10 classes",
        ],
    ),
    "an interval": (
        "overrides: {settings: {recipes: {digits: {guidance: {interval: [0.5, 0.2]}}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.digits.guidance: interval [0.5, "
            "0.2] must rise inside [0, 1]",
        ],
    ),
    "its own teacher": (
        "overrides: {methods: {teacher: {teacher: true}}}",
        [
            "config/mine.yaml: overrides.methods.teacher.teacher: teacher cannot teach "
            "itself; set it to false",
        ],
    ),
    "a file of an asset": (
        ("overrides: {methods: {teacher: {weights: {asset: lightningdit-xl1-800ep, file: x.pt}}}}"),
        [
            "config/mine.yaml: overrides.methods.teacher.weights.file: unknown name 'x.pt'; "
            "known are lightningdit-xl-imagenet256-800ep.pt",
        ],
    ),
    "a metric of a table": (
        "overrides: {tables: {table4: {metric: fidd}}}",
        [
            "config/mine.yaml: overrides.tables.table4.metric: unknown name 'fidd'; did you mean 'fid'?",
        ],
    ),
    "a metric that is not computed": (
        "overrides: {tables: {table4: {metric: mmd}}}",
        [
            "config/mine.yaml: overrides.tables.table4.metric: protocol 'digits' computes "
            "fid, is, kid, precision, recall, not 'mmd'; choose one of these, or add it to "
            "the protocol's metrics",
        ],
    ),
    "further metrics": (
        "overrides: {tables: {table1: {metrics: [kidd]}}}",
        [
            "config/mine.yaml: overrides.tables.table1.metrics.0: 'kidd' is not one of "
            f"{', '.join((*get_args(Metric), *PROMPT_METRICS, 'bpd'))}; did you mean 'kid'?",
        ],
    ),
    "a column of a training": (
        "overrides: {tables: {figure4: {metric: grad_nrom}}}",
        [
            "config/mine.yaml: overrides.tables.figure4.metric: no training here logs "
            "'grad_nrom'; did you mean 'grad_norm'?",
        ],
    ),
    "a reported metric": (
        ("overrides: {tables: {table4: {rows: {mix: {reported: {fdi: [1.0, 2.0, 3.0, 4.0]}}}}}}"),
        [
            "config/mine.yaml: overrides.tables.table4.rows.mix.reported.fdi: unknown metric;"
            " did you mean 'fid'?",
        ],
    ),
    "too few reported numbers": (
        "overrides: {tables: {table4: {rows: {mix: {reported: {fid: [1.0]}}}}}}",
        [
            "config/mine.yaml: overrides.tables.table4.rows.mix.reported.fid: 1 values for 4 "
            "NFE [4, 8, 12, 16]; give one for each, null where there is none",
        ],
    ),
    "classes of a grid": (
        "overrides: {tables: {figure6: {classes: [3, 10]}}}",
        [
            "config/mine.yaml: overrides.tables.figure6.classes: 10, but decm has the classes 0 to 9",
        ],
    ),
    "images in a subset": (
        "overrides: {settings: {protocols: {digits: {kid: {size: 1900}}}}}",
        [
            "config/mine.yaml: overrides.settings.protocols.digits.kid.size: 1900, but there "
            "are 1797 real images to compare with; lower it",
        ],
    ),
    "betas": (
        ("overrides: {settings: {recipes: {digits: {train: {optimizer: {betas: [0.9, 1.5]}}}}}}"),
        [
            "config/mine.yaml: overrides.settings.recipes.digits.train.optimizer.betas.1: "
            "must be below 1.0, not 1.5",
        ],
    ),
    "an endless rate": (
        "overrides: {settings: {recipes: {digits: {train: {optimizer: {lr: .inf}}}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.digits.train.optimizer.lr: must be "
            "a finite number, not inf",
        ],
    ),
    "not a number": (
        "overrides: {methods: {decm: {train: {optimizer: {lr: .nan}}}}}",
        [
            "config/mine.yaml: overrides.methods.decm.train.optimizer.lr: must be a finite number, not nan",
        ],
    ),
    "nan in a list": (
        "overrides: {methods: {meanflow-data: {loss: {guided: [.nan, 1.0]}}}}",
        [
            "config/mine.yaml: overrides.methods.meanflow-data.loss.guided.0: must be a "
            "finite number, not nan",
        ],
    ),
    "a batch": (
        "overrides: {settings: {recipes: {digits: {train: {global_batch_size: 1000000000}}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.digits.train.global_batch_size: "
            "must be at most 1000000, not 1000000000",
        ],
    ),
    "a side of no pixels": (
        "overrides: {settings: {backbones: {lightningdit-digits: {shape: [0, 4, 4]}}}}",
        [
            "config/mine.yaml: overrides.settings.backbones.lightningdit-digits.shape.0: must"
            " be above 0, not 0",
        ],
    ),
    "a protocol named like a column": (
        (
            "overrides: {settings: {protocols: {steps: {images: 10, labels: random, "
            "extractor: identity, features: x, uint8: none, metrics: [mmd], "
            "reference_latents: moons}}}}"
        ),
        [
            "config/mine.yaml: overrides.settings.protocols.steps: a table has a column of "
            "that name; rename the protocol",
        ],
    ),
    "a negative seed": (
        "seeds: [-1]",
        [
            "config/mine.yaml: seeds.0: must be at least 0, not -1",
        ],
    ),
    "a seed twice": (
        "seeds: [0, 0]",
        [
            "config/mine.yaml: seeds: 0 stands twice; remove one",
        ],
    ),
    "one seed": (
        "seeds: 0",
        [
            "config/mine.yaml: seeds: must be a list, not 0; write [0]",
        ],
    ),
    "a target": (
        "targets: [tabel1]",
        [
            "config/mine.yaml: targets: unknown name 'tabel1'; did you mean 'table1'?",
        ],
    ),
    "one target": (
        "targets: table1",
        [
            "config/mine.yaml: targets: must be a list or all, not 'table1'; write [table1]",
        ],
    ),
    "a path variable": (
        "pathvars: {result: x}",
        [
            "config/mine.yaml: pathvars.result: unknown key; did you mean 'results'?",
        ],
    ),
    "no plain path": (
        "pathvars: {results: results/}",
        [
            "config/mine.yaml: pathvars.results: 'results/' is not the plain path of a folder: results/mine",
        ],
    ),
    "a title": (
        "title: 12",
        [
            "config/mine.yaml: title: must be text, not 12; put it in quotes",
        ],
    ),
    "a list for a mapping": (
        "overrides: [methods]",
        [
            "config/mine.yaml: overrides: must be a mapping, not a list",
        ],
    ),
    "a number for an entry": (
        "overrides: {methods: {decm: 3}}",
        [
            "config/mine.yaml: overrides.methods.decm: must be a mapping, not 3",
        ],
    ),
    "a list for rows": (
        "overrides: {tables: {table3: {rows: [a]}}}",
        [
            "config/mine.yaml: overrides.tables.table3.rows: must be a mapping, not a list",
        ],
    ),
    "a mapping for steps": (
        "overrides: {tables: {table3: {steps: {1: 2}}}}",
        [
            "config/mine.yaml: overrides.tables.table3.steps: must be a list, not a mapping",
        ],
    ),
    "nothing for a number": (
        "overrides: {settings: {recipes: {digits: {train: {steps: null}}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.digits.train.steps: must be a whole"
            " number, not null",
        ],
    ),
    "an extractor": (
        "overrides: {settings: {protocols: {digits: {extractor: conv-clasifier}}}}",
        [
            "config/mine.yaml: overrides.settings.protocols.digits: unknown extractor 'conv-"
            "clasifier'; did you mean 'conv-classifier'?",
        ],
    ),
    "a layer": (
        "overrides: {settings: {protocols: {digits: {features: feature}}}}",
        [
            "config/mine.yaml: overrides.settings.protocols.digits: features: conv-classifier"
            " has no layer 'feature'; did you mean 'features'?",
        ],
    ),
    "mirrored images with captions": (
        "overrides: {settings: {latents: {scenes-latents: {flip: true}}}}",
        [
            "config/mine.yaml: overrides.settings.latents.scenes-latents.flip: a mirrored image is not what "
            "its caption says of left and right; set it to false",
        ],
    ),
    "guided channels": (
        "overrides: {settings: {recipes: {digits: {guidance: {channels: 900}}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.digits.guidance.channels: 900, but "
            "its latents have 4",
        ],
    ),
    "an address": (
        (
            "overrides: {assets: {x: {kind: http, licence: MIT, unverified: new, files: "
            "[{name: a, urls: [ftp://b]}]}}}"
        ),
        [
            "config/mine.yaml: overrides.assets.x.files.0.urls.0: must be text of the form "
            "^https?://[^ ]+$, not 'ftp://b'",
        ],
    ),
    "a file outside of its asset": (
        (
            "overrides: {assets: {x: {kind: http, licence: MIT, unverified: new, files: "
            "[{name: ../a, urls: ['http://b']}]}}}"
        ),
        [
            "config/mine.yaml: overrides.assets.x.files.0.name: '../a' must be a path inside "
            "of the asset's folder",
        ],
    ),
    "steps twice": (
        "overrides: {tables: {table4: {steps: [4, 4]}}}",
        [
            "config/mine.yaml: overrides.tables.table4.steps: 4 stands twice; remove one",
        ],
    ),
    "a size without end": (
        "overrides: {settings: {latents: {digits-latents: {shards: 1000000000}}}}",
        [
            "config/mine.yaml: overrides.settings.latents.digits-latents.shards: must be "
            "below 100000, not 1000000000",
        ],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_preset_is_told_of_the_preset(mistake, tmp_path):
    preset, lines = MISTAKES[mistake]
    assert told(copied(tmp_path), f"based_on: config/demo.yaml\n{preset}\n") == lines


# A file of the repository as it is found, and the line told.
DAMAGED = {
    "a tab": (b"seeds: [0]\n\ttitle: x\n", "line 2: a tab; indent with spaces"),
    "Latin-1": (
        b"seeds: [0]\ntitle: Z\xfcrich\n",
        "line 2: the byte 0xfc is not UTF-8; save the file as UTF-8",
    ),
    "a NUL": (b"a: 1\nb: \0\n", "line 2: the character '\\x00' may not stand in YAML; remove it"),
    "a list": (b"- a\n", "must be a mapping, not list"),
    "text": (b"hello", "must be a mapping, not str"),
    "an open bracket": (b"a: [1\nb: 2\n", "line 2: did not find expected ',' or ']'"),
    "an open quote": (b'a: "x\nb: 2\n', "line 3: found unexpected end of stream"),
    "an unknown name": (b"a: *b\n", "line 1: found undefined alias"),
    "two documents": (b"a: 1\n---\nb: 1\n", "line 2: but found another document"),
    "a list as a key": (b"? [a]\n: 1\n", "line 1: found unhashable key"),
    "itself": (b"a: &a\n  b: *a\n", "line 1: found unconstructable recursive node"),
    "a tag": (b"a: !!python/name:os.system x\n", None),
    "a month of 40 days": (b"a: 1\nb: 2026-01-40\n", "line 2: day is out of range for month"),
    "a list of itself": (b"a: &a [*a]\n", "line 1: found unconstructable recursive node"),
    "brackets": (b"a: " + 5000 * b"[", None),
    "digits": (b"a: 1\nb: " + 5000 * b"9", None),
    "a merge with a number": (b"a:\n  <<: 5\n", None),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_with_its_line(damage, tmp_path):
    content, message = DAMAGED[damage]
    copied(tmp_path)
    file = tmp_path / "config/costs.yaml"
    file.write_bytes(content)
    first = told(tmp_path)[0]
    if message is None:
        assert re.match(r"config/costs\.yaml: (line \d: )?\S", first) and len(first) < 200
    else:
        assert first == f"config/costs.yaml: {message}"


def test_unknown_top_level_key():
    with pytest.raises(ConfigError, match=r"config/config.yaml or preset: seed: unknown key"):
        make_plan({**raw_config(), "seed": 3})


def test_method_standing_twice(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config/methods/mine.yaml").write_text("decm: {title: mine}\n")
    with pytest.raises(ConfigError, match=r"methods/mine\.yaml: decm stands in config/methods/consistency"):
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
            "config/assets.yaml: digits.kind: 'sklaern' is not one of sklearn, openmoji, hub, http, local; "
            "did you mean 'sklearn'?",
            "config/settings.yaml: backbones.unet-cifar10.depth: must be a whole number, not 'four'",
            *(
                f"config/settings.yaml: backbones.unet-cifar10-{name}.depth: "
                "must be a whole number, not 'four'"
                for name in ("scalar", "dual", "teacher", "labels-teacher")
            ),
            "config/settings.yaml: samplers.euler.kind: 'eulr' is not one of euler, cm, mix, jump, ucgm, "
            "pyramid, pipeline; did you mean 'euler'?",
            "config/methods/consistency.yaml: decm.loss.frequenzy: unknown key, perhaps misspelt; "
            "did you mean 'freq'?",
            "config/claims.yaml: claims.teacher-needs-steps.relation: '>>' is not one of <, <=, >, >=; "
            "did you mean '>'?",
            "config/tables/table4.yaml: kind: is missing",
            "config/tables/table4.yaml: kint: unknown key, perhaps misspelt; did you mean 'kind'?",
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
            "config/methods/consistency.yaml: line N: YAML reads 1e-2 as text: write the number with a "
            "decimal point and a sign (1.0e-4), text in quotes",
            "config/settings.yaml: samplers.c m: 'c m' is not a name: use letters, digits, '.', '_' and '-', "
            "a letter or digit first, not digits alone",
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
            "config/config.yaml or preset: overrides.settings.backbones.unet-cifar10.classes: 11, "
            "but latents cifar10 have 10",
            "config/config.yaml or preset: overrides.settings.backbones.unet-cifar10.classes: 11, "
            "but latents cifar10-unflipped have 10",
            "config/config.yaml or preset: overrides.methods.tcm.teacher: tcm cannot teach itself; "
            "set it to false",
            "config/config.yaml or preset: overrides.tables.table4.rows.mix: sampler 'mix' needs at least 2 "
            "steps, not 1",
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
    """Snakemake leaves those inside of lists and mappings text, and takes away quotes."""
    words = ["seeds=[0,1]", "bench={batches: [8]}", "title=Seeds 0, 1", "targets=[table1]", 'command="12"']
    words += ["overrides={settings: {recipes: {digits: {train: {optimizer: {lr: 1e-3}}}}}}", "weights="]
    raw = complete({}, ROOT, command_line_values(words))
    assert (raw["seeds"], raw["bench"]["batches"], raw["title"]) == ([0, 1], [8], "Seeds 0, 1")
    assert raw["overrides"]["settings"]["recipes"]["digits"]["train"]["optimizer"]["lr"] == 1e-3
    assert (raw["command"], raw["weights"]) == ("12", None)
    assert make_plan(raw | {"weights": "trained"}).wanted == ["table1"]


def test_every_key_can_be_given_on_the_command_line():
    """As YAML in one line, read by Snakemake first."""
    wanted = raw_config("demo") | {"seeds": [3, 4], "claim_seeds": [5], "title": "A: b"}
    words = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6)}"
        for key, value in wanted.items()
    ]
    words = [word.removesuffix("\n").removesuffix("\n...") for word in words]
    assert set(parse_config(words)) == set(Root.model_fields)
    assert complete({}, ROOT, command_line_values(words)) == wanted


def test_an_outer_workflow_passes_the_command_line_on():
    """It gets what Snakemake has read, in which the numbers of a list are text."""
    words = ["seeds=[0, 1]", "title=mine", "bench={repeats: 3}"]
    outer = {"seeds": ["0", "1"], "title": "another", "bench": {"repeats": "3", "batches": [4]}}
    line = passed_on(outer, parse_config(words), command_line_values(words))
    assert line == {"seeds": [0, 1], "bench": {"repeats": 3}}
    assert complete(outer, ROOT, line)["bench"]["batches"] == [4]


def test_a_mistake_on_the_command_line(tmp_path):
    line = command_line_values(["targets=table1", "seeds=[x]"])
    with pytest.raises(ConfigError) as error:
        Plan(complete({}, ROOT, line), ROOT, [], line)
    assert str(error.value).split("\n") == [
        "--config: seeds.0: must be a whole number, not 'x'",
        "--config: targets: must be a list or all, not 'table1'; write [table1]",
    ]


def test_a_mistake_is_told_of_the_last_file_that_makes_it(tmp_path):
    """Presets are laid over each other, and the command line over them."""
    folder = copied(tmp_path)
    (folder / "config/lower.yaml").write_text("based_on: config/demo.yaml\nseeds: [0]\ntargets: [tabel1]\n")
    assert told(folder, "based_on: config/lower.yaml\nseeds: [-1]\n") == [
        "config/mine.yaml: seeds.0: must be at least 0, not -1"
    ]
    assert told(folder, "based_on: config/lower.yaml\n") == [
        "config/lower.yaml: targets: unknown name 'tabel1'; did you mean 'table1'?"
    ]
    (line,) = told(folder, "based_on: config/lower.yml\n")
    assert line.startswith("config/mine.yaml: based_on: there is no file 'config/lower.yml' in ")
    assert told(folder, "based_on: config/mine.yaml\n")[0] == (
        "config/mine.yaml: based_on: goes in a circle: config/mine.yaml <- config/mine.yaml"
    )


def test_columns_of_a_table_are_those_of_its_csv():
    """No protocol may have their names."""
    assert set(TABLE_COLUMNS) == set(rows._FIELDS)


def test_a_tokenizer_that_its_own_training_needs():
    changed = {"overrides": {"settings": {"recipes": {"digits-autoencoder": {"latents": "digits-latents"}}}}}
    with pytest.raises(ConfigError, match="the latents of digits-autoencoder come from digits-auto"):
        make_plan(merge(raw_config("demo"), changed))


def test_extractors_are_those_of_torch_fidelity():
    """But those whose weights cannot be given as a file, and beside those that are trained or loaded here."""
    trained = {"conv-classifier", "clip", "dinov2", "pixels"}
    ours = {name: layers for name, layers in EXTRACTORS.items() if name not in trained}
    theirs = {name: found for name, found in FEATURE_EXTRACTORS_REGISTRY.items() if "dinov2" not in name}
    found = {name: each.get_provided_features_list() for name, each in theirs.items() if name not in trained}
    assert ours == found


TARGETS = {
    "results/demo/tabel1.csv": "no rule makes it; did you mean 'results/demo/table1.csv'?",
    "results/demo/table1": "no rule makes it; did you mean 'results/demo/table1.csv'?",
    "results/table1.csv": "no rule makes it; did you mean 'results/demo/table1.csv'?",
    "results/demo/figure6.csv.png": "no rule makes it; did you mean 'results/demo/figure6.png'?",
    "tabel1.csv": "no rule makes it; did you mean 'results/demo/table1.csv'?",
    "table1": "no rule makes it; did you mean 'results/demo/table1.csv'?",
    "asets": "no rule makes it; did you mean 'assets'?",
    "data/assets/digits.json": "no rule makes it; did you mean 'results/demo/assets/digits.json'?",
    "nonsense": "no rule makes it; targets are files such as results/demo/afm-table.csv, and assets, doctor",
    "results/demo/decmm/base/0/train.jsonl": "unknown method 'decmm'; did you mean 'decm'?",
    "results/demo/decm/freq-55/0/cm-1/digits.json": "unknown variant 'freq-55' of decm; "
    "did you mean 'freq-5'?",
    "results/demo/decm/base/-1/mix-4/digits.json": "seed must be 0, 1, 2 and so on, not '-1'",
    "results/demo/decm/base/01/mix-4/digits.json": "seed must be 0, 1, 2 and so on, not '01'",
    "results/demo/decm/base/0/mix-0/digits.json": "steps must be 1, 2, 3 and so on, not '0'",
    "results/demo/decm/base/0/mxi-4/digits.json": "unknown sampler 'mxi'; did you mean 'mix'?",
    "results/demo/decm/base/0/mix-4/digit.json": "unknown protocol 'digit'; did you mean 'digits'?",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_nothing_makes(target, demo_plan):
    with pytest.raises(ConfigError, match="no rule makes"):
        maker(demo_plan, target)
    assert explain(demo_plan, target, ["assets", "doctor"]) == f"target {target}: {TARGETS[target]}"


REFUSED = {
    "results/demo/decm/base/0/mix-1/digits.json": "sampler 'mix' needs at least 2 steps, not 1",
    "results/demo/decm/base/0/mix-1000000/digits.json": "steps 1000000 must be 1 to 100000",
    "results/demo/decm-t2i/base/0/euler-sd3-4/scenes.json": "sampler 'euler-sd3' guides, but "
    "decm-t2i/base has learned its teacher's guidance of scale 2; use one without",
    "results/demo/latents/digits-latents/shard-00099.tar": "shard 00099, but there are 2, from 0 on",
    "results/demo/dumo-moons/base/0/cm-1/balanced-5000-none-0.npz": "balanced-5000-none-0: these samples are "
    "points, not images",
    "results/demo/dumo-moons/base/0/pipeline/model_index.json": "dumo-moons.backbone: its samples "
    "are points, not images, and a pipeline makes images",
}


@pytest.mark.parametrize("target", REFUSED)
def test_a_target_that_its_stage_would_refuse(target, demo_plan):
    with pytest.raises(ConfigError) as error:
        check(demo_plan, target)
    assert str(error.value) == f"target {target}: {REFUSED[target]}"


def test_targets_that_can_be_made(demo_plan, paper_plan):
    for plan in (demo_plan, paper_plan):
        for target in plan.targets():
            check(plan, target)
    check(demo_plan, "results/demo/decm/freq-5/7/mix-3/digits.json")
    for stage, end in (("images", ".npz"), ("pictures", ".pngs")):  # samples that are kept
        target = f"results/demo/decm/base/0/cm-2/balanced-2000-round-0{end}"
        assert maker(demo_plan, target).stage == stage
        check(demo_plan, target)
    assert explain(paper_plan, "results/teacher/base/1/model.safetensors", []) == (
        "target results/teacher/base/1/model.safetensors: weights that are not trained here have no seeds; "
        "use 0"
    )


def test_one_recipe_takes_the_place_of_many(demo_plan):
    assert {run.recipe.scale for run in demo_plan.runs.values()} == {"demo", "toy", "paper"}
    assert not [name for name in demo_plan.parts.recipes if name.startswith("imagenet")]


def snakemake(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *words], cwd=folder, capture_output=True, text=True
    )


def test_snakemake_shows_the_error_before_any_job(tmp_path):
    """The whole way: a misspelt key in a file, `snakemake`, one message, nothing made."""
    for name in ("Snakefile", "workflow", "config", "fewstep", "profiles"):
        source = ROOT / name
        target = tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    methods = tmp_path / "config/methods/consistency.yaml"
    methods.write_text(methods.read_text().replace("name: decm", "name: decm, frequenzy: 3"))
    done = snakemake(tmp_path, "--profile", "profiles/demo", "results/demo/table3.csv")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Using profile profiles/demo for setting default command line arguments.",
        "config/methods/consistency.yaml: decm.loss.frequenzy: unknown key, perhaps misspelt; "
        "did you mean 'freq'?",
    ]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["results/demo/tabel1.csv"], "target results/demo/tabel1.csv: no rule makes it; did you mean "),
        (["train"], "target train: this rule makes many files; name one of them"),
        (["results/demo/table1.csv", "-R", "trian"], "target trian: no rule makes it; did you mean "),
        (
            ["results/demo/table1.csv", "--config", "seeds=0"],
            "--config: seeds: must be a list, not 0; write [0]",
        ),
    ],
)
def test_snakemake_ends_in_one_line(words, line, tmp_path):
    done = snakemake(ROOT, "--profile", "profiles/demo", "--directory", str(tmp_path), "-n", *words)
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert first.startswith("Using profile ") and last.startswith(line)


def test_a_file_that_cannot_be_read_is_told_alone(tmp_path):
    """What refers to it would be wrong as well."""
    folder = copied(tmp_path)
    assert told(folder, "based_on: config/dmeo.yaml\noverrides: {assets: {mine: {path: x}}}\n") == [
        f"config/mine.yaml: based_on: there is no file 'config/dmeo.yaml' in {folder}"
    ]
    broken = "kind: table\ntitle: x\nrows\n"
    (folder / "config/tables/mine.yaml").write_text(broken)
    assert told(folder, "based_on: config/demo.yaml\ntargets: [tabel1]\n") == [
        "config/tables/mine.yaml: line 4: could not find expected ':'"
    ]


def test_a_misspelt_recipe_is_not_replaced(tmp_path):
    """The miniature takes its own recipe in place of every one that is called imagenet*."""
    folder = copied(tmp_path)
    recipe = "recipe: imagenet256-vava"
    (folder / "config/methods/mine.yaml").write_text(f"mine: {{title: x, {recipe}, loss: {{name: decm}}}}\n")
    assert told(folder, "based_on: config/demo.yaml\n") == [
        "config/methods/mine.yaml: mine.recipe: unknown name 'imagenet256-vava'; "
        "did you mean 'imagenet256-vavae'?"
    ]
