"""A model that is trained here in plain diffusers: what is asked of the folder, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess

import pytest

pytest.importorskip("transformers", reason="text to image needs the extra [t2i]")
pytest.importorskip("peft", reason="text to image needs the extra [t2i]")

import torch
from diffusers import StableDiffusion3Pipeline
from tiny_pipeline_folder import CLIP, NORMALISATION, SD3, TEXT, VAE, save_pipeline

from fewstep.backbones import build, use_text
from fewstep.backbones.model_file import load_network
from fewstep.common.files import atomic_folder, sha256
from fewstep.common.folders import visible_files
from fewstep.config.settings import Sampler
from fewstep.data.text_store import Text
from fewstep.evaluation.samplers import integrate
from fewstep.exporting.pipeline import normalising


@pytest.fixture(scope="module")
def pipe(models):
    return StableDiffusion3Pipeline.from_pretrained(models.pipeline)


def test_the_autoencoder_normalises_exactly():
    """At the borders too, where the decoder's convolution pads with zeros."""
    torch.manual_seed(0)
    autoencoder = build(VAE).eval()
    vae = normalising(autoencoder.vae, NORMALISATION)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        raw = autoencoder.encode(images)
        latents = vae.encode(images).latent_dist
        normalised = NORMALISATION.normalise(raw)
        assert (latents.mode() - normalised).abs().max() <= 1e-6 * normalised.abs().max()
        ours = autoencoder.decode(NORMALISATION.denormalise(normalised))
        assert (vae.decode(normalised).sample - ours).abs().max() < 1e-5
        # Folded into the decoder's first convolution, the shift would move the padding too.
        gain, mean = torch.tensor(NORMALISATION.std), torch.tensor(NORMALISATION.mean)
        folded = autoencoder.vae.decoder.conv_in
        folded.bias.add_((folded.weight.sum((2, 3)) * mean).sum(1))
        folded.weight.mul_(gain[:, None, None])
        assert (autoencoder.decode(normalised) - ours).abs().max() > 1e-3
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (1.0, 0.0)


def test_the_posterior_s_variance_is_normalised_too():
    torch.manual_seed(0)
    autoencoder = build(VAE).eval()
    out = autoencoder.vae.encoder.conv_out
    with torch.no_grad():
        out.bias[VAE.latent :] = -2.0
        posterior = normalising(autoencoder.vae, NORMALISATION).encode(torch.rand(1, 3, 16, 16)).latent_dist
        wanted = torch.exp(torch.tensor(-1.0)) / torch.tensor(NORMALISATION.std)
        assert torch.allclose(posterior.std, wanted.view(1, -1, 1, 1).expand_as(posterior.std), rtol=1e-5)


def test_a_pipeline_samples_as_we_do(models, pipe):
    """Guided Euler steps from the same noise, through the same text encoder: latents and images."""
    net, _ = load_network(models.teacher, SD3)
    captions = ["a red cat", ""]
    context, _, pooled, _ = pipe.encode_prompt(
        captions, None, None, do_classifier_free_guidance=False, max_sequence_length=6
    )
    use_text(net, lambda y: Text(context[y], pooled[y]))
    noise = torch.randn(1, *SD3.shape, generator=torch.Generator().manual_seed(3))

    def field(x, t, s):
        conditional, unconditional = (net(x, *torch.full((2, 1), t), torch.tensor([y])) for y in (0, 1))
        return unconditional + 3.0 * (conditional - unconditional)

    ours = integrate(Sampler(kind="euler"), field, noise, 4, lambda step: noise)
    call = {"prompt": "a red cat", "sigmas": [1.0, 0.75, 0.5, 0.25], "guidance_scale": 3.0}
    call |= {"max_sequence_length": 6, "latents": noise}
    latents = pipe(**call, output_type="latent").images
    assert (latents - ours).abs().max() < 1e-5
    images = pipe(**call, output_type="pt").images
    vae, _ = load_network(models.folder / "vae.safetensors", VAE)
    decoded = vae.decode(NORMALISATION.denormalise(ours)).clamp(-1, 1) / 2 + 0.5
    assert (images - decoded).abs().max() < 1e-5


