"""Encoding, manifests and the reader."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from data_factories import DIGITS, LatentSet, pixel_latents

from fewstep.backbones import build
from fewstep.backbones.model_file import save_model
from fewstep.common.files import sha256
from fewstep.config import ConfigError, digest
from fewstep.config.assets import Asset
from fewstep.config.backbones import ConvAutoencoder
from fewstep.config.settings import Latents, Tokenizer, Weights
from fewstep.config.specs import EncodeSpec
from fewstep.data import shards as shards_module
from fewstep.data.asset_files import read_record
from fewstep.data.encoding import ChannelStatistics, merge_shards, split
from fewstep.data.fetching import fetch_asset
from fewstep.data.manifest import known_normalisation
from fewstep.data.shards import LatentShards
from fewstep.data.sources import open_source
from fewstep.data.tokenizers import open_tokenizer


@pytest.fixture
def copy(made: LatentSet, tmp_path: Path) -> LatentSet:
    shutil.copytree(made.folder, tmp_path / "copy")
    return LatentSet(tmp_path / "copy", made.record, made.spec)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads(path.read_text())
    raw.pop("digest", None)
    change(raw)
    path.write_text(json.dumps(raw))


def test_shards_and_manifest_have_the_same_bytes_on_every_run(made: LatentSet, tmp_path: Path) -> None:
    again = LatentSet(tmp_path / "again", made.record, made.spec)
    again.encode()
    for name in ("shard-00000.tar", "shard-00001.tar", "manifest.index.npz", "manifest.json"):
        assert (again.folder / name).read_bytes() == (made.folder / name).read_bytes(), name


def test_shards_are_plain_webdataset(made: LatentSet) -> None:
    images, labels = open_source(DIGITS, read_record(made.record)).read(0, 1797)
    urls = [str(shard) for shard in made.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{index:08d}" for index in range(1797)]
    assert [sample["cls"] for sample in samples] == labels.tolist()
    stored = torch.stack([torch.from_numpy(sample["latent.npy"]) for sample in samples])
    assert torch.equal(stored[:, 0], images) and torch.equal(stored[:, 1], images.flip(-1))


def test_manifest_says_what_the_latents_are(made: LatentSet) -> None:
    manifest = LatentShards(made.manifest).manifest
    images, labels = open_source(DIGITS, read_record(made.record)).read(0, 1797)
    assert manifest.dataset == DIGITS and manifest.tokenizer == made.spec.tokenizer
    assert (manifest.images, manifest.shape, manifest.views, manifest.dtype) == (
        1797,
        [1, 8, 8],
        2,
        "float32",
    )
    assert manifest.mean == pytest.approx([images.double().mean().item()], abs=1e-12)
    assert manifest.std == pytest.approx([images.double().std(unbiased=False).item()], abs=1e-12)
    assert manifest.histogram == labels.bincount().tolist()
    assert [shard.images for shard in manifest.shards] == [898, 899]
    assert [shard.sha256 for shard in manifest.shards] == [sha256(path) for path in made.shards]
    assert manifest.spec == digest(made.spec) and manifest.weights is None


def test_reader_equals_source_in_any_order(made: LatentSet) -> None:
    shards = LatentShards(made.manifest)
    images, labels = open_source(DIGITS, read_record(made.record)).read(0, 1797)
    assert len(shards) == 1797 and shards.shape == (1, 8, 8) and torch.equal(shards.labels, labels)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    both = shards.read(order)
    assert torch.equal(both, torch.stack([images, images.flip(-1)], dim=1)[order])
    view = torch.arange(1797) % 2
    assert torch.equal(shards.read(order, view), both[torch.arange(1797), view])
    assert torch.equal(shards.read(range(890, 905))[:, 0], images[890:905])
    for outside in (-1, 1797):
        with pytest.raises(IndexError):
            shards.read(torch.tensor([outside]))


def test_normalisation_round_trip(made: LatentSet) -> None:
    shards = LatentShards(made.manifest)
    raw = shards.read(torch.arange(1797))
    normal = shards.normalise(raw)
    assert normal.mean().item() == pytest.approx(0, abs=1e-5)
    assert normal.std().item() == pytest.approx(0.5, abs=1e-5)  # the multiplier
    torch.testing.assert_close(shards.manifest.normalisation.denormalise(normal), raw)


def test_moments_agree_with_one_pass_over_all() -> None:
    latents = np.random.default_rng(0).normal([[[3.0]], [[1e4]]], [[[2.0]], [[0.1]]], (100, 2, 2, 4, 4))
    moments = ChannelStatistics(2)
    for start in range(0, 100, 33):
        moments.add(latents[start : start + 33])
    mean, std = moments.result()
    assert mean == pytest.approx(latents.mean((0, 1, 3, 4)), rel=1e-13)
    assert std == pytest.approx(latents.std((0, 1, 3, 4)), rel=1e-9)


def test_split_covers_all_images_once() -> None:
    parts = [split(1797, 4, shard) for shard in range(4)]
    assert [image for part in parts for image in range(*part)] == list(range(1797))
    assert {stop - start for start, stop in parts} == {449, 450}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(images=1796), "images: 1796 disagrees"),
        (lambda raw: raw["mean"].__setitem__(0, 0.1), "normalisation: "),
        (lambda raw: raw.update(views=1), "views, shape: "),
        (lambda raw: raw.update(dtype="float16"), "dtype: "),
        (lambda raw: raw.update(shape=[1, 4, 16]), "shape: "),
        (lambda raw: raw["histogram"].__setitem__(slice(0, 2), [179, 181]), "histogram: "),
        (lambda raw: raw.update(extra=1), "extra: unknown key"),
        (
            lambda raw: raw["shards"][0].update(bytes=5),
            "bytes: 2304000, the manifest says 5",
        ),
        (lambda raw: raw["shards"].reverse(), "images: "),
    ],
)
def test_a_tampered_manifest_is_refused(copy: LatentSet, change: Callable[..., None], message: str) -> None:
    edit(copy.manifest, change)
    with pytest.raises(ValueError, match=message) as caught:
        LatentShards(copy.manifest)
    assert str(copy.manifest.parent) in str(caught.value)


def test_tampered_or_missing_files_are_refused(copy: LatentSet) -> None:
    shard, index = copy.shards[1], copy.folder / "manifest.index.npz"
    for path in (shard, index):
        content = path.read_bytes()
        path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
        with pytest.raises(ValueError, match=rf"manifest\.json: {path.name}: sha256: "):
            LatentShards(copy.manifest)
        path.unlink()
        with pytest.raises(ValueError, match=f"{path.name}, which is missing"):
            LatentShards(copy.manifest)
        path.write_bytes(content)
    LatentShards(copy.manifest)


def test_check_names_field_and_both_values(made: LatentSet) -> None:
    shards = LatentShards(made.manifest)
    shards.check(made.card)
    other = made.card.tokenizer.model_copy(update={"multiplier": 0.18215})
    card = made.card.model_copy(update={"tokenizer": other, "images": 5})
    with pytest.raises(ValueError) as caught:
        shards.check(card)
    assert f"{made.manifest}: images: the latents have 1797, the spec asks for 5" in str(caught.value)
    assert "tokenizer.multiplier: the latents have 0.5, the spec asks for 0.18215" in str(caught.value)


def test_more_shards_than_a_process_may_open_files(digits_record: Path, tmp_path: Path) -> None:
    many = pixel_latents(tmp_path / "latents", digits_record, flip=False, shards=40)
    many.encode()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, limits[1]))
    try:
        shards = LatentShards(many.manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert shards.read(range(1797)).shape == (1797, 1, 1, 8, 8)


def test_merge_refuses_shards_that_do_not_belong_together(copy: LatentSet) -> None:
    merge = partial(merge_shards, weights=None)
    with pytest.raises(ConfigError, match=r"latents\.shards: 2, but given are shards \[0, 0\]"):
        merge(copy.spec, copy.record, shards=[copy.shards[0]] * 2, out=copy.manifest)
    other = copy.folder / "other.json"
    body = read_record(copy.record).body
    other.write_text(body.model_copy(update={"files": []}).model_dump_json())
    with pytest.raises(ConfigError, match=r"source: .* encode this shard again"):
        merge(copy.spec, other, shards=copy.shards, out=copy.manifest)
    with pytest.raises(ConfigError, match="spec: "):
        changed = copy.spec.model_copy(update={"name": "other"})
        merge(changed, copy.record, shards=copy.shards, out=copy.manifest)
    with pytest.raises(ConfigError, match="folder: "):
        merge(copy.spec, copy.record, shards=copy.shards, out=copy.folder / "elsewhere/manifest.json")
    copy.shards[0].write_bytes(b"no tar")
    with pytest.raises(ConfigError, match=r"shard-00000\.tar: not a latent shard"):
        merge(copy.spec, copy.record, shards=copy.shards, out=copy.manifest)


def test_autoencoder_latents_decode_with_the_same_weights(digits_record: Path, tmp_path: Path) -> None:
    backbone = ConvAutoencoder(kind="conv-autoencoder", shape=[1, 8, 8], width=8, latent=4)
    torch.manual_seed(0)
    network = build(backbone)
    save_model(tmp_path / "model.safetensors", network.state_dict(), backbone, {})
    tokenizer = Tokenizer(
        kind="autoencoder", shape=[4, 4, 4], weights=Weights(method="ae"), statistics="computed"
    )
    spec = EncodeSpec(
        name="digits-latents",
        dataset=DIGITS,
        tokenizer=tokenizer,
        latents=Latents(dataset="digits", tokenizer="ae", shards=2, dtype="float16"),
        backbone=backbone,
    )
    result = LatentSet(tmp_path / "latents", digits_record, spec)
    result.encode(tmp_path / "model.safetensors")
    shards = LatentShards(result.manifest)
    assert shards.manifest.weights == sha256(tmp_path / "model.safetensors")
    images, _ = open_source(DIGITS, read_record(digits_record)).read(1000, 1010)
    raw = shards.read(torch.arange(1000, 1010))[:, 0]
    with torch.no_grad():
        torch.testing.assert_close(raw.float(), network.encode(images), atol=1e-3, rtol=1e-3)
        expected = network.decode(raw.float()).clamp(-1, 1)
    codec = open_tokenizer(tokenizer, tmp_path / "model.safetensors", backbone)
    torch.testing.assert_close(
        codec.decode(shards.manifest.normalisation.denormalise(shards.normalise(raw))), expected
    )
    wider = backbone.model_copy(update={"width": 16})
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        open_tokenizer(tokenizer, tmp_path / "model.safetensors", wider)
    with pytest.raises(ConfigError, match="needs a weights file"):
        open_tokenizer(tokenizer, None, backbone)


def test_impossible_shapes_and_kinds_are_refused(digits_record: Path, tmp_path: Path) -> None:
    made = pixel_latents(tmp_path, digits_record)
    wrong = Tokenizer(kind="pixels", shape=[1, 16, 16])
    made.spec = made.spec.model_copy(update={"tokenizer": wrong})
    with pytest.raises(ConfigError, match=r"tokenizer\.shape: \[1, 16, 16\], but it makes \[1, 8, 8\]"):
        made.encode()
    assert not made.shards[0].exists()


def tiny_vae(folder: Path, **config: Any) -> tuple[Any, Path]:
    """A diffusers autoencoder, and the record of the folder that has it in a folder ``vae``, as SD3 does."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        **config,
    )
    vae.save_pretrained(folder / "model/vae")
    record = folder / "assets/vae.json"
    fetch_asset("vae", Asset(kind="local", licence="own", path=str(folder / "model")), record)
    return vae.eval(), record


