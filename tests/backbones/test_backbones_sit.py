"""SiT and TiT: published names and shapes, and adopted networks against forwards written out here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fewstep.backbones import build
from fewstep.backbones.import_weights import import_weights
from fewstep.bench.estimate import parameters
from fewstep.config.backbones import LightningDiT

XL = {"shape": [4, 32, 32], "classes": 1000, "depth": 28, "width": 1152, "heads": 16, "patch": 2}
SIT = {"norm": "layer", "mlp": "gelu", "rope": False, "target_time": False}
TIT = {"norm": "rms-plain", "qk_norm": True, "target_time": False}
TINY = {"shape": [4, 6, 6], "classes": 5, "depth": 2, "width": 24, "heads": 2, "patch": 2}
PATH = Path("published.pt")


def table(family: str, depth=28, width=1152, tokens=256, classes=1000, channels=4, outputs=8) -> dict:
    """Names and shapes of the published state dicts; ``outputs`` counts a learned variance."""
    shapes = {
        "pos_embed": (1, tokens, width),
        "x_embedder.proj.weight": (width, channels, 2, 2),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.2.weight": (width, width),
        "y_embedder.embedding_table.weight": (classes + 1, width),
        "final_layer.linear.weight": (4 * outputs, width),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
    }
    for block in (f"blocks.{i}." for i in range(depth)):
        shapes |= {
            f"{block}attn.qkv.weight": (3 * width, width),
            f"{block}attn.proj.weight": (width, width),
            f"{block}adaLN_modulation.1.weight": (6 * width, width),
        }
        if family == "sit":
            shapes |= {
                f"{block}mlp.fc1.weight": (4 * width, width),
                f"{block}mlp.fc2.weight": (width, 4 * width),
            }
        else:
            hidden = 8 * width // 3
            shapes |= {
                f"{block}mlp.w12.weight": (2 * hidden, width),
                f"{block}mlp.w3.weight": (width, hidden),
            }
    shapes |= {
        name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items() if name.endswith("weight")
    }
    del shapes["y_embedder.embedding_table.bias"]
    if family == "tit":
        shapes |= {f"feat_rope.freqs_{part}": (tokens, 72) for part in ("cos", "sin")}
    return shapes


@pytest.mark.parametrize(
    ("family", "flags", "tensors", "trainable"),
    [("sit", SIT, 292, 674_816_272), ("tit", TIT, 294, 674_859_280)],
)
def test_xl_has_the_published_names_and_shapes(family, flags, tensors, trainable):
    one = LightningDiT(**XL, **flags)
    with torch.device("meta"):
        net = build(one)
        assert net(torch.empty(2, 4, 32, 32), torch.empty(2), None, torch.zeros(2).long()).shape[1] == 4
    state = net.state_dict()
    assert len(state) == tensors
    assert {name: tuple(value.shape) for name, value in state.items()} == table(family, outputs=4)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trainable
    assert parameters(one) == trainable + 256 * 1152
    shapes = table("sit").values()  # with the learned variance and the fixed positions
    assert sum(torch.Size(shape).numel() for shape in shapes) == 675_129_632


def test_layer_norm_and_query_key_norm_exclude_each_other():
    with pytest.raises(ValueError, match="qk_norm needs norm: rms"):
        LightningDiT(**TINY, **SIT, qk_norm=True)


def published(family: str, outputs: int) -> dict[str, torch.Tensor]:
    """Random weights under the published names."""
    draws = torch.Generator().manual_seed(2)
    shapes = table(family, depth=2, width=24, tokens=9, classes=5, outputs=outputs)
    weights = {name: 0.2 * torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    if family == "tit":
        angles = rotary_angles(3, 12)
        weights |= {"feat_rope.freqs_cos": angles.cos(), "feat_rope.freqs_sin": angles.sin()}
    return weights


def rotary_angles(side: int, head: int) -> torch.Tensor:
    """(side * side, head): pairs turn with the row in the first half, with the column in the second."""
    half = head // 2
    rates = [10000.0 ** (-2 * (i // 2) / half) for i in range(half)]
    return torch.tensor([[p * f for p in (r, c) for f in rates] for r in range(side) for c in range(side)])


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    turned = torch.empty_like(x)
    turned[..., 0::2], turned[..., 1::2] = -x[..., 1::2], x[..., 0::2]
    return x * cos + turned * sin


def forward(w: dict, family: str, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The published forward, all outputs (B, outputs, H, W), in the convention of its authors."""
    width, heads, side = 24, 2, 3

    def norm(h):
        if family == "sit":
            return F.layer_norm(h, h.shape[-1:], eps=1e-6)
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def linear(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def split(name, h, count):
        return (part[:, None] for part in linear(name, F.silu(h)).chunk(count, dim=-1))

    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2)
    h = h.flatten(2).mT + w["pos_embed"]
    angles = t[:, None] * torch.tensor([10000.0 ** (-j / 128) for j in range(128)], dtype=t.dtype)
    c = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    c = linear("t_embedder.mlp.2", F.silu(c)) + w["y_embedder.embedding_table.weight"][y]
    for i in range(2):
        block = f"blocks.{i}."
        shift1, scale1, gate1, shift2, scale2, gate2 = split(f"{block}adaLN_modulation.1", c, 6)
        qkv = linear(f"{block}attn.qkv", norm(h) * (1 + scale1) + shift1)
        q, k, v = qkv.view(len(x), 9, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        if family == "tit":
            table = w["feat_rope.freqs_cos"], w["feat_rope.freqs_sin"]
            q, k = rotate(norm(q), *table), rotate(norm(k), *table)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / (width // heads) ** 0.5
        mixed = torch.einsum("bhij,bhjd->bihd", scores.softmax(-1), v).reshape(len(x), 9, width)
        h = h + gate1 * linear(f"{block}attn.proj", mixed)
        inner = norm(h) * (1 + scale2) + shift2
        if family == "sit":
            inner = linear(f"{block}mlp.fc1", inner)
            cubic = (2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)
            inner = linear(f"{block}mlp.fc2", 0.5 * inner * (1 + cubic.tanh()))
        else:
            a, b = linear(f"{block}mlp.w12", inner).chunk(2, dim=-1)
            inner = linear(f"{block}mlp.w3", a * a.sigmoid() * b)
        h = h + gate2 * inner
    shift, scale = split("final_layer.adaLN_modulation.1", c, 2)
    patches = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    return torch.einsum("nhwpqc->nchpwq", patches.view(len(x), side, side, 2, 2, -1)).reshape(
        len(x), -1, 6, 6
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("family", "outputs", "flags"), [("sit", 8, SIT), ("sit", 4, SIT), ("tit", 4, TIT)])
def test_an_adopted_network_is_the_published_one_in_our_convention(family, outputs, flags, reverse):
    weights = published(family, outputs)
    net, converted = import_weights(weights, LightningDiT(**TINY, **flags), PATH, reverse)
    draws = torch.Generator().manual_seed(3)
    x, t = torch.randn(7, 4, 6, 6, generator=draws).double(), torch.linspace(0, 1, 7).double()
    y = torch.arange(7) % 6
    theirs = {name: value.double() for name, value in weights.items()}
    expected = forward(theirs, family, x, 1 - t if reverse else t, y)[:, :4]
    velocity = net.double()(x, t, None, y)
    assert expected.std() > 0.1
    # the rotated weights are stored in float32
    torch.testing.assert_close(velocity, -expected if reverse else expected, rtol=0, atol=2e-6)
    words = ["outputs of a learned variance dropped"] * (outputs == 8) + [
        "time and velocity reversed"
    ] * reverse
    assert converted == words


def test_reversing_turns_the_target_time_too():
    """A network that knows both times: theirs at 1 - t and 1 - s is minus ours at t and s."""
    one = LightningDiT(**TINY, target_time=True, outputs=2)
    torch.manual_seed(1)
    weights = {name: 0.2 * torch.randn_like(value) for name, value in build(one).state_dict().items()}
    theirs, _ = import_weights(weights, one, PATH)
    ours, _ = import_weights(weights, one, PATH, reverse=True)
    x, y = torch.randn(3, 4, 6, 6).double(), torch.arange(3)
    t, s = torch.rand(2, 3).double()
    pairs = zip(ours.double()(x, t, s, y), theirs.double()(x, 1 - t, 1 - s, y), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, -other, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("family", "flags", "wrong", "remedy"),
    [
        ("sit", SIT, {"norm": "rms"}, "set norm: rms-plain or layer"),
        ("sit", SIT, {"mlp": "swiglu"}, "set mlp: gelu"),
        ("sit", SIT, {"rope": True}, "set rope: false"),
        ("tit", TIT, {"norm": "rms"}, "set norm: rms-plain or layer"),
        ("tit", TIT, {"mlp": "gelu"}, "set mlp: swiglu"),
        ("tit", TIT, {"rope": False}, "set rope: true"),
    ],
)
def test_a_wrong_flag_names_the_setting(family, flags, wrong, remedy):
    with pytest.raises(ValueError, match=f"published.pt: has an? .*{remedy}|published.pt: has no .*{remedy}"):
        import_weights(published(family, 4), LightningDiT(**TINY, **flags | wrong), PATH)
