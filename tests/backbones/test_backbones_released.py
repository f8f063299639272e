"""Decoupled MeanFlow and improved MeanFlow: tiny files as their releases have them, adopted, against forwards
written out here in their authors' convention (noise at t = 1)."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F

from fewstep import adopt
from fewstep.backbones import build
from fewstep.backbones.import_weights import import_weights
from fewstep.backbones.model_file import load_network
from fewstep.bench.estimate import evaluations, operations, parameters
from fewstep.common.files import sha256
from fewstep.config import dump
from fewstep.config.backbones import Imf, LightningDiT
from fewstep.config.settings import Tokenizer
from fewstep.config.specs import AdoptSpec
from fewstep.core.jvp import value_and_tangent
from fewstep.methods import parameter_classes

WIDTH, HEADS, SIDE, CLASSES = 24, 2, 3, 5
DMF = LightningDiT(
    shape=[4, 6, 6],
    classes=CLASSES,
    depth=3,
    width=WIDTH,
    heads=HEADS,
    patch=2,
    norm="layer",
    mlp="gelu",
    rope=False,
    decoupled=2,
)
IMF = Imf(
    kind="imf",
    shape=[4, 6, 6],
    classes=CLASSES,
    depth=5,
    width=WIDTH,
    heads=HEADS,
    class_tokens=3,
    scale_tokens=2,
    interval_tokens=1,
    time_tokens=2,
    scale=8.0,
    interval=[0.38, 0.58],
)
HIDDEN = 8 * WIDTH // 3


def inputs():
    draws = torch.Generator().manual_seed(5)
    x = torch.randn(4, 4, 6, 6, generator=draws, dtype=torch.float64)
    t = torch.tensor([0.0, 0.3, 0.5, 0.9], dtype=torch.float64)
    s = torch.tensor([1.0, 0.7, 0.5, 1.0], dtype=torch.float64)
    return x, t, s, torch.tensor([0, 3, 5, 1])


def random(shapes):
    draws = torch.Generator().manual_seed(2)
    return {name: 0.3 * torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def dmf_weights():
    shapes = {
        "pos_embed": (1, SIDE**2, WIDTH),
        "x_embedder.proj.weight": (WIDTH, 4, 2, 2),
        "t_embedder.mlp.0.weight": (WIDTH, 256),
        "t_embedder.mlp.2.weight": (WIDTH, WIDTH),
        "y_embedder.embedding_table.weight": (CLASSES + 1, WIDTH),
        "final_layer.linear.weight": (16, WIDTH),
        "final_layer.adaLN_modulation.1.weight": (2 * WIDTH, WIDTH),
        "logvar_linear.weight": (1, 256),
    }
    for i in range(3):
        shapes |= {
            f"blocks.{i}.attn.qkv.weight": (3 * WIDTH, WIDTH),
            f"blocks.{i}.attn.proj.weight": (WIDTH, WIDTH),
            f"blocks.{i}.mlp.fc1.weight": (4 * WIDTH, WIDTH),
            f"blocks.{i}.mlp.fc2.weight": (WIDTH, 4 * WIDTH),
            f"blocks.{i}.adaLN_modulation.1.weight": (6 * WIDTH, WIDTH),
        }
    shapes |= {
        name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items() if name.endswith("weight")
    }
    del shapes["y_embedder.embedding_table.bias"]
    return random(shapes)


def imf_weights():
    """The names of the release for PyTorch: two heads of two blocks after three shared ones."""
    linear = {"x_embedder.proj": (WIDTH, 4, 2, 2)}
    for name in ("h", "omega", "cfg_t_start", "cfg_t_end"):
        linear |= {f"{name}_embedder.mlp.{i}._flax_linear": (WIDTH, n) for i, n in ((0, 256), (2, WIDTH))}
    heads = {f"{head}_final_layer.linear._flax_linear": (16, WIDTH) for head in "uv"}
    shapes = {f"{name}.weight": shape for name, shape in (linear | heads).items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in (linear | heads).items()}
    shapes |= {f"{head}_final_layer.norm.weight": (WIDTH,) for head in "uv"}
    shapes["y_embedder.embedding_table._flax_embedding.weight"] = (CLASSES + 1, WIDTH)
    for name, count in (("class", 3), ("omega", 2), ("t_min", 1), ("t_max", 1), ("time", 2)):
        shapes[f"{name}_tokens"] = (count, WIDTH)
    for part, count in (("shared_blocks", 3), ("u_heads", 2), ("v_heads", 2)):
        for block in (f"{part}.{i}" for i in range(count)):
            shapes |= {f"{block}.{norm}.weight": (WIDTH,) for norm in ("norm1", "norm2")}
            shapes |= {f"{block}.attn.{norm}.weight": (WIDTH // HEADS,) for norm in ("q_norm", "k_norm")}
            shapes |= {f"{block}.{gate}": (WIDTH,) for gate in ("attn_scale", "mlp_scale")}
            shapes |= {
                f"{block}.attn.{name}_proj._flax_linear.weight": (WIDTH, WIDTH)
                for name in ("q", "k", "v", "out")
            }
            shapes |= {f"{block}.mlp.{w}._flax_linear.weight": (HIDDEN, WIDTH) for w in ("w1", "w3")}
            shapes[f"{block}.mlp.w2._flax_linear.weight"] = (WIDTH, HIDDEN)
    return random({f"net.{name}": shape for name, shape in shapes.items()})


def sinusoids(t):
    angles = t[:, None] * torch.tensor([10000.0 ** (-j / 128) for j in range(128)], dtype=torch.float64)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def linear(w, name, h):
    y = h @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def patches(w, x):
    """(B, 9, width): the convolution, written as a product."""
    x = x.reshape(len(x), 4, SIDE, 2, SIDE, 2).permute(0, 2, 4, 1, 3, 5).reshape(len(x), SIDE**2, 16)
    return x @ w["x_embedder.proj.weight"].flatten(1).T + w["x_embedder.proj.bias"]


def image(tokens):
    """Channels last within a patch."""
    return torch.einsum("nhwpqc->nchpwq", tokens.reshape(len(tokens), SIDE, SIDE, 2, 2, 4)).reshape(
        len(tokens), 4, 6, 6
    )


def heads_of(h):
    return h.reshape(len(h), h.shape[1], HEADS, -1).transpose(1, 2)


def attend(q, k, v):
    mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)


def dmf_forward(w, x, t, r, y):
    w = {name: value.double() for name, value in w.items()}

    def told(time):
        h = linear(w, "t_embedder.mlp.0", sinusoids(time))
        h = linear(w, "t_embedder.mlp.2", F.silu(h)) + w["y_embedder.embedding_table.weight"][y]
        return F.silu(h)[:, None]

    def norm(h, shift, scale):
        mean = h.mean(-1, keepdim=True)
        return (h - mean) / ((h - mean).square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift

    h = patches(w, x) + w["pos_embed"]
    for i in range(3):
        c = told(t if i < 2 else r)
        b1, s1, g1, b2, s2, g2 = linear(w, f"blocks.{i}.adaLN_modulation.1", c).chunk(6, dim=-1)
        q, k, v = map(heads_of, linear(w, f"blocks.{i}.attn.qkv", norm(h, b1, s1)).chunk(3, dim=-1))
        h = h + g1 * linear(w, f"blocks.{i}.attn.proj", attend(q, k, v))
        inner = F.gelu(linear(w, f"blocks.{i}.mlp.fc1", norm(h, b2, s2)), approximate="tanh")
        h = h + g2 * linear(w, f"blocks.{i}.mlp.fc2", inner)
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", told(r)).chunk(2, dim=-1)
    return image(linear(w, "final_layer.linear", norm(h, shift, scale)))


def imf_forward(w, x, length, omega, low, high, y):
    """u, with the guidance scale omega and the interval from low to high."""
    w = {
        name.removeprefix("net.").replace("_flax_linear.", "").replace("_flax_embedding.", ""): value.double()
        for name, value in w.items()
    }

    def embedded(name, number):
        h = F.silu(linear(w, f"{name}_embedder.mlp.0", sinusoids(number)))
        return linear(w, f"{name}_embedder.mlp.2", h)[:, None]

    def norm(name, h):
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    def turn(h):
        """Pairs (a, b) of neighbours as complex numbers, by the place in the sequence."""
        n, d = h.shape[-2:]
        angles = [[p * 10000.0 ** (-2 * i / d) for i in range(d // 2)] for p in range(n)]
        circle = torch.polar(
            torch.ones(n, d // 2, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64)
        )
        return torch.view_as_real(
            torch.view_as_complex(h.unflatten(-1, (-1, 2)).contiguous()) * circle
        ).flatten(-2)

    whole = [torch.full((len(x),), number, dtype=torch.float64) for number in (1 - 1 / omega, low, high)]
    h = torch.cat(
        [
            w["class_tokens"] + w["y_embedder.embedding_table.weight"][y][:, None],
            w["omega_tokens"] + embedded("omega", whole[0]),
            w["t_min_tokens"] + embedded("cfg_t_start", whole[1]),
            w["t_max_tokens"] + embedded("cfg_t_end", whole[2]),
            w["time_tokens"] + embedded("h", length),
            patches(w, x),
        ],
        dim=1,
    )
    for block in [*(f"shared_blocks.{i}" for i in range(3)), *(f"u_heads.{i}" for i in range(2))]:
        inner = norm(f"{block}.norm1", h)
        q, k, v = (heads_of(linear(w, f"{block}.attn.{part}_proj", inner)) for part in "qkv")
        q, k = turn(norm(f"{block}.attn.q_norm", q)), turn(norm(f"{block}.attn.k_norm", k))
        h = h + linear(w, f"{block}.attn.out_proj", attend(q, k, v)) * w[f"{block}.attn_scale"]
        inner = norm(f"{block}.norm2", h)
        inner = F.silu(linear(w, f"{block}.mlp.w1", inner)) * linear(w, f"{block}.mlp.w3", inner)
        h = h + linear(w, f"{block}.mlp.w2", inner) * w[f"{block}.mlp_scale"]
    return image(linear(w, "u_final_layer.linear", norm("u_final_layer.norm", h[:, 9:])))


def adopted(tmp_path, backbone, weights, name):
    """Through the adopt stage, from a torch file of tensors; the network in float64 and its card."""
    path = tmp_path / "assets" / "released" / name
    path.parent.mkdir(parents=True)
    torch.save(weights, path)
    entry = {"name": name, "bytes": path.stat().st_size, "sha256": sha256(path), "source": "x"}
    body = {"name": "released", "kind": "hub", "title": "", "licence": "", "files": [entry]}
    (tmp_path / "assets" / "released.json").write_text(json.dumps(body))
    spec = AdoptSpec(
        method="m",
        backbone=backbone,
        asset="released",
        file=name,
        reverse=True,
        tokenizer=Tokenizer(kind="pixels", shape=backbone.shape),
    )
    (tmp_path / "spec.json").write_text(dump(spec))
    out = tmp_path / "model.safetensors"
    words = ["--spec", tmp_path / "spec.json", "--asset", tmp_path / "assets/released.json", "--out", out]
    adopt.main([str(word) for word in words])
    net, card = load_network(out, backbone)
    return net.double(), card


def test_decoupled_meanflow(tmp_path):
    weights = dmf_weights()
    net, card = adopted(tmp_path, DMF, weights, "dmf.pt")
    x, t, s, y = inputs()
    expected = -dmf_forward(weights, x, 1 - t, 1 - s, y)
    torch.testing.assert_close(net(x, t, s, y), expected, rtol=1e-4, atol=1e-4)
    assert card["source"]["converted"] == [
        "blocks from 2 on told the target time",
        "time and velocity reversed",
    ]


def test_improved_meanflow(tmp_path):
    weights = imf_weights()
    net, card = adopted(tmp_path, IMF, weights, "imf.pth")
    x, t, s, y = inputs()
    expected = -imf_forward(weights, x, s - t, 8.0, 0.42, 0.62, y)
    torch.testing.assert_close(net(x, t, s, y), expected, rtol=1e-6, atol=1e-6)
    other = net(x, t - 0.1, s - 0.1, y)
    torch.testing.assert_close(other, net(x, t, s, y))  # of the times it is told the difference alone
    assert card["source"]["converted"] == [
        "velocity reversed; layers that are one here joined; the second head dropped"
    ]


def test_improved_meanflow_with_new_classes():
    weights, own = imf_weights(), IMF.model_copy(update={"classes": 3})
    net, converted = import_weights(weights, own, "x.pth", reverse=True, new_labels=True)
    old = import_weights(weights, IMF, "x.pth", reverse=True)[0].state_dict()
    assert converted[1] == (
        f"embeddings of 3 classes drawn anew, in place of {CLASSES}; the unconditional one kept"
    )
    for name, value in net.state_dict().items():
        if name == "y_embedder.embedding_table.weight":
            assert torch.equal(value[-1], old[name][-1]) and not torch.equal(value[:3], old[name][:3])
        else:
            assert torch.equal(value, old[name])


def test_decoupled_blocks_need_the_target_time():
    net = build(DMF)
    assert net.r_embedder is None
    x, t, _, y = (value.float() if value.is_floating_point() else value for value in inputs())
    with pytest.raises(ValueError, match="give s"):
        net(x, t, None, y)


def test_a_student_of_decoupled_blocks_starts_as_its_teacher():
    """One embedding of both times: at s = t the network is that of one time, whose weights it takes."""
    one = DMF.model_copy(update={"decoupled": None, "target_time": False})
    weights = {name: value for name, value in dmf_weights().items() if not name.startswith("logvar")}
    teacher, student = (import_weights(weights, spec, "x.pt")[0] for spec in (one, DMF))
    x, t, s, y = (value.float() if value.is_floating_point() else value for value in inputs())
    assert torch.equal(student(x, t, t, y), teacher(x, t, None, y))
    assert not torch.equal(student(x, t, s, y), student(x, t, t, y))


@pytest.mark.parametrize("spec", [DMF, IMF], ids=["dmf", "imf"])
def test_derivatives_pass_through(spec):
    weights, reverse = (dmf_weights(), False) if spec is DMF else (imf_weights(), True)
    net = import_weights(weights, spec, "x.pt", reverse)[0].double()
    x, t, s, y = inputs()
    direction = (torch.zeros_like(x), torch.zeros_like(t), torch.ones_like(s))
    value, tangent = value_and_tangent(net, (x, t, s), direction, y)
    assert torch.equal(value, net(x, t, s, y))
    step = 1e-5
    difference = (net(x, t, s + step, y) - net(x, t, s - step, y)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)


def test_a_fresh_network_of_improved_meanflow_gives_nothing():
    torch.manual_seed(0)
    net = build(IMF)
    x, t, s, y = (value.float() if value.is_floating_point() else value for value in inputs())
    assert not net(x, t, s, y).any()
    assert all(weight.isfinite().all() for weight in net.parameters())


def test_the_published_size():
    """610 M weights in the paper, of the part that samples."""
    xl = {"shape": [4, 32, 32], "classes": 1000, "depth": 48, "width": 1024, "heads": 16}
    spec = Imf(kind="imf", **xl, scale=8.0, interval=[0.38, 0.58])
    assert round(parameters(spec) / 1e6) == 610
    assert 1 < evaluations(parameter_classes()["imeanflow"](), spec, None, False) < 20  # on a tiny one
    whole = DMF.model_copy(update={"depth": 28, "decoupled": 20})
    assert operations(whole) == pytest.approx(
        operations(whole.model_copy(update={"decoupled": None})), rel=0.1
    )


def test_wrong_files_are_refused():
    weights = imf_weights()
    with pytest.raises(ValueError, match=r"x.pth: reverse: .* set reverse: true"):
        import_weights(weights, IMF, "x.pth")
    name = "net.u_heads.1.attn.k_proj._flax_linear.weight"
    del weights[name]
    with pytest.raises(ValueError, match=rf"x.pth: has no {re.escape(name)}$"):
        import_weights(weights, IMF, "x.pth", reverse=True)
    for shape in ((WIDTH, WIDTH + 1), (WIDTH + 1, WIDTH), (WIDTH,)):
        with pytest.raises(
            ValueError, match=rf"x.pth: {re.escape(name)} is .* must be a matrix of the shape"
        ):
            import_weights(weights | {name: torch.ones(shape)}, IMF, "x.pth", reverse=True)
    with pytest.raises(ValueError, match="decoupled: null"):
        import_weights(dmf_weights() | {"r_embedder.mlp.0.weight": torch.ones(1)}, DMF, "x.pt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoupled": 3}, "decoupled 3 must be below depth 3"),
        ({"target_time": False}, "with target_time: true"),
        ({"repeats": 2}, "repeats: 1"),
    ],
)
def test_what_decoupled_does_not_go_with(changes, words):
    with pytest.raises(ValueError, match=words):
        LightningDiT(**DMF.model_dump() | changes)