VAE_FILE = Weights(asset="vae", file="vae/diffusion_pytorch_model.safetensors")


def test_sd_vae_draws_by_image_and_not_by_batch(tmp_path: Path) -> None:
    vae, record = tiny_vae(tmp_path, latent_channels=4)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    make = {"kind": "sd-vae", "shape": [4, 8, 8], "weights": VAE_FILE}
    mean = open_tokenizer(Tokenizer(**make), record, None)
    sample = open_tokenizer(Tokenizer(**make, posterior="sample"), record, None)
    with torch.no_grad():
        expected = vae.encode(images).latent_dist
        torch.testing.assert_close(mean.encode(images, range(4)), expected.mean)
        drawn = sample.encode(images, [10, 11, 12, 13])
        torch.testing.assert_close(sample.encode(images[2:3], [12]), drawn[2:3])
        assert not torch.allclose(sample.encode(images[2:3], [12], view=1), drawn[2:3])
        assert ((drawn - expected.mean) / expected.std).std().item() == pytest.approx(1, abs=0.1)
        moments = open_tokenizer(Tokenizer(**make, posterior="moments"), record, None)
        torch.testing.assert_close(
            moments.encode(images, range(4)), torch.cat([expected.mean, expected.std], dim=1)
        )
        decoded = mean.decode(drawn)
    assert decoded.shape == images.shape and decoded.abs().max() <= 1


