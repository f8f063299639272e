"""The demo's convolutional networks."""

from __future__ import annotations

import pytest
import torch

from fewstep.backbones import build
from fewstep.config.backbones import ConvAutoencoder, ConvClassifier


@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 12, 16]])
def test_autoencoder_halves_the_resolution(shape):
    net = build(ConvAutoencoder(kind="conv-autoencoder", shape=shape, width=16, latent=4))
    x = torch.randn(2, *shape)
    reconstruction, z = net(x)
    assert z.shape == (2, 4, shape[1] // 2, shape[2] // 2)
    assert reconstruction.shape == x.shape
    assert torch.equal(z, net.encode(x)) and torch.equal(reconstruction, net.decode(z))


def test_autoencoder_noise_reaches_the_decoder_alone():
    net = build(ConvAutoencoder(kind="conv-autoencoder", shape=[1, 8, 8], width=16, latent=4))
    x = torch.randn(2, 1, 8, 8)
    noise = 0.1 * torch.randn(2, 4, 4, 4)
    reconstruction, z = net(x, noise)
    assert torch.equal(z, net.encode(x))
    assert torch.equal(reconstruction, net.decode(z + noise))


def test_encoder_sees_its_neighbourhood():
    """One latent pixel depends on 4 x 4 image pixels: kernel 3, then kernel 2 with stride 2."""
    net = build(ConvAutoencoder(kind="conv-autoencoder", shape=[1, 12, 12], width=8, latent=2))
    x = torch.randn(1, 1, 12, 12, requires_grad=True)
    net.encode(x)[0, :, 2, 3].sum().backward()
    rows, columns = x.grad[0, 0].nonzero().unbind(-1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 6, 5, 8)


@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 12, 16]])
def test_classifier_shapes(shape):
    net = build(ConvClassifier(kind="conv-classifier", shape=shape, classes=10, features=24))
    x = torch.randn(2, *shape)
    features = net.features(x)
    assert features.shape == (2, 24)
    assert torch.equal(net(x), net.head(features))
    assert net(x).shape == (2, 10)
    assert features.min() > -0.3  # the lowest value of SiLU is -0.278


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divisible by 2"):
        build(ConvAutoencoder(kind="conv-autoencoder", shape=[1, 9, 8], width=8, latent=2))
    with pytest.raises(ValueError, match="divisible by 4"):
        build(ConvClassifier(kind="conv-classifier", shape=[1, 8, 6], classes=10, features=24))
