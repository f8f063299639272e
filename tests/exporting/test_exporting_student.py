"""Students in plain diffusers, and from their two files, against our own network and sampler."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="text to image needs the extra [t2i]")
pytest.importorskip("peft", reason="text to image needs the extra [t2i]")

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sd3_files import LORA, SD3, exported, save_student

from fewstep.backbones import use_text
from fewstep.backbones.model_file import load_model, load_network, save_model
from fewstep.common.files import sha256
from fewstep.config.backbones import Lora
from fewstep.config.settings import Sampler
from fewstep.data.text_store import Text
from fewstep.evaluation.samplers import integrate
from fewstep.exporting.lora_files import load_student, read_exported

PROMPT = "a red cat"
NOISE = torch.randn(1, *SD3.shape, generator=torch.Generator().manual_seed(3))
SEED = 5


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["lora_adapter_metadata"])


def user_s_pipeline(base, export):
    """The lines of the README, with diffusers alone."""
    pipe = StableDiffusion3Pipeline.from_pretrained(base)
    pipe.load_lora_weights(export)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe, steps):
    """Latents of the user's call; the scheduler draws from torch's generator."""
    torch.manual_seed(SEED)
    call = {"sigmas": [1 - i / steps for i in range(steps)], "guidance_scale": 1.0, "max_sequence_length": 6}
    return pipe(PROMPT, **call, latents=NOISE, output_type="latent").images


def ours(net, pipe, steps):
    """The same by our sampler, with the scheduler's noise."""
    context, _, pooled, _ = pipe.encode_prompt(PROMPT, None, None, max_sequence_length=6)
    use_text(net, lambda y: Text(context[y], pooled[y]))
    torch.manual_seed(SEED)
    noises = [torch.randn(NOISE.shape) for _ in range(steps)]

    def field(x, t, s):
        return net(x, torch.tensor([t]), torch.tensor([s]), torch.tensor([0]))

    return integrate(Sampler(kind="cm"), field, NOISE, steps, noises.__getitem__)


def inputs(rows=3):
    """Arguments of a transformer, and timesteps of time and target."""
    draws = torch.Generator().manual_seed(1)
    times = 1000 * torch.rand(rows, 2, generator=draws)
    x = torch.randn(rows, *SD3.shape, generator=draws)
    context, pooled = (
        torch.randn(rows, *shape, generator=draws) for shape in ((8, SD3.context), (SD3.pooled,))
    )
    return {"hidden_states": x, "encoder_hidden_states": context, "pooled_projections": pooled}, times


@torch.no_grad()
def output(transformer, timestep):
    return transformer(**inputs()[0], timestep=timestep, return_dict=False)[0]


@pytest.fixture(scope="module")
def one_file(models):
    return user_s_pipeline(models.pipeline, models.files.one.parent)


@pytest.fixture(scope="module")
def student(models):
    return load_network(models.student, models.student_spec, models.teacher)[0]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_one_file_in_plain_diffusers_is_our_sampler(one_file, student, steps):
    found = theirs(one_file, steps)
    assert (found - ours(student, one_file, steps)).abs().max() < 1e-5
    base = StableDiffusion3Pipeline.from_pretrained(one_file.config._name_or_path)
    base.scheduler = one_file.scheduler
    assert (found - theirs(base, steps)).abs().max() > 0.1, "the student is another than its base"


def test_adapters_off_are_the_base(models, one_file):
    base = SD3Transformer2DModel.from_pretrained(models.pipeline, subfolder="transformer")
    now = inputs()[1][:, 0]
    one_file.transformer.disable_lora()
    assert torch.equal(output(one_file.transformer, now), output(base, now))
    one_file.transformer.enable_lora()
    assert not torch.equal(output(one_file.transformer, now), output(base, now))


def test_alpha_and_rank_survive(models, one_file):
    """Without metadata peft takes the rank for alpha."""
    layer = one_file.transformer.transformer_blocks[0].attn.to_q
    assert (layer.r["default_0"], layer.lora_alpha["default_0"], layer.scaling["default_0"]) == (8, 32, 4)
    for path, bias in ((models.files.lora, False), (models.files.one, True)):
        about = metadata(path)
        assert (about["transformer.r"], about["transformer.lora_alpha"]) == (8, 32)
        assert about["transformer.lora_bias"] is bias
    bare = models.folder / "bare"
    bare.mkdir(exist_ok=True)
    save_file(load_file(models.files.one), bare / models.files.one.name)
    pipe = user_s_pipeline(models.pipeline, bare)
    assert pipe.transformer.transformer_blocks[0].attn.to_q.scaling["default_0"] == 1