@pytest.mark.parametrize("length", [1, 6])
def test_without_t5_there_are_zeros(models, pipe, length, caplog, monkeypatch):
    """And no warning that a prompt is cut, unless CLIP cuts it."""
    # Whatever other tests have left: diffusers' loggers may be silent, or not reach the root.
    pipelines = logging.getLogger(StableDiffusion3Pipeline.__module__)
    caplog.set_level(logging.WARNING, pipelines.name)
    monkeypatch.setattr(pipelines, "handlers", [caplog.handler])
    monkeypatch.setattr(pipelines, "propagate", False)
    encoded = {}
    without = StableDiffusion3Pipeline.from_pretrained(models.pipeline, text_encoder_3=None, tokenizer_3=None)
    for name, each in (("with", pipe), ("without", without)):
        encoded[name] = each.encode_prompt("a dog", None, None, max_sequence_length=length)
    assert not caplog.records
    for ours, theirs in zip(encoded["with"], encoded["without"], strict=True):
        assert torch.equal(ours, theirs)
    pipe.encode_prompt("dog " * 20, None, None, max_sequence_length=length)
    cut = [record.message for record in caplog.records if "truncated" in record.message]
    assert cut and all("CLIP can only handle" in message for message in cut)


def test_the_folder_says_what_it_is(models):
    about = json.loads((models.pipeline / "fewstep.json").read_text())
    assert about["method"] == "teacher" and about["call"] == {"max_sequence_length": 6}
    assert about["tokenizer"] == sha256(models.folder / "vae.safetensors")


def test_a_folder_is_replaced_as_a_whole_and_the_same_again(models, tmp_path):
    folder, _ = save_pipeline(tmp_path)
    names = list(visible_files(folder))
    first = {name: sha256(folder / name) for name in names}
    (folder / "left-over").write_text("")
    save_pipeline(tmp_path)
    assert {name: sha256(folder / name) for name in visible_files(folder)} == first
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/photo.png").write_text("mine")
    with pytest.raises(ValueError, match=r"pipeline: holds other files, which would be replaced"):
        save_pipeline(tmp_path)
    assert (tmp_path / "pipeline/photo.png").read_text() == "mine"


def test_the_folder_is_there_only_whole(models, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(StableDiffusion3Pipeline, "save_pretrained", fails)
    with pytest.raises(OSError):
        save_pipeline(tmp_path)
    assert not (tmp_path / "pipeline").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_a_killed_job_left_is_removed(tmp_path):
    """Folders of processes that have ended; not those of one that runs."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with atomic_folder(tmp_path / "pipeline") as mine:
        (mine / "own").write_text("")
        left = mine.with_name(mine.name.replace(f"~{os.getpid()}~", f"~{ended.pid}~"))
        shutil.copytree(mine, left)
        with atomic_folder(tmp_path / "pipeline"):
            assert mine.is_dir() and not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
    assert (tmp_path / "pipeline/own").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": SD3.model_copy(update={"time_scale": 20.0})}, "backbone.time_scale: 20.0"),
        ({"backbone": SD3.model_copy(update={"target_time": True})}, "backbone.target_time: True"),
        ({"backbone": SD3.model_copy(update={"pooled": 10})}, "pooled: 24, not 10"),
        ({"encoder": CLIP.model_copy(update={"width": 20})}, "width"),
        ({"text": TEXT.model_copy(update={"t5_length": 7})}, "learned from other embeddings of captions"),
    ],
)
def test_refusals(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        save_pipeline(tmp_path, **changes)
    assert not (tmp_path / "pipeline").exists()
    shutil.rmtree(tmp_path)
