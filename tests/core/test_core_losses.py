from __future__ import annotations

import pytest
import torch

from fewstep.core.losses import adaptive, consistency_residual, follow_residual, mean_square, velocity_loss
from fewstep.methods.cd.params import CDParams


def test_mean_square_is_per_sample_and_at_least_float32():
    a = torch.tensor([[1.0, 3.0], [0.0, 2.0]]).reshape(2, 2, 1, 1)
    assert mean_square(a, torch.zeros_like(a)).tolist() == [5, 2]
    assert mean_square(a.bfloat16(), a.bfloat16()).dtype == torch.float32
    assert mean_square(a.double(), a).dtype == torch.float64


def test_adaptive_weight_has_a_stopped_denominator():
    e = torch.tensor([0.0, 1.0, 4.0], requires_grad=True)
    loss = adaptive(e, 0.5, 1e-3)
    weight = (e.detach() + 1e-3).rsqrt()
    torch.testing.assert_close(loss.detach(), e.detach() * weight)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), e)[0], weight)
    assert torch.equal(adaptive(e, 0.0, 1e-3), e)


def test_velocity_loss_with_cosine():
    v = torch.tensor([[1.0, 0.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    turned = torch.tensor([[0.0, 2.0], [6.0, 8.0]]).reshape(2, 2, 1, 1)
    assert velocity_loss(turned, v, cosine=False).tolist() == pytest.approx([2.5, 12.5])
    assert velocity_loss(turned, v, cosine=True).tolist() == pytest.approx([3.5, 12.5])


def test_the_cosine_is_over_the_channels_of_each_pixel():
    """Two pixels, aligned in one and orthogonal in the other: (0 + 1) / 2, whatever their lengths."""
    v = torch.tensor([[[3.0, 1.0]], [[4.0, 0.0]]])[None]
    F = torch.tensor([[[30.0, 0.0]], [[40.0, 7.0]]])[None]
    difference = velocity_loss(F, v, cosine=True) - velocity_loss(F, v, cosine=False)
    assert difference.tolist() == pytest.approx([0.5], abs=1e-4)


def test_residual_carries_no_gradient():
    F = torch.ones(2, 1, 1, 1, requires_grad=True)
    g = consistency_residual(F, torch.full_like(F, 0.25), torch.full_like(F, 0.5))
    assert not g.requires_grad and g.flatten().tolist() == [0.25, 0.25]


def test_regression_moves_along_the_clamped_weighted_residual():
    """With p = 0 the gradient of the loss is 2 w clamp(g) / n."""
    F = torch.tensor([1.0, -2.0, 3.0]).reshape(1, 3, 1, 1).requires_grad_()
    g = torch.tensor([0.5, -4.0, 4.0]).reshape(1, 3, 1, 1)
    terms = CDParams(norm_power=0.0)
    loss = follow_residual(F, g, torch.tensor([0.3]), terms)
    (gradient,) = torch.autograd.grad(loss.sum(), F)
    torch.testing.assert_close(gradient.flatten(), 0.2 * torch.tensor([0.5, -1.0, 1.0]))
