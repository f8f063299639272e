"""Published weights from files of the published formats to images, with no latents encoded."""

from __future__ import annotations

import ldm_reference
import pytest
import torch
from archive_contents import card_of, images_of
from child_processes import ranks
from configs import make_plan, raw_config, sample_inputs
from PIL import Image
from tiny_pipeline import Call

from fewstep.backbones import build
from fewstep.common.files import sha256
from fewstep.config import ConfigError
from fewstep.config.base import merge
from fewstep.evaluation import generation
from fewstep.evaluation.image_archive import open_images

NETWORK = {"shape": [4, 8, 8], "classes": 2, "depth": 1, "width": 24, "heads": 2}
IMAGES = 12


class Published:
    """The paper's own configuration over tiny files, all in one folder."""

    def __init__(self, folder, paper_plan) -> None:
        self.folder = folder
        self._files()
        parts = paper_plan.parts
        photos = {
            "asset": "imagenet-train",
            "format": "imagefolder",
            "resolution": 16,
            "images": 6,
            "classes": 2,
        }
        overrides = {
            "assets": {
                name: {"kind": "local", "gated": False, "path": str(folder / "published" / name)}
                for name in ("vavae-f16d32", "facm-250ep", "imagenet-train")
            },
            "settings": {
                "datasets": {"photos": {**photos, "crop": "adm"}},
                "tokenizers": {
                    "vavae-f16d32": {"shape": NETWORK["shape"], "network": ldm_reference.TINY.model_dump()}
                },
                "latents": {
                    "imagenet256-vavae": {
                        **{"dataset": "photos", "shards": 1, "psnr": None, "dtype": "float32"}
                    }
                },
                "backbones": {
                    name: NETWORK
                    for name, entry in parts.backbones.items()
                    if entry.shape == parts.tokenizers["vavae-f16d32"].shape
                },
                "protocols": {"decm-fid50k": {"images": IMAGES}},
            },
        }
        changes = {
            "weights": "released",
            "pathvars": {name: str(folder / name) for name in ("results", "logs", "assets", "latents")},
            "overrides": overrides,
        }
        self.plan = make_plan(merge(raw_config(), changes))

    def _files(self) -> None:
        published = self.folder / "published"
        vae = published / "vavae-f16d32"
        ldm_reference.save_checkpoint(
            vae / "vavae-imagenet256-f16d32-dinov2.pt", ldm_reference.weights(ldm_reference.TINY, 4)
        )
        draws = torch.Generator().manual_seed(5)
        mean, std = torch.randn(1, 4, 1, 1, generator=draws), 1 + torch.rand(1, 4, 1, 1, generator=draws)
        torch.save({"mean": mean, "std": std}, vae / "latents_stats.pt")
        for k in range(6):
            path = published / f"imagenet-train/n0{k % 2}/{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 16), (40 * k, 30, 200 - 30 * k)).save(path)

    def weights(self) -> None:
        """FACM's few-step model as released: an EMA and nothing else."""
        net = build(self.plan.run("facm").backbone)
        draws = torch.Generator().manual_seed(6)
        state = {
            name: value + 0.1 * torch.randn(value.shape, generator=draws)
            if value.is_floating_point() and "rope" not in name
            else value
            for name, value in net.state_dict().items()
        }
        path = self.folder / "published/facm-250ep/250ep-stg2.pt"
        path.parent.mkdir()
        torch.save({"ema": state, "_extracted_from": "epoch_250.pt"}, path)

    def call(self, stage: str, name: str, out, *words: str) -> Call:
        spec = self.folder / f"specs/{stage}-{name.replace('/', '-')}.json"
        spec.parent.mkdir(exist_ok=True)
        spec.write_text(self.plan.spec_text(stage, name))
        return Call(stage, ["--spec", str(spec), *words, "--out", str(out)], [out])

    def fetch(self, asset: str) -> None:
        self.call("fetch", asset, self.folder / f"assets/{asset}.json")()

    def encode(self) -> None:
        files = self.plan.inputs("encode", {"latents": "imagenet256-vavae"})
        words = ["--source", *files["source"], "--tokenizer", *files["tokenizer"]]
        shard = self.folder / "latents/imagenet256-vavae/shard-00000.tar"
        self.call("encode", "imagenet256-vavae", shard, *words, "--shard", "0")()
        manifest = shard.with_name("manifest.json")
        self.call("encode", "imagenet256-vavae", manifest, *words, "--merge", str(shard))()

    def sample(self, out, *latents: str) -> Call:
        images = self.plan.image_set("decm-fid50k")
        words = ["--model", self.plan.model("facm"), "--latents", *latents]
        words += ["--tokenizer", *sample_inputs(self.plan, "facm/base")["tokenizer"]]
        return self.call("sample", f"facm/base/cm-2/{images}", out, *words)


@pytest.fixture(scope="module")
def published(tmp_path_factory, paper_plan) -> Published:
    result = Published(tmp_path_factory.mktemp("released"), paper_plan)
    result.weights()
    for asset in ("vavae-f16d32", "facm-250ep"):
        result.fetch(asset)
    model = result.folder / "results/facm/base/0/model.safetensors"
    asset = result.plan.inputs("adopt", {"run": "facm/base", "seed": "0"})["asset"]
    result.call("adopt", "facm/base", model, "--asset", *asset)()
    return result


def test_released_weights_are_sampled_without_a_data_set(published, tmp_path):
    assert sample_inputs(published.plan, "facm/base")["latents"] == []
    call = published.sample(tmp_path / "images.tar")
    call()
    images = images_of(call.out)
    card = card_of(call.out)
    assert open_images(call.out).shape == (3, 16, 16) and len(images) == IMAGES
    assert images.float().std() > 5 and len({bytes(image.numpy()) for image in images}) == IMAGES
    assert (card["model"]["status"], card["evaluations"], card["uint8"]) == ("released", 2, "truncate")
    assert card["model"]["source"]["weights"] == "ema"
    assert not (published.folder / "latents").exists()


def test_the_manifest_would_say_the_same(published, tmp_path):
    published.fetch("imagenet-train")
    published.encode()
    manifest = published.plan.file("manifest", latents="imagenet256-vavae")
    calls = published.sample(tmp_path / "without.tar"), published.sample(tmp_path / "with.tar", manifest)
    for call in calls:
        call()
    assert sha256(calls[0].out) == sha256(calls[1].out)


def test_two_processes_give_the_same_images(published, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "CHUNK", 5)
    one, two = published.sample(tmp_path / "one.tar"), published.sample(tmp_path / "two.tar")
    one()
    assert ranks(two, tmp_path, fault=five_at_once) == [0, 0], (tmp_path / "rank0.log").read_text()
    assert sha256(one.out) == sha256(two.out)


def five_at_once() -> None:
    generation.CHUNK = 5


def test_measured_statistics_need_the_manifest(pipeline, tmp_path):
    call = pipeline.sample("cd", "cm-2", tmp_path)
    at = call.arguments.index("--latents")
    call = Call("sample", [*call.arguments[: at + 1], *call.arguments[at + 2 :]], call.outputs)
    with pytest.raises(ConfigError, match="statistics: computed is in the latents' manifest; pass --latents"):
        call()
    manifest = pipeline.plan.file("manifest", latents="digits-latents")
    assert sample_inputs(pipeline.plan, "cd/base")["latents"] == [manifest]
