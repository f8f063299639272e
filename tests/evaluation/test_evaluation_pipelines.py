"""Released pipelines of diffusers, tiny and random: sampled through the stage, and scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipeline import Call, refused, replaced

pytest.importorskip("transformers")
pytest.importorskip("peft")
import diffusers
import tiny_diffusers
from safetensors.torch import load_file, save_file
from tiny_diffusers import MAKERS, PROMPTS, save_prompts
from tiny_text import write_record

from fewstep.common.provenance import is_stale
from fewstep.config import dump
from fewstep.config.pipelines import DiffusersPipeline, PipelineClass
from fewstep.config.specs import CellKey, PipelineSampleSpec, PromptScoreSpec
from fewstep.config.text import PromptProtocol, PromptSet
from fewstep.core.rng import generator
from fewstep.data.asset_files import read_record
from fewstep.evaluation import pipeline_generation, prompt_scoring
from fewstep.evaluation.image_archive import open_images
from fewstep.evaluation.pipeline_generation import RestartScheduler, open_pipeline
from fewstep.evaluation.scorers.interface import Scorer

SIDE = 32
PROMPT_SET = PromptSet(asset="prompts", files=["prompts.jsonl"], prompts=2)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an asset for each class of pipelines, and the prompts."""
    folder = tmp_path_factory.mktemp("assets")
    save_prompts(folder)
    for name, make in MAKERS.items():
        make().save_pretrained(folder / name)
        write_record(folder / name)
    return folder


def pipeline(name: PipelineClass, **changes: Any) -> DiffusersPipeline:
    given = {"name": name, "asset": name, "dtype": "float32", "image": SIDE}
    return DiffusersPipeline.model_validate(given | changes)


def spec_of(chosen: DiffusersPipeline, steps: int = 2, images: int = 4) -> PipelineSampleSpec:
    return PipelineSampleSpec(
        pipeline=chosen,
        steps=steps,
        images=images,
        labels="balanced",
        uint8="round",
        seed=0,
        prompts=PROMPT_SET,
        image=[3, SIDE, SIDE],
    )


def call_of(assets: Path, folder: Path, spec: PipelineSampleSpec) -> Call:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(dump(spec))
    records = [str(assets / f"{name}.json") for name in spec.pipeline.assets]
    words = ["--spec", str(folder / "spec.json"), "--model", "--base", "--text", "--latents", "--tokenizer"]
    words += ["--pipeline", *records, "--prompts", str(assets / "prompts.json")]
    out = folder / "images.tar"
    return Call("sample", [*words, "--out", str(out)], [out])


def images_of(call: Call) -> np.ndarray:
    archive = open_images(call())
    return np.concatenate([archive.images(batch) for batch in range(len(archive.sizes))])


