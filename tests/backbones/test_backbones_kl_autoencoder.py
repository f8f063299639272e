"""diffusers' AutoencoderKL with the calls of the demo's convolutional autoencoder."""

from __future__ import annotations

import pytest
import torch

from fewstep.backbones import build
from fewstep.backbones.model_file import save_model
from fewstep.config.backbones import KlAutoencoder
from fewstep.config.settings import Tokenizer, Weights
from fewstep.data.tokenizers import open_tokenizer

SPEC = KlAutoencoder(
    kind="kl-autoencoder", shape=[3, 16, 8], latent=5, widths=[8, 16, 16], blocks=1, groups=4
)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build(SPEC)


def test_calls(net):
    x = torch.rand(2, 3, 16, 8) * 2 - 1
    reconstruction, latent = net(x)
    assert latent.shape == (2, 5, 4, 2) and reconstruction.shape == x.shape
    assert torch.equal(latent, net.encode(x)) and torch.equal(reconstruction, net.decode(latent))
    noise = torch.randn_like(latent)
    noisy, same = net(x, noise)
    assert torch.equal(same, latent) and torch.equal(noisy, net.decode(latent + noise))


def test_it_is_diffusers_own_whose_posterior_has_no_width(net):
    x = torch.rand(2, 3, 16, 8) * 2 - 1
    posterior = net.vae.encode(x).latent_dist
    assert torch.equal(posterior.mean, net.encode(x))
    torch.testing.assert_close(posterior.sample(), posterior.mean, atol=1e-5, rtol=0)
    assert torch.equal(net.vae.decode(posterior.mean).sample, net.decode(posterior.mean))
    assert all(name.startswith("vae.") for name in net.state_dict())
    assert not any("quant_conv" in name for name in net.state_dict())


def test_training_reaches_every_weight(net):
    x = torch.rand(2, 3, 16, 8) * 2 - 1
    reconstruction, latent = net(x, torch.zeros(2, 5, 4, 2))
    (reconstruction.square().mean() + latent.square().mean()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in net.parameters())


def test_as_a_tokenizer(net, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, net.state_dict(), SPEC, {})
    tokenizer = Tokenizer(
        kind="autoencoder", shape=[5, 4, 2], weights=Weights(method="ae"), statistics="computed"
    )
    codec = open_tokenizer(tokenizer, path, SPEC)
    x = torch.rand(2, 3, 16, 8) * 2 - 1
    latents = codec.encode(x, range(2))
    torch.testing.assert_close(latents, net.eval().encode(x))
    torch.testing.assert_close(codec.decode(latents), net.decode(latents).clamp(-1, 1))


def test_meta_needs_no_memory():
    with torch.device("meta"):
        assert all(weight.is_meta for weight in build(SPEC).parameters())