def two_files(models, files):
    transformer = SD3Transformer2DModel.from_pretrained(models.pipeline, subfolder="transformer")
    return transformer, load_student(transformer, files.lora, files.target)


@pytest.mark.parametrize("smooth", [False, True])
def test_two_files_are_the_student(models, smooth):
    """To the last bit, for any target time, with a time that is embedded anew too."""
    if smooth:
        net, _ = load_network(models.smooth_student, models.smooth_spec, models.smooth)
        transformer, card = two_files(models, models.smooth_files)
    else:
        net, _ = load_network(models.student, models.student_spec, models.teacher)
        transformer, card = two_files(models, models.files)
    times = inputs()[1]
    assert torch.equal(output(transformer, times), output(net.transformer, times))
    assert not torch.equal(output(transformer, times), output(transformer, times.flip(0)))
    assert card["time_scale"] == (20.0 if smooth else 1000.0)
    assert not any(weight.requires_grad for weight in transformer.parameters())


def test_two_files_take_the_dtype_of_the_base(models):
    transformer = SD3Transformer2DModel.from_pretrained(models.pipeline, subfolder="transformer").bfloat16()
    load_student(transformer, models.smooth_files.lora, models.smooth_files.target)
    arguments, times = inputs()
    half = {name: value.bfloat16() for name, value in arguments.items()}
    exact = output(two_files(models, models.smooth_files)[0], times)
    with torch.no_grad():
        (found,) = transformer(**half, timestep=times, return_dict=False)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_smooth_time_is_fitted_as_the_card_says(models, steps):
    """In the base's own transformer the embedding is off by what the card says, and the samples by little."""
    pipe = user_s_pipeline(models.pipeline, models.smooth_files.one.parent)
    net, _ = load_network(models.smooth_student, models.smooth_spec, models.smooth)
    card = metadata(models.smooth_files.one)["fewstep"]["time"]
    time = torch.arange(steps) / steps
    pooled = torch.zeros(steps, SD3.pooled)
    with torch.no_grad():
        pairs = 1000 * (1 - torch.stack([time, torch.ones(steps)], 1))
        wanted = net.transformer.time_text_embed(pairs, pooled)
        found = pipe.transformer.time_text_embed(pairs[:, 0], pooled)
        none = torch.zeros(1, SD3.pooled)
        curve_times = 1000 * (1 - torch.stack([torch.linspace(0, 1, 401), torch.ones(401)], 1))
        text = net.transformer.time_text_embed.text_embedder(none)
        curve = net.transformer.time_text_embed(curve_times, none.expand(401, -1)) - text
        off = pipe.transformer.time_text_embed(curve_times[:, 0], none.expand(401, -1)) - text - curve
    size = curve.square().mean().sqrt()
    worst = ((found - wanted).square().mean(1).sqrt() / size).max()
    assert worst == pytest.approx(card["at_steps"][str(steps)], rel=0.05, abs=1e-6)
    assert off.square().mean().sqrt() / size == pytest.approx(card["residual"], rel=0.05)
    assert worst < 1e-3 < card["residual"] < 0.05
    expected = ours(net, pipe, steps)
    assert (theirs(pipe, steps) - expected).abs().max() < 10 * card["at_steps"][
        str(steps)
    ] * expected.abs().max()


def test_a_student_without_adapters_of_the_time_embedding(models, tmp_path):
    """The one file needs them: of the second layer for the target, of both where time is embedded anew."""
    lora = Lora(rank=12, targets=["attn.to_q"])
    for base, origin in ((models.teacher, None), (models.smooth, models.teacher)):
        path, spec = save_student(tmp_path / "student.safetensors", base, lora)
        files = exported(tmp_path, path, spec, base, origin)
        pipe = user_s_pipeline(models.pipeline, files.one.parent)
        net, _ = load_network(path, spec, base)
        assert (theirs(pipe, 2) - ours(net, pipe, 2)).abs().max() < (1e-5 if origin is None else 1e-2)
        assert "attn.to_q" in metadata(files.one)["transformer.target_modules"]


def test_the_card(models):
    for path, files in ((models.files.lora, 2), (models.files.target, 2), (models.files.one, 1)):
        card = metadata(path)["fewstep"]
        assert (card["method"], card["variant"], card["seed"], card["files"]) == ("decm", "base", 0, files)
        assert card["base"]["sha256"] == sha256(models.teacher)
        assert card["student"] == sha256(models.student)
        assert card["guidance"]["scale"] == 4.0 and card["licence"] == "CC BY-SA"
        assert card["lora"]["rank"] == 8
    assert "guidance_scale=1.0" in metadata(models.files.one)["fewstep"]["use"]
    assert metadata(models.files.one)["fewstep"]["time"] is None
    assert metadata(models.smooth_files.one)["fewstep"]["base"]["sha256"] == sha256(models.teacher)