def by_hand(pipe: Any, index: int, steps: int, **given: Any) -> np.ndarray:
    """The bytes of one image, by the pipeline's own call with latents."""
    noise = generator(0, "sample", index, "start")
    shape = (1, 4, SIDE // 2, SIDE // 2)
    if isinstance(pipe, diffusers.QwenImagePipeline):
        latents = torch.randn((1, 1, *shape[1:]), generator=noise)
        latents = pipe._pack_latents(latents, 1, *shape[1:])
    else:
        latents = torch.randn(shape, generator=noise)
    images = pipe(
        prompt=PROMPTS[index % 2],
        latents=latents,
        generator=[noise],
        num_inference_steps=steps,
        height=SIDE,
        width=SIDE,
        output_type="np",
        **given,
    ).images
    return (images[0].transpose(2, 0, 1) * 255).round().astype(np.uint8)


ARGUMENTS: dict[PipelineClass, tuple[float, dict[str, Any], int]] = {
    "StableDiffusion3Pipeline": (4.5, {"guidance_scale": 4.5}, 2),
    "StableDiffusionXLPipeline": (0.0, {"guidance_scale": 0.0}, 1),
    "SanaSprintPipeline": (4.5, {"guidance_scale": 4.5, "use_resolution_binning": False}, 1),
    "QwenImagePipeline": (4.0, {"true_cfg_scale": 4.0, "negative_prompt": " "}, 2),
    "ZImagePipeline": (1.0, {"guidance_scale": 1.0}, 2),
}
"""Class -> guidance, the same as arguments of its call, evaluations of its network in a step."""


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_images_are_those_of_the_pipeline_itself(assets, tmp_path, name, steps):
    guidance, given, evaluations = ARGUMENTS[name]
    chosen = pipeline(name, guidance=guidance, steps=[2])
    found = images_of(call_of(assets, tmp_path, spec_of(chosen, steps)))
    pipe = getattr(diffusers, name).from_pretrained(assets / name)
    rows: list[int] = []
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    network.register_forward_pre_hook(
        lambda _, args, named: rows.append(len(args[0] if args else named["hidden_states"])), with_kwargs=True
    )
    if name == "SanaSprintPipeline" and steps == 1:
        given = {**given, "intermediate_timesteps": None}
    wanted = np.stack([by_hand(pipe, index, steps, **given) for index in range(4)])
    assert (found == wanted).all()
    card = open_images(tmp_path / "images.tar").card
    assert card["evaluations"] == evaluations * steps == sum(rows) / 4
    assert card["model"]["status"] == "released" and card["model"]["made_for"] == [2]
    assert card["captions"] == {"0": PROMPTS[0], "1": PROMPTS[1]}
    assert not (found[0] == found[2]).all(), "one prompt, two noises"


def test_images_do_not_depend_on_what_is_kept_together_and_survive_a_stop(assets, tmp_path, monkeypatch):
    spec = spec_of(pipeline("StableDiffusionXLPipeline", scheduler={"name": "LCMScheduler"}), images=6)
    whole = images_of(call_of(assets, tmp_path / "whole", spec))
    monkeypatch.setattr(pipeline_generation, "KEPT", 2)
    stopped = call_of(assets, tmp_path / "stopped", spec)
    made: list[int] = []
    make = pipeline_generation._image

    def counted(spec: Any, pipe: Any, prompt: str, index: int) -> torch.Tensor:
        made.append(index)
        if len(made) == 4:
            raise KeyboardInterrupt
        return make(spec, pipe, prompt, index)

    monkeypatch.setattr(pipeline_generation, "_image", counted)
    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not stopped.out.exists()
    assert (images_of(stopped) == whole).all()
    assert made == [0, 1, 2, 3, 2, 3, 4, 5]
    assert [path.name for path in stopped.out.parent.iterdir() if path.is_dir()] == []


def save_adapters(assets: Path, seed: int) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(assets / "StableDiffusionXLPipeline")
    torch.manual_seed(seed)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipe.unet)
    name = f"few-{seed}.safetensors"
    pipe.save_lora_weights(assets / "adapters", unet_lora_layers=layers, weight_name=name)
    write_record(assets / "adapters")


@pytest.fixture(scope="module")
def adapters(assets: Path) -> Path:
    save_adapters(assets, 1)
    save_adapters(assets, 2)
    return assets


@pytest.mark.parametrize("fuse", [True, False])
def test_adapters_and_their_scheduler(adapters, tmp_path, fuse):
    """As Hyper-SD is used: adapters and a scheduler for each number of steps."""
    chosen = pipeline(
        "StableDiffusionXLPipeline",
        adapters=[{"asset": "adapters", "file": "few-1.safetensors", "scale": 0.7, "fuse": fuse}],
        scheduler={"name": "TCDScheduler"},
        eta=1.0,
        at={1: {"timesteps": [800]}, 2: {"adapters": [{"asset": "adapters", "file": "few-2.safetensors"}]}},
    )
    for steps, file, scale in ((1, "few-1", 0.7), (2, "few-2", 1.0), (3, "few-1", 0.7)):
        at = DiffusersPipeline.model_validate(chosen.raw_at(steps))
        found = images_of(call_of(adapters, tmp_path / str(steps), spec_of(at, steps, images=2)))
        pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(adapters / "StableDiffusionXLPipeline")
        pipe.load_lora_weights(adapters / "adapters", weight_name=f"{file}.safetensors")
        pipe.fuse_lora(lora_scale=scale)
        pipe.scheduler = diffusers.TCDScheduler.from_config(pipe.scheduler.config)
        given: dict[str, Any] = {"timesteps": [800]} if steps == 1 else {}
        wanted = [by_hand(pipe, index, steps, eta=1.0, guidance_scale=0.0, **given) for index in range(2)]
        assert np.abs(found.astype(int) - np.stack(wanted)).max() <= (0 if fuse else 1)
        assert sorted(open_images(tmp_path / str(steps) / "images.tar").card["model"]["weights"]) == [
            "StableDiffusionXLPipeline",
            "adapters",
        ]


