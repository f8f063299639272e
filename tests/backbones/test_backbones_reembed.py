"""The smooth time embedding: fit, self-test, card, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("peft", reason="text to image needs the extra [t2i]")

from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, TimestepEmbedding
from sd3_files import SD3, SMOOTH, reembedded, save_teacher

from fewstep.backbones.model_file import load_model, load_network, save_model
from fewstep.backbones.reembedding import (
    EMBEDDER,
    embedded_times,
    even_times,
    fit_embedder,
    read_embedder,
    relative,
    self_test,
    sinusoids,
)
from fewstep.common.files import sha256
from fewstep.config.methods import Reembed

OPTIONS = Reembed(of="teacher", steps=300)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture(scope="module")
def smooth(teacher, tmp_path_factory):
    return reembedded(tmp_path_factory.mktemp("smooth"), teacher)


def test_sinusoids_are_those_of_sd3():
    """Of the timestep 1000 sigma, where sigma is 1 - t."""
    theirs = CombinedTimestepTextProjEmbeddings(embedding_dim=8, pooled_projection_dim=4).time_proj
    t = torch.tensor([0.0, 0.25, 1.0])
    assert torch.equal(sinusoids(256, 1000.0, t), theirs(torch.tensor([1000.0, 750.0, 0.0])))


def test_the_new_embedding_follows_the_old_one(teacher, smooth):
    old, new = (read_embedder(load_model(path)[0]) for path in (teacher, smooth))
    curve = embedded_times(old, 1000.0, even_times())
    off = embedded_times(new, 20.0, even_times()) - curve
    fit = load_model(smooth)[1]["reembed"]
    assert relative(off, curve) == pytest.approx(fit["pointwise"], rel=1e-3)
    averages = off.unfold(0, 201, 1).mean(-1)
    assert relative(averages, curve) == pytest.approx(fit["residual"], rel=1e-3)
    assert 0 < fit["residual"] < fit["pointwise"] < 0.05
    untouched = self_test(old, 20.0, curve)["residual"]
    assert untouched > 0.3, "the old weights on slow sinusoids are another curve"


def test_the_noise_of_the_old_embedding_is_not_followed():
    """Weights that are as random for fast sinusoids as a short training leaves them."""
    torch.manual_seed(0)
    old = TimestepEmbedding(256, 64).requires_grad_(False)
    first = old.linear_1
    speed = 1000 * 10_000 ** (-torch.arange(128) / 128)
    first.weight.mul_((1 / (1 + (speed / 8) ** 2) + 0.1).repeat(2))
    curve = embedded_times(old, 1000.0, even_times())
    fit = self_test(fit_embedder(old, 1000.0, 20.0, OPTIONS), 20.0, curve)
    assert fit["residual"] < 0.05 < fit["pointwise"], "the default limit takes it"


def test_all_else_stays(teacher, smooth):
    (old, old_card), (new, card) = load_model(teacher), load_model(smooth)
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"{EMBEDDER}linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}
    assert card["backbone"] == old_card["backbone"] | SMOOTH
    assert card["origin"] == {"sha256": sha256(teacher)} and card["method"] == "smooth"
    kept = ("status", "latents", "text", "loss", "code")
    assert [card[key] for key in kept] == [old_card[key] for key in kept]
    assert "steps" not in card and "seed" not in card
    net, _ = load_network(smooth, SD3.model_copy(update=SMOOTH))
    assert net.transformer.time_text_embed.time_proj.scale == 0.02


def test_the_tangent_is_the_derivative():
    """Of the embedding with respect to t: the dual numbers agree with autograd; a fast one is found out."""
    torch.manual_seed(0)
    new = TimestepEmbedding(256, 8).requires_grad_(False)
    curve = embedded_times(new, 20.0, even_times())
    slow, fast = (self_test(new, scale, curve)["tangents"] for scale in (20.0, 1000.0))
    assert max(slow.values()) < 0.05 < 1 < max(fast.values())
    t = torch.tensor([0.3])
    rows = torch.autograd.functional.jacobian(lambda t: embedded_times(new, 20.0, t)[0], t)[:, 0]
    difference = (embedded_times(new, 20.0, t + 0.01) - embedded_times(new, 20.0, t - 0.01))[0] / 0.02
    assert slow["0.3"] == pytest.approx(float((rows - difference).norm() / difference.norm()), rel=1e-2)


def test_the_fit_belongs_to_its_seed(teacher, smooth, tmp_path):
    again = reembedded(tmp_path, teacher)
    assert again.read_bytes() == smooth.read_bytes()
    old = read_embedder(load_model(teacher)[0])
    first, other = (
        fit_embedder(old, 1000.0, 20.0, OPTIONS.model_copy(update={"steps": 3, "seed": seed}))
        for seed in (0, 1)
    )
    assert not torch.equal(first.linear_1.weight, other.linear_1.weight)


def test_half_precision_stays_half(teacher, tmp_path):
    tensors, card = load_model(teacher)
    half = {name: value.bfloat16() for name, value in tensors.items()}
    save_model(tmp_path / "half.safetensors", half, SD3, card)
    made, _ = load_model(reembedded(tmp_path, tmp_path / "half.safetensors", steps=50, limit=1.0))
    assert {value.dtype for value in made.values()} == {torch.bfloat16}


def test_refusals(teacher, smooth, tmp_path):
    with pytest.raises(ValueError, match=r"teacher.safetensors: reembed.limit: .* residual .* above 0.001"):
        reembedded(tmp_path, teacher, limit=0.001)
    with pytest.raises(ValueError, match=r"reembed.tangent_limit: .* above 1e-06"):
        reembedded(tmp_path, teacher, tangent_limit=1e-6)
    tensors, card = load_model(teacher)
    other = tmp_path / "other.safetensors"
    save_model(other, tensors, SD3.model_copy(update={"context": 40}), card)
    with pytest.raises(ValueError, match=r"other.safetensors: backbone differs .* context 40 there, 32 in"):
        reembedded(tmp_path, other)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(teacher.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"damaged.safetensors"):
        reembedded(tmp_path, damaged)
    assert not (tmp_path / "smooth.safetensors").exists()


def test_the_card_is_plain_json(smooth):
    fit = load_model(smooth)[1]["reembed"]
    assert json.loads(json.dumps(fit)) == fit and fit["tangents"].keys() == {
        "0.1",
        "0.3",
        "0.5",
        "0.7",
        "0.9",
    }
