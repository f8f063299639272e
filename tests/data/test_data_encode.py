"""VA-VAE latents from images to manifest: draws, batches, checks and published statistics."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import ldm_reference
import numpy as np
import pyarrow as pa
import pytest
import torch
from data_factories import LatentSet, write_spec
from ldm_reference import TINY
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from fewstep import encode
from fewstep.common.files import sha256
from fewstep.config import ConfigError, dump, read_spec
from fewstep.config.assets import Asset
from fewstep.config.base import merge
from fewstep.config.settings import Dataset, Latents, Tokenizer, Weights
from fewstep.config.specs import EncodeSpec
from fewstep.data import encoding
from fewstep.data.asset_files import read_record
from fewstep.data.encoding import encode_shard
from fewstep.data.fetching import fetch_asset
from fewstep.data.image_files import class_ids
from fewstep.data.manifest import PublishedStatistics, read_manifest
from fewstep.data.shards import LatentShards, map_arrays, scan_shard
from fewstep.data.sources import open_source
from fewstep.plan import Plan

IMAGES = Dataset(asset="in", format="imagefolder", resolution=16, classes=3, images=23)
VAVAE = Tokenizer(
    kind="vavae",
    shape=[4, 8, 8],
    network=TINY,
    posterior="sample",
    weights=Weights(asset="vae", file="vae.pt"),
)


def local(folder: Path, name: str) -> Path:
    record = folder / f"assets/{name}.json"
    fetch_asset(name, Asset(kind="local", licence="own", path=str(folder / name)), record)
    return record


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for k in range(IMAGES.images):
        path = folder / f"in/n{k % 3}/{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return local(folder, "in")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    ldm_reference.save_checkpoint(tmp_path / "vae/vae.pt", ldm_reference.weights(TINY, 4))
    return local(tmp_path, "vae")


def spec_of(tokenizer: Tokenizer = VAVAE, dataset: Dataset = IMAGES, **latents: object) -> EncodeSpec:
    base = {"dataset": "in", "tokenizer": "vae", "shards": 2, "flip": True, "dtype": "float16"}
    return EncodeSpec(
        name="tiny", dataset=dataset, tokenizer=tokenizer, latents=Latents.model_validate({**base, **latents})
    )


def test_latents_are_draws_of_the_posterior_of_both_views(
    tmp_path: Path, images: Path, weights: Path
) -> None:
    made = LatentSet(tmp_path / "latents", images, spec_of())
    made.encode(weights)
    stored = LatentShards(made.manifest).read(range(23)).float()
    pixels, labels = open_source(IMAGES, read_record(images)).read(0, 23)
    state = ldm_reference.weights(TINY, 4)
    with torch.no_grad():
        for view, seen in enumerate((pixels, pixels.flip(-1))):
            mean, std = ldm_reference.moments(state, TINY, seen)
            noise = (stored[:, view] - mean) / std
            assert noise.mean().item() == pytest.approx(0, abs=0.05)
            assert noise.std().item() == pytest.approx(1, abs=0.05)
        checks = []
        for start, stop in ((0, 8), (11, 19)):
            back = ldm_reference.decode(state, TINY, stored[start:stop, 0]).clamp(-1, 1)
            error = (back - pixels[start:stop]).square().mean((1, 2, 3))
            checks.append((10 * (4 / error).log10()).mean().item())
    assert torch.equal(LatentShards(made.manifest).labels, labels)
    for shard, expected in zip(made.shards, checks):
        assert scan_shard(shard).card.psnr == pytest.approx(expected, abs=0.011)
    manifest = read_manifest(made.manifest)
    assert manifest.psnr == pytest.approx(min(checks), abs=0.011)
    assert manifest.published is None


def test_any_batch_gives_the_same_latents(tmp_path: Path, images: Path, weights: Path) -> None:
    stored = []
    for batch in (1, 5, 32):
        folder = tmp_path / str(batch)
        folder.mkdir()
        encode_shard(spec_of(shards=1, dtype="float32"), images, weights, 0, folder / "shard.tar", batch)
        scan = scan_shard(folder / "shard.tar")
        stored.append(map_arrays(folder / "shard.tar", scan.offsets, scan.shape, scan.dtype))
        assert scan.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 7
    for other in stored[1:]:
        np.testing.assert_allclose(other, stored[0], atol=2e-5, rtol=2e-5)
    with pytest.raises(SystemExit):
        spec = write_spec(tmp_path / "spec.json", spec_of())
        common = ["--spec", spec, "--source", str(images), "--out", str(tmp_path / "x.tar")]
        encode.main([*common, "--shard", "0", "--batch", "0"])


def test_a_poor_decoder_stops_before_the_first_shard(
    tmp_path: Path, images: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = LatentSet(tmp_path / "latents", images, spec_of(psnr=20.0))
    with pytest.raises(ConfigError, match=r"tiny: latents\.psnr: images 0 to 7 come back .* dB, not 20\.0"):
        made.encode(weights)
    assert list(made.folder.glob("*.tar")) == []
    made.spec = spec_of(psnr=1.0)
    made.encode(weights)
    assert "decode check: " in capsys.readouterr().out and made.manifest.exists()


def test_latents_that_overflow_are_not_stored(tmp_path: Path, images: Path) -> None:
    state = ldm_reference.weights(TINY, 4)
    state["quant_conv.bias"][0] = 7e4
    ldm_reference.save_checkpoint(tmp_path / "vae/vae.pt", state)
    made = LatentSet(tmp_path / "latents", images, spec_of())
    message = (
        r"latents\.dtype: of images 0 to 7, latents are not finite in float16 \(largest before: 7e\+04\)"
    )
    with pytest.raises(ValueError, match=message):
        made.encode(local(tmp_path, "vae"))
    assert list(made.folder.glob("*.tar")) == []
    made.spec = spec_of(dtype="float32")
    made.encode(local(tmp_path, "vae"))


def test_a_finished_shard_is_not_touched_by_a_failing_one(
    tmp_path: Path, images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = LatentSet(tmp_path / "latents", images, spec_of())
    made.encode(weights)
    before = [shard.read_bytes() for shard in made.shards]

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_store", fail)
        with pytest.raises(KeyboardInterrupt):
            encode_shard(made.spec, images, weights, 1, made.shards[1])
    assert sorted(path.name for path in made.folder.glob("*.tar")) == ["shard-00000.tar", "shard-00001.tar"]
    assert list(made.folder.glob(".*")) == []
    made.shards[1].unlink()
    encode_shard(made.spec, images, weights, 1, made.shards[1])
    assert [shard.read_bytes() for shard in made.shards] == before


@pytest.fixture
def published(tmp_path: Path, images: Path, weights: Path) -> Callable[..., LatentSet]:
    """Latents normalised by a file that holds their own statistics, changed as asked."""

    def make(
        change: Callable[[dict], object] = lambda content: content, name: str = "latents_stats.pt"
    ) -> LatentSet:
        own = LatentSet(
            tmp_path / "own", images, spec_of(VAVAE.model_copy(update={"statistics": "computed"}))
        )
        if not own.manifest.exists():
            own.encode(weights)
        manifest = read_manifest(own.manifest)
        mean, std = (torch.tensor(value).view(1, 4, 1, 1) for value in (manifest.mean, manifest.std))
        torch.save(change({"mean": mean, "std": std}), tmp_path / "vae" / name)
        update = {"statistics": "published", "statistics_file": "latents_stats.pt"}
        result = LatentSet(tmp_path / "latents", images, spec_of(VAVAE.model_copy(update=update)))
        shutil.rmtree(result.folder, ignore_errors=True)
        result.encode(local(tmp_path, "vae"))
        return result

    return make


def test_published_statistics_are_used_as_they_are(
    tmp_path: Path, published: Callable[..., LatentSet], capsys: pytest.CaptureFixture[str]
) -> None:
    made = published(lambda own: {"mean": own["mean"] + 0.05 * own["std"], "std": own["std"] * 0.98})
    manifest = read_manifest(made.manifest)
    file = tmp_path / "vae/latents_stats.pt"
    content = torch.load(file, weights_only=True)
    assert manifest.published is not None and manifest.published.sha256 == sha256(file)
    assert manifest.normalisation.mean == content["mean"].flatten().tolist() == manifest.published.mean
    assert manifest.normalisation.std == content["std"].flatten().tolist()
    assert manifest.mean != manifest.normalisation.mean  # the measured ones stand beside
    assert manifest.published.distance(manifest.mean, manifest.std) == pytest.approx(0.05 / 0.98, abs=1e-3)
    shards = LatentShards(made.manifest)
    normal = shards.normalise(shards.read(range(23)))
    assert normal.mean().item() == pytest.approx(-0.05 / 0.98, abs=1e-2)
    torch.testing.assert_close(
        shards.manifest.normalisation.denormalise(normal),
        shards.read(range(23)).float(),
        atol=1e-5,
        rtol=1e-5,
    )
    assert "warning" not in capsys.readouterr().out
    other = manifest.model_copy(update={"mean": [9.0] * 4})
    made.manifest.write_text(dump(other))
    assert read_manifest(made.manifest).normalisation == manifest.normalisation


def test_statistics_of_other_latents_are_noticed(
    published: Callable[..., LatentSet], capsys: pytest.CaptureFixture[str]
) -> None:
    published(
        lambda own: {**own, "mean": own["mean"] + torch.tensor([0, 0, 0.3, 0]).view(1, 4, 1, 1) * own["std"]}
    )
    assert "warning: latents_stats.pt: published statistics are 0.30 standard dev" in capsys.readouterr().out
    for change in (
        lambda own: {**own, "mean": own["mean"] + 1.5 * own["std"]},
        lambda own: {**own, "std": own["std"] * 0.18215},
    ):
        with pytest.raises(
            ConfigError, match=r"belong to other latents; use tokenizer\.statistics: computed"
        ):
            published(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: {"mean": own["mean"]}, r"std: must be a tensor of 4 channels"),
        (lambda own: {**own, "mean": torch.zeros(1, 5, 1, 1)}, r"mean: must be a tensor of 4 channels"),
        (lambda own: {**own, "std": own["std"] * 0}, r"std: must be finite, and std positive"),
        (lambda own: {**own, "more": Path("x")}, r"holds pickled objects"),
    ],
)
def test_bad_statistics_are_refused_before_encoding(
    tmp_path: Path, published: Callable[..., LatentSet], change: Callable, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"latents_stats\.pt: {message}"):
        published(change)
    assert list((tmp_path / "latents").glob("*.tar")) == []


def test_missing_statistics_are_refused_before_encoding(
    tmp_path: Path, published: Callable[..., LatentSet]
) -> None:
    with pytest.raises(ConfigError, match=r"has no file 'latents_stats\.pt'; it names other\.pt, vae\.pt"):
        published(name="other.pt")
    assert list((tmp_path / "latents").glob("*.tar")) == []


def test_distance_is_the_worst_channel() -> None:
    own = PublishedStatistics(file="x", sha256="0" * 64, mean=[0.0, 1.0], std=[1.0, 2.0])
    assert own.distance([0.0, 1.0], [1.0, 2.0]) == 0
    assert own.distance([0.1, 1.4], [1.0, 2.0]) == pytest.approx(0.2)
    assert own.distance([0.0, 1.0], [0.7, 2.0]) == pytest.approx(0.3)


def test_the_configured_imagenet_in_miniature(tmp_path: Path, paper_plan: Plan, weights: Path) -> None:
    """The shipped spec but for sizes: Parquet, 1,000 classes, fp16, both views, published statistics."""
    shipped = tmp_path / "shipped.json"
    shipped.write_text(paper_plan.spec_text("encode", "imagenet256-vavae"))
    spec = read_spec(EncodeSpec, shipped)
    spec = EncodeSpec.model_validate(
        merge(
            spec.model_dump(),
            {
                "dataset": {"resolution": 16, "images": 1000},
                "tokenizer": {
                    "shape": [4, 8, 8],
                    "network": TINY.model_dump(),
                    "weights": {"file": "vae.pt"},
                },
                "latents": {"shards": 2, "psnr": 5.0},
            },
        )
    )
    ids = class_ids("imagenet-1k")
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 20, 24, 3), np.uint8)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (tmp_path / "hub/data").mkdir(parents=True)
    for part in range(3):
        images, labels = [], order[part::3]
        for label in labels:
            stream = io.BytesIO()
            Image.fromarray(pixels[label]).save(stream, "JPEG")
            images.append({"bytes": stream.getvalue(), "path": f"{ids[label]}_1_{ids[label]}.JPEG"})
        table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64())})
        path = tmp_path / f"hub/data/train-{part:05d}-of-00003.parquet"
        parquet.write_table(table, path, row_group_size=100)
    torch.save(
        {"mean": torch.zeros(1, 4, 1, 1), "std": torch.full((1, 4, 1, 1), 3.0)},
        tmp_path / "vae/latents_stats.pt",
    )
    made = LatentSet(tmp_path / "latents", local(tmp_path, "hub"), spec)
    made.encode(local(tmp_path, "vae"))
    shards = LatentShards(made.manifest)
    shards.check(made.card)
    assert shards.manifest.histogram == [1] * 1000 and shards.views == 2
    assert shards.labels.tolist() == [*order[0::3], *order[1::3], *order[2::3]]
    assert shards.manifest.dtype == "float16" and shards.manifest.psnr > 5


def latents_of_others(folder: Path, flip: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Three files in the layout of LightningDiT's extraction: 5 + 4 + 2 images."""
    draw = torch.Generator().manual_seed(0)
    latents, labels = torch.randn(11, 2, 4, 8, 8, generator=draw), torch.arange(11) % 3
    names = ["rank00_shard000", "rank00_shard001", "rank01_shard000"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(names, (slice(0, 5), slice(5, 9), slice(9, 11))):
        content = {"latents": latents[rows, 0].contiguous(), "labels": labels[rows]}
        if flip:
            content["latents_flip"] = latents[rows, 1].contiguous()
        metadata = {"total_size": str(len(content["labels"])), "dtype": "torch.float32"}
        save_file(content, folder / f"latents_{name}.safetensors", metadata)
    torch.save({}, folder / "latents_stats.pt")
    return latents, labels


OTHERS = IMAGES.model_copy(update={"format": "latents-safetensors", "images": 11})


@pytest.mark.parametrize("flip", [True, False])
def test_latents_of_others_become_shards(tmp_path: Path, weights: Path, flip: bool) -> None:
    latents, labels = latents_of_others(tmp_path / "others", flip)
    spec = spec_of(dataset=OTHERS, flip=flip, shards=3, dtype="float32", psnr=20.0)
    made = LatentSet(tmp_path / "latents", local(tmp_path, "others"), spec)
    made.encode(weights)
    shards = LatentShards(made.manifest)
    assert torch.equal(shards.read(range(11)), latents[:, : 1 + flip])
    assert torch.equal(shards.labels, labels)
    assert shards.manifest.psnr is None  # there are no images to compare with
    assert shards.manifest.weights is not None  # for decoding


def test_unfit_latents_of_others_are_refused(tmp_path: Path, weights: Path) -> None:
    latents_of_others(tmp_path / "others", flip=False)
    record = local(tmp_path, "others")

    def attempt(**change: object) -> None:
        LatentSet(tmp_path / "latents", record, spec_of(**{"dataset": OTHERS, "shards": 1, **change})).encode(
            weights
        )

    with pytest.raises(
        ConfigError, match=r"shard000\.safetensors: has no latents_flip, only \['labels', 'lat"
    ):
        attempt()
    count = OTHERS.model_copy(update={"images": 12})
    with pytest.raises(ConfigError, match=r"dataset\.images: found 11 in 3 \.safetensors files, .* says 12"):
        attempt(dataset=count, flip=False)
    other = VAVAE.model_copy(update={"shape": [4, 4, 4]})
    with pytest.raises(ConfigError, match=r"latents: shape \[5, 4, 8, 8\], not \[5, 4, 4, 4\]"):
        attempt(tokenizer=other, flip=False)
    with pytest.raises(ConfigError, match=r"labels: label 2 is not one of 2 classes"):
        attempt(dataset=OTHERS.model_copy(update={"classes": 2}), flip=False)
    (tmp_path / "others/latents_rank02_shard000.safetensors").write_bytes(b"text")
    record = local(tmp_path, "others")
    with pytest.raises(ValueError, match=r"rank02_shard000\.safetensors: not a safetensors file"):
        attempt(flip=False)
