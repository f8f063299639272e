"""The layers' closed-form facts: positions, times, norms."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.backbones.layers import Norm, RotaryTable, SwiGLU, TimeEmbedding, rotate, sincos_table


def turned(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return rotate(x, RotaryTable(rows, columns, x.shape[-1]).double()())


def test_rotation_keeps_the_norm_of_adjacent_pairs():
    x = torch.randn(2, 3, 20, 24, dtype=torch.float64)
    found = turned(x, 5, 4)
    before, after = (v.unflatten(-1, (12, 2)).norm(dim=-1) for v in (x, found))
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    assert torch.equal(found[:, :, 0], x[:, :, 0])


def test_rotary_scores_depend_on_the_displacement_alone():
    rows, columns = 5, 4
    q, k = torch.randn(2, 24, dtype=torch.float64)
    everywhere = torch.stack([q, k])[:, None].expand(2, rows * columns, 24)
    q, k = turned(everywhere, rows, columns)
    scores = (q @ k.T).reshape(rows, columns, rows, columns)
    torch.testing.assert_close(scores[0, 1, 2, 2], scores[2, 2, 4, 3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[3, 3, 0, 0], scores[4, 3, 1, 0], rtol=1e-5, atol=1e-5)
    assert (scores[0, 1, 2, 2] - scores[0, 1, 2, 3]).abs() > 1e-3
    assert (scores[0, 1, 2, 2] - scores[0, 1, 3, 2]).abs() > 1e-3


def test_rotary_table_at_xl():
    rope = RotaryTable(16, 16, 72)
    assert rope.freqs_cos.shape == (256, 72) and rope.freqs_cos.dtype == torch.float32
    token = 16 * 3 + 7
    for pair, frequency in ((0, 1.0), (1, 10000 ** (-2 / 36)), (17, 10000 ** (-34 / 36))):
        for start, position in ((0, 3), (36, 7)):
            for dimension in (start + 2 * pair, start + 2 * pair + 1):
                angle = position * frequency
                assert rope.freqs_cos[token, dimension].item() == pytest.approx(math.cos(angle), abs=1e-6)
                assert rope.freqs_sin[token, dimension].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_rotation_direction():
    x = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([math.cos(1), math.sin(1), 0, 0], dtype=torch.float64)
    torch.testing.assert_close(turned(x, 2, 1)[1], expected, rtol=1e-6, atol=1e-6)


def test_sincos_table_codes_the_column_first():
    table = sincos_table(3, 5, 32)[0]
    assert table.shape == (15, 32)
    grid = table.reshape(3, 5, 32)
    assert torch.equal(grid[0, :, :16], grid[2, :, :16])
    assert torch.equal(grid[:, 0, 16:], grid[:, 4, 16:])
    for half, position in ((grid[1, 4, :16], 4), (grid[1, 4, 16:], 1)):
        for j in (0, 3, 7):
            angle = position * 10000 ** (-j / 8)
            assert half[j].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert half[8 + j].item() == pytest.approx(math.cos(angle), abs=1e-6)
    torch.testing.assert_close(table.square().sum(-1), torch.full((15,), 16.0))
    assert len(table.unique(dim=0)) == 15


def test_time_features_are_cosines_then_sines():
    embedding = TimeEmbedding(8, 256, 1.0, 1e4)
    features = embedding.features(torch.tensor([0.0, 0.25, 1.0]), torch.float64)
    assert features.shape == (3, 256)
    for row, t in enumerate((0.0, 0.25, 1.0)):
        for j in (0, 1, 64, 127):
            angle = t * 10000 ** (-j / 128)
            assert features[row, j].item() == pytest.approx(math.cos(angle), abs=1e-12)
            assert features[row, 128 + j].item() == pytest.approx(math.sin(angle), abs=1e-12)


def test_time_scale_and_period_span_the_frequencies():
    features = TimeEmbedding(8, 32, 8.0, 100.0).features(torch.tensor([0.1]), torch.float64)[0]
    assert torch.atan2(features[16], features[0]).item() == pytest.approx(0.8)
    assert torch.atan2(features[31], features[15]).item() == pytest.approx(0.8 * 100 ** (-15 / 16))
    with pytest.raises(ValueError, match="must be even"):
        TimeEmbedding(8, 31, 1.0, 1e4)


def test_times_are_not_rounded_to_the_weights():
    half = TimeEmbedding(8, 32, 1000.0, 1e4).bfloat16()
    near = torch.tensor([0.5, 0.5 + 2.0**-12])
    assert not torch.equal(*half(near))


def test_rms_norm():
    norm = Norm("rms", 6)
    x = 3 * torch.randn(5, 6)
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (6,), eps=1e-6))
    assert norm(torch.zeros(1, 6)).isfinite().all()
    half = norm.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16


def test_swiglu_gates_with_the_first_half():
    layer = SwiGLU(4, 3)
    x = torch.randn(2, 4)
    both = x @ layer.w12.weight.T + layer.w12.bias
    gate, value = both[:, :3], both[:, 3:]
    expected = (gate * gate.sigmoid() * value) @ layer.w3.weight.T + layer.w3.bias
    torch.testing.assert_close(layer(x), expected)
