"""Every kind of network and tokenizer as a folder of `fewstep.Pipeline`: in fresh processes, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from class_models import KINDS, MOONS, export_words, write_model
from PIL import Image

import fewstep
from fewstep import generate, pipeline
from fewstep.config import ConfigError
from fewstep.config.backbones import ClassNetwork, TimedClassNetwork
from fewstep.config.settings import Tokenizer

CLASSES, SEED = [3, 0, 1], 5
GENERATE = """
import json, sys
from fewstep.generate import main
for words in json.loads(sys.argv[1]):
    main(words)
"""
LOAD = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if {blocked} and name.split(".")[0] == "fewstep":
            raise ImportError("not installed")

sys.meta_path.insert(0, Blocked())
import numpy
from diffusers import DiffusionPipeline
for folder, steps, out in json.loads(sys.argv[1]):
    if {blocked}:
        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    else:
        import fewstep
        pipe = fewstep.Pipeline.from_pretrained(folder)
    images = pipe({classes}, steps=steps, seed={seed}).images
    numpy.save(out, numpy.stack([numpy.asarray(image) for image in images]))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder for each kind with its model file and its pipeline."""
    folder = tmp_path_factory.mktemp("kinds")
    for place, kind in enumerate(KINDS.values()):
        model, spec = write_model(folder / str(place), kind)
        pipeline.main(export_words(model, spec, folder / f"{place}/pipeline"))
    return folder


def run_in_a_process(code: str, calls: object, folder: Path) -> None:
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules")}
    words = [sys.executable, "-c", code, json.dumps(calls)]
    subprocess.run(words, check=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def generated(written) -> list[np.ndarray]:
    """What `python -m fewstep.generate` makes of each kind's model file."""
    calls = [
        [
            *(str(written / f"{place}/model.safetensors"), "--classes", *map(str, CLASSES)),
            *("--seed", str(SEED), "--steps", str(kind.steps), "--device", "cpu"),
            *("--out", f"{written}/{place}/images/"),
        ]
        for place, kind in enumerate(KINDS.values())
    ]
    run_in_a_process(GENERATE, calls, written)
    return [
        np.stack([np.asarray(Image.open(path)) for path in sorted((written / f"{place}/images").iterdir())])
        for place in range(len(KINDS))
    ]


@pytest.fixture(scope="module", params=[False, True], ids=["fewstep", "without fewstep"])
def loaded(request, written) -> list[np.ndarray]:
    """What the folders make; all in one process, whose bundles must not meet."""
    code = LOAD.format(blocked=request.param, classes=CLASSES, seed=SEED)
    calls = [
        (str(written / f"{place}/pipeline"), kind.steps, str(written / f"{place}/loaded.npy"))
        for place, kind in enumerate(KINDS.values())
    ]
    run_in_a_process(code, calls, written)
    return [np.load(written / f"{place}/loaded.npy") for place in range(len(KINDS))]


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_makes_the_images_of_the_model_file(generated, loaded, name):
    place = list(KINDS).index(name)
    assert np.array_equal(loaded[place], generated[place])
    assert generated[place].shape == (3, 8, 8, 3) and generated[place].std() > 5
    assert not np.array_equal(generated[place][0], generated[place][1])


@pytest.mark.parametrize(("name", "published"), [("sd-vae", True), ("autoencoder", False)])
def test_the_card_names_the_licence_of_a_published_decoder(written, name, published):
    text = (written / f"{list(KINDS).index(name)}/pipeline/README.md").read_text()
    stated = text.partition("## Licence")[2]
    assert 'license_name: "cc-by-4.0"' in text and "Weights: CC BY 4.0" in stated
    assert ("The decoder's: own (" in stated) == published


def test_every_network_of_classes_and_every_tokenizer_is_tried():
    networks = [*ClassNetwork.__subclasses__(), *TimedClassNetwork.__subclasses__()]
    fields = [network.model_fields["kind"] for network in networks if "kind" in network.model_fields]
    tried = [*KINDS.values(), MOONS]
    assert {kind for field in fields for kind in get_args(field.annotation)} == {
        each.backbone["kind"] for each in tried
    }
    tokenizers = get_args(Tokenizer.model_fields["kind"].annotation)
    assert {each.tokenizer.kind for each in tried} == set(tokenizers)


def test_a_folder_that_is_damaged(written, tmp_path):
    """In one line; nothing is unpickled where the weights are gone."""
    folder = tmp_path / "pipeline"
    shutil.copytree(written / "0/pipeline", folder)
    assert len(fewstep.load(folder, device="cpu")([1])) == 1
    config, weights = folder / "model/config.json", folder / "model/diffusion_pytorch_model.safetensors"
    content = {path: path.read_bytes() for path in (config, weights)}
    for path in (config, weights):
        path.write_bytes(content[path][: len(content[path]) // 2])
        assert_one_line(folder)
        path.write_bytes(content[path])
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    assert "safetensors" in assert_one_line(folder)


def assert_one_line(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"pipeline: not a folder of fewstep\.Pipeline: ") as error:
        fewstep.load(folder, device="cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_of_data_that_are_not_images_is_refused(written, tmp_path):
    """Its protocol scores floats: those of pixels, or of points."""
    folder = tmp_path / "pipeline"
    shutil.copytree(written / "0/pipeline", folder)
    config = folder / "model/config.json"
    content = json.loads(config.read_text())
    content["sampling"]["uint8"] = "none"
    config.write_text(json.dumps(content))
    model = fewstep.load(folder, device="cpu")
    with pytest.raises(ConfigError, match=r"sampling\.uint8: none: its samples are data, not images"):
        model([1])


def test_an_unknown_device_is_no_damaged_folder(written):
    for device in ("nonsense", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ConfigError, match=f"device {device}: "):
            fewstep.load(written / "0/pipeline", device=device)


def test_points_become_no_folder(tmp_path):
    model, spec = write_model(tmp_path / "moons", MOONS)
    with pytest.raises(ConfigError, match=r"model\.safetensors: its samples are points, not images"):
        pipeline.main(export_words(model, spec, tmp_path / "pipeline"))
    assert not (tmp_path / "pipeline").exists()
    with pytest.raises(ConfigError, match=r"model\.safetensors: its samples are points, not images"):
        fewstep.load(model)
    with pytest.raises(ConfigError, match="points"):
        generate.main([str(model), "--classes", "0", "--out", str(tmp_path / "x.png")])


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("dumo-moons/base", r"dumo-moons\.backbone: its samples are points, not images"),
        ("digits-autoencoder/base", "digits-autoencoder makes no images of classes or captions"),
        ("decm-t2i/base", r"no plain SD3; adapters .*/decm-t2i/base/0/export/pytorch_lora_weights"),
        ("sd35-turbo/base", "sd35-turbo: is a released pipeline of diffusers; use that"),
    ],
)
def test_runs_that_become_no_folder(demo_plan, run, message):
    with pytest.raises(ConfigError, match=message) as error:
        demo_plan.spec("pipeline", run)
    assert "\n" not in str(error.value)


def test_every_run_becomes_a_folder_or_is_refused_in_one_line(demo_plan, paper_plan):
    for plan in (demo_plan, paper_plan):
        refused = {}
        for name in plan.runs:
            try:
                plan.spec("pipeline", name)
            except ConfigError as error:
                refused[name] = str(error)
        assert all("\n" not in line for line in refused.values())
        assert len(refused) < len(plan.runs) / 2