def test_every_file_of_an_autoencoder_is_verified(tmp_path: Path) -> None:
    """Not the weights alone: diffusers reads the whole folder."""
    _, record = tiny_vae(tmp_path, latent_channels=4)
    tokenizer = Tokenizer(kind="sd-vae", shape=[4, 8, 8], weights=VAE_FILE)
    config = record.with_suffix("") / "vae/config.json"
    text = config.read_text()
    config.write_text(text.replace("silu", "relu"))
    assert config.read_text() != text
    with pytest.raises(ConfigError, match=r"vae/config\.json: differs from .*vae\.json: its sha256"):
        open_tokenizer(tokenizer, record, None)
    config.write_text(text)
    open_tokenizer(tokenizer, record, None)
    (config.parent / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"vae\.json: files: does not name vae/diffusion.*index\.json"):
        open_tokenizer(tokenizer, record, None)


@pytest.mark.parametrize(
    ("name", "shift", "scaling"), [("sd3-vae", 0.0609, 1.5305), ("flux-vae", 0.1159, 0.3611)]
)
def test_autoencoders_of_16_channels_have_a_shift_and_no_quant_convs(
    name: str, shift: float, scaling: float, paper_plan: Any, tmp_path: Path
) -> None:
    """Latents of SD3 and FLUX are (z - shift_factor) scaling_factor, of the configs of their autoencoders."""
    vae, record = tiny_vae(
        tmp_path,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=shift,
        scaling_factor=scaling,
    )
    assert vae.quant_conv is None and vae.post_quant_conv is None
    tokenizer = paper_plan.parts.tokenizers[name].model_copy(
        update={"shape": [16, 8, 8], "weights": VAE_FILE, "posterior": "mean"}
    )
    codec = open_tokenizer(tokenizer, record, None)
    normalisation = known_normalisation(tokenizer, record)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = normalisation.normalise(codec.encode(images, range(2)))
        expected = (vae.encode(images).latent_dist.mean - shift) * scaling
        torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)
        decoded = vae.decode(expected / scaling + shift).sample.clamp(-1, 1)
        found = codec.decode(normalisation.denormalise(latents))
    torch.testing.assert_close(found, decoded, rtol=1e-4, atol=1e-4)


def test_a_changed_image_of_shards_too_large_to_hash_is_refused(
    copy: LatentSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "HASH_BELOW", 0)
    with np.load(copy.folder / "manifest.index.npz") as index:
        offset = int(index["offsets"][5])
    content = bytearray(copy.shards[0].read_bytes())
    content[offset + 3] ^= 1
    copy.shards[0].write_bytes(content)
    opened = LatentShards(copy.manifest)
    opened.read([4, 6])
    for views in (None, torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=f"{copy.shards[0].name}: damaged: image 5"):
            opened.read([4, 5], views)