def with_second_time(assets: Path, folder: Path, name: str, embedding: str) -> Path:
    """A copy whose transformer has a second embedding of the time, and is of a class that nobody has."""
    shutil.copytree(assets / name, folder / name)
    shutil.copy(assets / "prompts.json", folder)
    shutil.copytree(assets / "prompts", folder / "prompts")
    path = folder / name / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    torch.manual_seed(3)
    more = {
        key.replace(f"{embedding}.", f"{embedding}_2."): torch.randn_like(value)
        for key, value in tensors.items()
        if key.startswith(f"{embedding}.")
    }
    save_file(tensors | more, path, {"format": "pt"})
    index = folder / name / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"transformer": ["diffusers_patch.z_image", "Wrapper"]}))
    return write_record(folder / name)


RESTART: dict[str, Any] = {
    "scheduler": {"name": "restart", "shift": 1.0, "use_dynamic_shifting": False},
    "sigmas": [0.999, 0.6],
    "second_time": True,
}


def test_twinflow_z_image(assets, tmp_path):
    """Two steps of UCGM-S with rho = 1 by hand, with both times embedded."""
    record = with_second_time(assets, tmp_path, "ZImagePipeline", "t_embedder")
    chosen = pipeline("ZImagePipeline", **RESTART)
    found = images_of(call_of(tmp_path, tmp_path / "out", spec_of(chosen, images=2)))
    net = diffusers.ZImageTransformer2DModel.from_pretrained(assets / "ZImagePipeline/transformer")
    second = type(net.t_embedder)(32, mid_size=1024)
    tensors = load_file(record.with_suffix("") / "transformer/diffusion_pytorch_model.safetensors")
    second.load_state_dict(
        {key[len("t_embedder_2.") :]: value for key, value in tensors.items() if "t_embedder_2" in key}
    )
    first = net.t_embedder.forward
    net.t_embedder.forward = lambda scaled: first(scaled) + scaled / 1000 * second(-scaled)
    pipe = diffusers.ZImagePipeline.from_pretrained(assets / "ZImagePipeline", transformer=net)
    for index, image in enumerate(found):
        noise = generator(0, "sample", index, "start")
        caption = pipe.encode_prompt(PROMPTS[index], do_classifier_free_guidance=False)[0]
        x = torch.randn((1, 4, SIDE // 2, SIDE // 2), generator=noise)
        for now, after in ((0.999, 0.6), (0.6, 0.0)):
            with torch.no_grad():
                data = net([x[0][:, None]], torch.tensor([1 - now]), caption, return_dict=False)[0][0]
            clean = x + now * data.squeeze(1)[None]
            x = (1 - after) * clean + after * torch.randn(x.shape, generator=noise)
        with torch.no_grad():
            wanted = pipe.vae.decode(x / 0.36 + 0.1).sample.clamp(-1, 1)
        wanted = ((wanted + 1) * 127.5).round().to(torch.uint8)[0].numpy()
        assert np.abs(image.astype(int) - wanted).max() <= 1


def test_twinflow_qwen_image(assets, tmp_path):
    record = with_second_time(assets, tmp_path, "QwenImagePipeline", "time_text_embed")
    chosen = pipeline("QwenImagePipeline", **RESTART)
    found = images_of(call_of(tmp_path, tmp_path / "out", spec_of(chosen, images=2)))
    pipe = open_pipeline(chosen, {"QwenImagePipeline": read_record(record)})
    assert isinstance(pipe.scheduler, RestartScheduler)
    both, tau = pipe.transformer.time_text_embed, torch.tensor([0.6])
    hidden = torch.zeros(1, 1, 16)
    embedded = both.first(tau, hidden) + 0.6 * both.second(torch.tensor([0.0]), hidden)
    assert torch.allclose(both(tau, hidden, None), embedded)
    plain = chosen.model_copy(update={"second_time": False})
    other = images_of(call_of(assets, tmp_path / "plain", spec_of(plain, images=2)))
    assert not (found == other).all()


class Brightness(Scorer):
    """The mean of an image, which is what its prompt asks for."""

    computes = "brightness"

    def __call__(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return images.float().mean((1, 2, 3))

    def faults(self, test: Any) -> str:
        return ""


def test_the_images_are_scored_and_told_as_released(assets, tmp_path, monkeypatch):
    chosen = pipeline("SanaSprintPipeline", guidance=4.5, steps=[1, 4])
    sample = spec_of(chosen)
    call = call_of(assets, tmp_path, sample)
    mean = images_of(call).mean()
    scorers = {"clip": {"kind": "clip", "weights": {"asset": "clip", "file": "model.safetensors"}}}
    protocol = PromptProtocol.model_validate(
        {"kind": "prompt-scores", "prompts": "two", "images": 4, "scorers": scorers, "metrics": ["clip"]}
    )
    cell = CellKey(method="sana", variant="base", seed=0, sampler="own-scheduler", steps=2, protocol="tiny")
    spec = PromptScoreSpec(cell=cell, protocol=protocol, prompts=PROMPT_SET, scorers={}, sample=sample)
    (tmp_path / "score.json").write_text(dump(spec))
    monkeypatch.setitem(prompt_scoring.OPENERS, "clip", lambda _: Brightness("clip", "0" * 64, "cpu"))
    words = ["--spec", str(tmp_path / "score.json"), "--images", str(call.out), "--extractor", "--reference"]
    words += ["--scorers", str(assets / "prompts.json"), "--prompts", str(assets / "prompts.json")]
    out = tmp_path / "metrics.json"
    score = Call("score", [*words, "--out", str(out)], [out])
    score()
    metrics = json.loads(out.read_text())
    assert metrics["clip"] == pytest.approx(mean)
    assert (metrics["status"], metrics["evaluations"]) == ("released", 2)
    assert not is_stale(metrics) and is_stale(metrics | {"score_code": "0" * 16})
    from fewstep.reporting.metrics import warnings_of

    assert warnings_of(metrics) == ["sampled in 2 steps, made for 1, 4"]
    out.unlink()
    other = spec.model_copy(update={"sample": sample.model_copy(update={"steps": 1})})
    (tmp_path / "score.json").write_text(dump(other))
    refused(score, "steps: these images have 2, but 1 is asked for")


def copied(assets: Path, folder: Path) -> Path:
    """An asset of its own, to be spoiled."""
    shutil.copytree(assets / "StableDiffusion3Pipeline", folder / "StableDiffusion3Pipeline")
    shutil.copytree(assets / "prompts", folder / "prompts")
    shutil.copy(assets / "prompts.json", folder)
    shutil.copy(assets / "StableDiffusion3Pipeline.json", folder)
    return folder / "StableDiffusion3Pipeline"


def no_part(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_2")


def damaged(folder: Path) -> None:
    with (folder / "vae/diffusion_pytorch_model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x77")


def pickle(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "vae/diffusion_pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()


def index(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("spoil", "recorded", "words"),
    [
        (
            damaged,
            False,
            ["vae/diffusion_pytorch_model.safetensors", "differs from", "fetch the asset again"],
        ),
        (no_part, True, ["part text_encoder_2 is missing"]),
        (no_part, False, ["text_encoder_2/", "is missing"]),
        (pickle, True, ["diffusion_pytorch_model.bin", "unpickled"]),
        (no_weights, True, ["diffusers cannot load it", "safetensors"]),
        (
            index(_class_name="FluxPipeline"),
            True,
            ["_class_name: FluxPipeline", "StableDiffusion3Pipeline"],
        ),
        (index(vae=["my_code", "Vae"]), True, ["vae: code of 'my_code' is not run"]),
    ],
)
def test_what_is_refused(assets, tmp_path, spoil, recorded, words):
    spoil(copied(assets, tmp_path))
    if recorded:
        write_record(tmp_path / "StableDiffusion3Pipeline")
    call = call_of(tmp_path, tmp_path / "out", spec_of(pipeline("StableDiffusion3Pipeline")))
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    refused(call, *words)


def test_records_of_other_assets_and_none(assets, tmp_path):
    call = call_of(assets, tmp_path, spec_of(pipeline("SanaSprintPipeline")))
    other = replaced(call, "--pipeline", str(assets / "ZImagePipeline.json"))
    refused(other, "records of ZImagePipeline, not of SanaSprintPipeline")
    refused(replaced(call, "--prompts"), "pass --prompts")


def test_a_second_time_that_is_not_there(assets, tmp_path):
    chosen = pipeline("ZImagePipeline", **RESTART)
    refused(call_of(assets, tmp_path, spec_of(chosen)), "no t_embedder_2.*")


def test_the_words_of_the_tokenizer_are_the_prompts():
    assert {word for prompt in PROMPTS for word in prompt.split()} <= set(tiny_diffusers.WORDS)
