"""Images of chosen classes: the model file says all, and a pipeline's folder gives the same, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tiny_pipeline import TinyPipeline

import fewstep
from fewstep import generate
from fewstep.backbones import build
from fewstep.backbones.model_file import backbone_of, load_model, save_model
from fewstep.common.files import sha256
from fewstep.config import ConfigError, dump
from fewstep.evaluation.image_archive import open_images
from fewstep.pipeline import main as write_pipeline

CLASSES = [3, 7, 0]


@pytest.fixture(scope="module")
def model(pipeline: TinyPipeline) -> Path:
    return Path(pipeline.plan.model("cd"))


@pytest.fixture(scope="module")
def folder(pipeline: TinyPipeline, model: Path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pipelines") / "cd"
    write_pipeline(arguments(pipeline, model, path))
    return path


def arguments(pipeline: TinyPipeline, model: Path, folder: Path, run: str = "cd/base") -> list[str]:
    spec = pipeline.spec("pipeline", run, folder.parent / "specs")
    files = pipeline.plan.inputs("pipeline", {"run": run, "seed": "0"})
    words = [word for name in ("tokenizer", "latents") for word in (f"--{name}", *files[name])]
    return ["--spec", str(spec), "--model", str(model), *words, "--out", str(folder / "model_index.json")]


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_a_model_file_needs_nothing_else(model):
    made = pixels(fewstep.load(model, device="cpu")(CLASSES, steps=2, seed=5))
    assert made.shape == (3, 8, 8) and made.dtype == np.uint8
    again = pixels(fewstep.load(model, device="cpu")(CLASSES, steps=2, seed=5))
    assert np.array_equal(made, again)
    assert not np.array_equal(made, pixels(fewstep.load(model, device="cpu")(CLASSES, steps=2, seed=6)))


def test_images_are_those_of_a_cell_with_the_same_seed(pipeline, model):
    key = {"run": "cd/base", "seed": "0", "sampler": "cm", "steps": "2"}
    archive = open_images(pipeline.plan.file("images", images=pipeline.plan.image_set("digits"), **key))
    labels, seed = archive.labels(0).tolist(), archive.card["seed"]
    generator = fewstep.load(model, device="cpu")
    assert generator.sampling.choice(2).sampler.kind == "cm"
    assert np.array_equal(generator.images(labels, 2, seed).numpy(), archive.images(0))


def test_the_card_says_what_the_images_depend_on(pipeline, model):
    _, card = load_model(model)
    assert card["teacher"] == sha256(pipeline.plan.model("teacher"))
    assert card["versions"]["fewstep"] == fewstep.__version__
    assert card["latents"]["weights"] == sha256(pipeline.plan.model("digits-autoencoder"))
    assert not Path(card["sampling"]["tokenizer_file"]).is_absolute()
    _, teacher = load_model(pipeline.plan.model("teacher"))
    assert teacher["sampling"]["samplers"] and teacher["teacher"] is None


def test_a_grid_and_a_folder(model, tmp_path):
    words = [str(model), "--classes", "3", "7", "0", "--steps", "2", "--seed", "5", "--device", "cpu"]
    generate.main([*words, "--columns", "3", "--out", str(tmp_path / "grid.png")])
    grid = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    assert grid.shape == (8, 28)
    generate.main([*words, "--out", f"{tmp_path}/many/"])
    files = sorted((tmp_path / "many").iterdir())
    assert [file.name for file in files] == ["000000.png", "000001.png", "000002.png"]
    for place, file in enumerate(files):
        assert np.array_equal(np.asarray(Image.open(file)), grid[:, 10 * place : 10 * place + 8])


def test_images_of_another_call_are_not_mixed_with(model, tmp_path):
    (tmp_path / "000001.png").touch()
    with pytest.raises(ConfigError, match=r"--out: .* is not empty; name a new folder"):
        generate.main([str(model), "--classes", "1", "--device", "cpu", "--out", f"{tmp_path}/"])


def test_classes_have_names(model):
    tensors, card = load_model(model)
    card["latents"]["names"] = ["red circles", "Кошки"]
    named = model.with_name("named.safetensors")
    save_model(named, tensors, backbone_of(card), {k: v for k, v in card.items() if k != "sha256"})
    made = fewstep.load(named, device="cpu")
    assert np.array_equal(pixels(made(["Кошки", "red circles", 2])), pixels(made([1, 0, 2])))
    with pytest.raises(ConfigError, match=r"no class 'x'; there are 0 to 9 \(red circles, Кошки\)"):
        made(["x"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "10"], "classes: there is no class 10; there are 0 to 9"),
        (["--classes", "cat"], "classes: there is no class 'cat'; there are 0 to 9"),
        (["--classes", "1", "--out", "x.jpg"], "--out: x.jpg: must end with .png"),
        (["--classes", "1", "--guidance", "2"], "--guidance: belongs to --sampler"),
        (["--classes", "1", "--sampler", "mix"], "mix sampler"),
        (["--classes", "1", "--columns", "0"], "--columns: 0"),
    ],
)
def test_bad_calls(model, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        generate.main([str(model), "--device", "cpu", "--out", str(tmp_path / "a.png"), *words])
    assert not [*tmp_path.iterdir()]


def test_what_older_files_lack_is_named_with_its_option(pipeline, model, tmp_path):
    tensors, card = load_model(model)
    own = {key: value for key, value in card.items() if key not in ("sampling", "sha256")}
    own["latents"] = {key: value for key, value in own["latents"].items() if key != "normalisation"}
    old = tmp_path / "old" / "model.safetensors"
    old.parent.mkdir()
    save_model(old, tensors, backbone_of(card), own)
    with pytest.raises(ConfigError, match=r"sampling: not in its card.*pass --sampling"):
        fewstep.load(old)
    sampling = tmp_path / "sampling.json"
    sampling.write_text(dump(pipeline.plan.spec("sampling", "cd/base")))
    more = {"sampling": sampling, "tokenizer": pipeline.plan.model("digits-autoencoder")}
    with pytest.raises(ConfigError, match=r"normalisation: not in its card.*pass --latents"):
        fewstep.load(old, **more)
    latents = pipeline.plan.file("manifest", latents="digits-latents")
    made = fewstep.load(old, latents=latents, device="cpu", **more)
    assert made.images(CLASSES, 2).equal(fewstep.load(model, device="cpu").images(CLASSES, 2))


def test_the_tokenizer_is_found_or_asked_for_and_checked(pipeline, model, tmp_path):
    moved = tmp_path / "elsewhere" / "model.safetensors"
    moved.parent.mkdir()
    moved.write_bytes(model.read_bytes())
    with pytest.raises(ConfigError, match=r"tokenizer's weights: .* is not there; pass --tokenizer"):
        fewstep.load(moved)
    with pytest.raises(ValueError, match="other tokenizer weights"):
        fewstep.load(moved, tokenizer=pipeline.plan.model("teacher"))
    tokenizer = pipeline.plan.model("digits-autoencoder")
    assert len(fewstep.load(moved, tokenizer=tokenizer, device="cpu")([1])) == 1
    with pytest.raises(ConfigError, match="makes no images of classes"):
        fewstep.load(tokenizer)


def test_a_folder_makes_the_same_images(model, folder):
    """Also in other processes, and without fewstep: test_exporting_kinds.py."""
    wanted = pixels(fewstep.load(model, device="cpu")(CLASSES, steps=2, seed=5))
    assert np.array_equal(pixels(fewstep.load(folder, device="cpu")(CLASSES, steps=2, seed=5)), wanted)


@pytest.mark.parametrize("method", ["afm", "scfd"])
def test_of_a_training_with_players_the_student_alone_is_written(pipeline, tmp_path, method):
    """Its discriminators are in no model file, and so in no folder."""
    model = pipeline.train(method, tmp_path / "trained")()
    folder = tmp_path / "pipeline"
    write_pipeline(arguments(pipeline, model, folder, f"{method}/base"))
    (file,) = (folder / "model").glob("*.safetensors")
    names = {f"net.{name}" for name in build(backbone_of(load_model(model)[1])).state_dict()}
    assert {name for name in load_file(file) if not name.startswith("decoder.")} == names
    tokenizer = pipeline.plan.model("digits-autoencoder")
    wanted = fewstep.load(model, tokenizer=tokenizer, device="cpu").images(CLASSES)
    assert fewstep.load(folder, device="cpu").images(CLASSES).equal(wanted)


def test_a_model_card(folder):
    text = (folder / "README.md").read_text()
    assert "row `cd/base`" in text and "CC BY 4.0" in text and "| cm-2 | fid |" in text
    assert "pipe([0, 1], steps=2, seed=0)" in text  # few, even where many have a sampler of their own
    assert json.loads((folder / "fewstep.json").read_text())["status"] == "trained"


def test_the_package_itself_stays_without_torch():
    code = "import sys, fewstep; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
