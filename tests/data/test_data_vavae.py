"""VA-VAE: architecture, names, numbers and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import ldm_reference
import pytest
import torch
from configs import make_plan, raw_config
from ldm_reference import TINY
from safetensors.torch import save_file

from fewstep.config import ConfigError
from fewstep.config.assets import Asset
from fewstep.config.settings import LdmAutoencoder, Tokenizer, Weights
from fewstep.data import tokenizers
from fewstep.data.fetching import fetch_asset
from fewstep.data.tokenizers import open_tokenizer


def record_of(folder: Path) -> Path:
    record = folder.parent / "assets/vae.json"
    fetch_asset("vae", Asset(kind="local", licence="own", path=str(folder)), record)
    return record


def tokenizer(**change: object) -> Tokenizer:
    base = {"kind": "vavae", "shape": [4, 8, 8], "network": TINY, "posterior": "sample"}
    return Tokenizer.model_validate({**base, "weights": Weights(asset="vae", file="vae.pt"), **change})


def test_full_size_is_the_published_one() -> None:
    full = LdmAutoencoder()
    net = tokenizers.build_ldm_autoencoder(full, 32, "meta")
    count = {name: sum(p.numel() for p in getattr(net, name).parameters()) for name in ("encoder", "decoder")}
    assert count == {"encoder": 28_413_248, "decoder": 41_417_603}
    assert sum(p.numel() for p in net.parameters()) == 69_836_067
    expected = ldm_reference.shapes(full, 32)
    found = {tokenizers.ldm_name(name, 5): tensor for name, tensor in net.state_dict().items()}
    assert len(found) == 342 and found.keys() == expected.keys()
    for name, shape in expected.items():
        assert math.prod(shape) == found[name].numel(), name
    assert expected["encoder.conv_out.weight"] == [64, 512, 3, 3]
    assert "encoder.down.4.attn.1.proj_out.weight" in found and "decoder.up.4.attn.2.q.bias" in found
    assert "encoder.down.4.downsample.conv.weight" not in found


@pytest.mark.parametrize(
    "network",
    [TINY, LdmAutoencoder(channels=32, multipliers=[1, 1, 2], blocks=2, attention=[0, 2])],
    ids=["tiny", "three levels"],
)
def test_equals_the_description_on_random_weights(tmp_path: Path, network: LdmAutoencoder) -> None:
    state = ldm_reference.weights(network, 4)
    ldm_reference.save_checkpoint(tmp_path / "vae/vae.pt", state)
    side = 16 // 2 ** (len(network.multipliers) - 1)
    options = {"network": network, "shape": [4, side, side]}
    record = record_of(tmp_path / "vae")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean = open_tokenizer(tokenizer(**options, posterior="mean"), record, None)
    drawn = open_tokenizer(tokenizer(**options), record, None)
    with torch.no_grad():
        expected, std = ldm_reference.moments(state, network, images)
        torch.testing.assert_close(mean.encode(images, range(3)), expected, atol=1e-5, rtol=1e-4)
        sample = drawn.encode(images, range(3))
        noise = (sample - expected) / std
        assert noise.mean().item() == pytest.approx(0, abs=0.3)
        assert noise.std().item() == pytest.approx(1, abs=0.25)
        decoded = ldm_reference.decode(state, network, sample).clamp(-1, 1)
        torch.testing.assert_close(drawn.decode(sample), decoded, atol=1e-4, rtol=1e-4)


def test_draws_belong_to_images_and_views(tmp_path: Path) -> None:
    ldm_reference.save_checkpoint(tmp_path / "vae/vae.pt", ldm_reference.weights(TINY, 4))
    coder = open_tokenizer(tokenizer(), record_of(tmp_path / "vae"), None)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        batch = coder.encode(images, [10, 11, 12, 13])
        torch.testing.assert_close(coder.encode(images[2:3], [12]), batch[2:3], atol=1e-5, rtol=1e-5)
        for other in (coder.encode(images[2:3], [11]), coder.encode(images[2:3], [12], view=1)):
            assert (other - batch[2:3]).abs().max() > 0.1


def test_many_images_are_decoded_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ldm_reference.save_checkpoint(tmp_path / "vae/vae.pt", ldm_reference.weights(TINY, 4))
    coder = open_tokenizer(tokenizer(), record_of(tmp_path / "vae"), None)
    latents = torch.randn(7, 4, 8, 8)
    with torch.no_grad():
        whole = coder.decode(latents)
        monkeypatch.setattr(tokenizers, "DECODED", 3)
        pieces = open_tokenizer(tokenizer(), record_of(tmp_path / "vae"), None)
        torch.testing.assert_close(pieces.decode(latents), whole, atol=1e-5, rtol=1e-5)


def test_the_posterior_is_clamped(tmp_path: Path) -> None:
    state = ldm_reference.weights(TINY, 4)
    state["quant_conv.bias"][4:] = -1e4
    ldm_reference.save_checkpoint(tmp_path / "vae/vae.pt", state)
    record = record_of(tmp_path / "vae")
    images = torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        sample = open_tokenizer(tokenizer(), record, None).encode(images, [0])
        mean = open_tokenizer(tokenizer(posterior="mean"), record, None).encode(images, [0])
    difference = (sample - mean).abs().max().item()
    assert difference <= 6 * math.exp(-15)  # logvar -30


def test_safetensors_and_bare_and_half_precision_files(tmp_path: Path) -> None:
    state = ldm_reference.weights(TINY, 4)
    rounded = {name: value.half() for name, value in state.items()}
    (tmp_path / "vae").mkdir()
    save_file(rounded, tmp_path / "vae/vae.safetensors")
    torch.save(rounded, tmp_path / "vae/bare.pt")
    for name in ("vae.safetensors", "bare.pt"):
        net = tokenizers.load_ldm_autoencoder(tmp_path / "vae" / name, TINY, 4)
        own = net.state_dict()
        assert {value.dtype for value in own.values()} == {torch.float32}
        for key, value in own.items():
            assert torch.equal(value.flatten(), rounded[tokenizers.ldm_name(key, 2)].float().flatten()), key


def test_other_weights_are_refused_by_their_own_names(tmp_path: Path) -> None:
    state = ldm_reference.weights(TINY, 4)
    path = tmp_path / "vae.pt"
    missing = {key: value for key, value in state.items() if key != "encoder.down.1.attn.0.q.weight"}
    for tensors, message in (
        (missing, r"vae\.pt: does not fit tokenizer\.network: no encoder\.down\.1\.attn\.0\.q\.weight$"),
        ({**state, "decoder.extra": torch.zeros(1)}, r"unknown decoder\.extra"),
        (
            {**state, "decoder.up.1.upsample.conv.weight": torch.zeros(64, 64, 1, 1)},
            r"decoder\.up\.1\.upsample\.conv\.weight is \[64, 64, 1, 1\], not \[64, 64, 3, 3\]",
        ),
        (
            {**state, "encoder.mid.attn_1.q.weight": torch.zeros(64, 64, 3, 3)},
            r"encoder\.mid\.attn_1\.q\.weight is \[64, 64, 3, 3\], not \[64, 64, 1, 1\]",
        ),
        ({"foundation_model.a": torch.zeros(1)}, r"no encoder\.conv_in\.weight, .* and \d+ more"),
    ):
        ldm_reference.save_checkpoint(path, tensors)
        with pytest.raises(ConfigError, match=message):
            tokenizers.load_ldm_autoencoder(path, TINY, 4)


def test_files_that_are_no_plain_tensors_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "vae.pt"
    ldm_reference.save_checkpoint(path, ldm_reference.weights(TINY, 4), hyper_parameters=Path("anything"))
    with pytest.raises(
        ValueError,
        match=r"holds pickled objects \(pathlib.*\).* could run any code",
    ):
        tokenizers.load_ldm_autoencoder(path, TINY, 4)
    torch.save({"state_dict": {"a": 1}}, path)
    with pytest.raises(ConfigError, match="neither tensors by name nor a state_dict"):
        tokenizers.load_ldm_autoencoder(path, TINY, 4)
    for name in ("vae.pt", "vae.safetensors"):
        (tmp_path / name).write_bytes(b"<html>not here</html>")
        with pytest.raises(ValueError, match=name):
            tokenizers.load_ldm_autoencoder(tmp_path / name, TINY, 4)


def test_configurations_that_cannot_be() -> None:
    for change, message in (
        ({"weights": Weights(method="ae")}, "needs weights with an asset and a file"),
        ({"statistics": "published"}, "published and statistics_file go together"),
        ({"statistics_file": "x.pt"}, "published and statistics_file go together"),
        ({"kind": "sd-vae"}, "network is for kind: vavae"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer(**change)
    with pytest.raises(ValueError, match="names a level beyond 1"):
        LdmAutoencoder(multipliers=[1, 2], attention=[2])


def test_the_plan_knows_the_files_of_the_asset() -> None:
    raw = raw_config()
    wrong = {"tokenizers": {"vavae-f16d32": {"statistics_file": "latent_stats.pt"}}}
    raw["overrides"] = {"settings": wrong}
    with pytest.raises(ConfigError, match=r"vavae-f16d32\.statistics_file: .*latents_stats\.pt"):
        make_plan(raw)