def test_exports_are_the_same_again(models, tmp_path, capsys):
    again = exported(tmp_path, models.smooth_student, models.smooth_spec, models.smooth, models.teacher)
    for path, first in ((again.lora, models.smooth_files.lora), (again.one, models.smooth_files.one)):
        assert path.read_bytes() == first.read_bytes()
    assert "warning: guidance of scale 4 is inside" in capsys.readouterr().out


def test_files_that_do_not_belong_together(models, tmp_path):
    other, spec = save_student(tmp_path / "other.safetensors", models.teacher, seed=4)
    with pytest.raises(ValueError, match=r"smooth.safetensors: has sha256 \w+, but the base of .*student"):
        exported(tmp_path, models.student, models.student_spec, models.smooth)
    with pytest.raises(ValueError, match=r"smooth.safetensors: .*--origin"):
        exported(tmp_path, models.smooth_student, models.smooth_spec, models.smooth)
    with pytest.raises(ValueError, match=r"other.safetensors: has sha256 .* but the origin of .*smooth"):
        exported(tmp_path, models.smooth_student, models.smooth_spec, models.smooth, other)
    with pytest.raises(ValueError, match=r"other.safetensors: backbone.*lora"):
        exported(tmp_path, other, spec.model_copy(update={"lora": Lora(rank=4)}), models.teacher)
    with pytest.raises(ValueError, match=r"teacher.safetensors: backbone.lora: none"):
        exported(tmp_path, models.teacher, SD3, models.teacher)
    assert not list(tmp_path.glob("*lora*")) and not (tmp_path / "one-file").exists()
    transformer = SD3Transformer2DModel.from_pretrained(models.pipeline, subfolder="transformer")
    files = exported(tmp_path, other, spec, models.teacher)
    with pytest.raises(ValueError, match=r"target_embedder.*another student"):
        load_student(transformer, models.files.lora, files.target)
    with pytest.raises(ValueError, match=r"one-file.*in one file"):
        load_student(transformer, models.files.one, models.files.target)


def test_a_base_that_nobody_has(models, tmp_path):
    """A teacher that was trained on after its time was embedded anew has weights of its own."""
    tensors, card = load_model(models.smooth)
    base = tmp_path / "trained-on.safetensors"
    spec = SD3.model_copy(update={"time_scale": 20.0})
    save_model(base, tensors, spec, {key: card[key] for key in card if key not in ("origin", "backbone")})
    path, student = save_student(tmp_path / "student.safetensors", base)
    with pytest.raises(ValueError, match=r"trained-on.safetensors: origin: not in its card"):
        exported(tmp_path, path, student, base, models.teacher)


def test_a_time_embedding_that_is_too_far_off(models, tmp_path):
    with pytest.raises(ValueError, match=r"limit: adapters of rank 16 .* above 1e-07; train with a larger"):
        exported(tmp_path, models.smooth_student, models.smooth_spec, models.smooth, models.teacher, 1e-7)
    assert not list(tmp_path.glob("**/*lora*"))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Lora(rank=4, alpha=32.0), "lora.rank: the adapters have 8, not 4"),
        (Lora(rank=8), "lora.alpha: the adapters have 32.0, not 8.0"),
        (
            Lora(rank=8, alpha=32.0, targets=["attn.to_q"]),
            "lora.targets: the adapters have .*, not .'attn.to_q'.",
        ),
    ],
)
def test_files_of_other_adapters(models, wanted, message):
    transformer = SD3Transformer2DModel.from_pretrained(models.pipeline, subfolder="transformer")
    with pytest.raises(ValueError, match=message):
        load_student(transformer, models.files.lora, models.files.target, wanted)
    load_student(transformer, models.files.lora, models.files.target, LORA)


def test_a_file_without_metadata(models, tmp_path):
    bare, foreign = tmp_path / "bare.safetensors", tmp_path / "foreign.safetensors"
    tensors = load_file(models.files.lora)
    save_file(tensors, bare, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"bare.safetensors: no lora_adapter_metadata in the header"):
        read_exported(bare)
    save_file(tensors, foreign, metadata={"lora_adapter_metadata": json.dumps({"transformer.r": 8})})
    with pytest.raises(ValueError, match=r"foreign.safetensors: fewstep: not in its metadata"):
        read_exported(foreign)
    bare.write_bytes(bare.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"bare.safetensors: not a safetensors file"):
        read_exported(bare)
