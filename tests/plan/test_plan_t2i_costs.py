"""What text to image costs: the text store and the training of adapters, before anything is run."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from configs import make_plan, raw_config
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("diffusers", reason="networks are counted")
pytest.importorskip("peft", reason="needs the extra [t2i]")

from fewstep.backbones import build
from fewstep.bench import estimate
from fewstep.bench.estimate import operations, parameters
from fewstep.config.base import merge
from fewstep.config.specs import CostLine
from fewstep.evaluation.scorers.blip_score import LARGE, TOKENS
from fewstep.plan import Plan
from fewstep.plan.costs_spec import text_bytes

ROW = 2 * ((77 + 256) * 4096 + 2048)
"""Bytes of a caption's embeddings by SD3's encoders: CLIP's 77 tokens and T5's 256, and the pooled one."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(merge(raw_config(), {"targets": ["table2"]}))


@pytest.fixture(scope="module")
def lines(plan) -> dict[str, estimate.Line]:
    return {line.name: line for line in estimate.estimate(plan.spec("costs", "costs"))}


def asked(plan: Plan, rule: str) -> list[CostLine]:
    return [line for line in plan.spec("costs", "costs").lines if line.rule == rule]


def test_nothing_is_unknown(lines):
    assert {rule: line.note for rule, line in lines.items() if line.note} == {}
    order = ["fetch", "encode", "manifest", "text", "adopt", "reembed", "train", "sample", "score", "table"]
    assert list(lines) == order


def test_the_text_stores(plan, lines):
    """100,000 captions of the data, 100 and 3,200 prompts, and the empty caption of each: 282 GB."""
    assert lines["text"].jobs == 3
    assert lines["text"].kept == (100_001 + 101 + 3_201) * ROW
    assert 281e9 < lines["text"].kept < 283e9
    # A device reads T5 for every caption.
    rate = plan.config.costs.text["sd3"].rate
    assert lines["text"].seconds == pytest.approx(103_300 / rate + 3 * plan.config.costs.start)
    assert lines["text"].unit == "GPU-hours"


@pytest.mark.parametrize(("t5", "gigabytes"), [(256, 273), (128, 168), (77, 126)])
def test_shorter_texts_of_t5_keep_less(t5, gigabytes, plan):
    encoder = plan.parts.text_encoders["sd3"].model_copy(update={"t5_length": t5})
    backbone = plan.run("decm-t2i").backbone
    assert 100_001 * text_bytes(encoder, backbone) / 1e9 == pytest.approx(gigabytes, abs=1)
    whole = encoder.model_copy(update={"dtype": "float32"})
    assert text_bytes(whole, backbone) == 2 * text_bytes(encoder, backbone)


def test_words_are_numbers(demo_plan):
    encoder = demo_plan.parts.text_encoders["scenes-words"]
    assert text_bytes(encoder, demo_plan.run("scenes-clip").backbone) == 8 * encoder.length


def test_training_is_counted(plan, lines):
    (line,) = asked(plan, "train")
    (work,) = line.work
    assert (work.network, work.teacher, work.guided) == ("sd35-medium-lora", "sd35-medium-smooth", True)
    assert (work.images, work.tokens, work.rate) == (25_000 * 512, 333, None)
    assert lines["train"].source == "counted" and lines["train"].unit == "GPU-hours"
    # At least student, its tangent and the guided teacher, and a backward: well above ten evaluations.
    one = operations(plan.parts.backbones["sd35-medium-lora"], 333)
    evaluations = lines["train"].seconds * plan.config.costs.operations.half.rate / (work.images * one)
    assert 4 < evaluations < 30


def test_captions_are_counted_with_the_network(plan):
    """The transformer's tokens are those of image and caption."""
    backbone = plan.parts.backbones["sd35-medium"]
    few, many = (operations(backbone, tokens) for tokens in (77, 333))
    assert 1.1 * few < many < 2 * few
    # Two for each weight of 2.2 billion and token: 1,024 of the image through half of them, 333 through half.
    assert many == pytest.approx(2 * 2.2e9 * (1024 + 333) / 2, rel=0.5)


def test_a_lora_keeps_its_adapters(plan, lines):
    lora, whole = (plan.parts.backbones[name] for name in ("sd35-medium-lora", "sd35-medium"))
    assert lines["train"].kept == 4 * parameters(lora)
    # Each state has weights, averages and two moments.
    assert lines["train"].temporary == estimate.STATES * 4 * lines["train"].kept
    # Rank 64 on attention and the embedder of times, 48.1 million, and the embedder of target times.
    target = 256 * 1536 + 1536 + 1536 * 1536 + 1536
    assert parameters(lora) == pytest.approx(48.1e6 + target, rel=2e-3)
    assert parameters(whole) == pytest.approx(2.243e9, rel=1e-2)
    for rule in ("adopt", "reembed"):
        assert lines[rule].kept == 4 * parameters(whole)


def test_kept_is_what_the_file_holds(demo_plan):
    backbone = demo_plan.parts.backbones["sd3-scenes-lora"]
    net = build(backbone)
    tensors = net.state_dict()
    assert parameters(backbone) == sum(tensors[name].numel() for name in net.trained)


def test_guided_steps_are_two_evaluations(plan):
    works = [line.work[0] for line in asked(plan, "sample")]
    prompts = (1000, 3200)
    teacher = {("sd35-medium", images * steps * 2) for images in prompts for steps in (4, 32, 50)}
    student = {("sd35-medium-lora", images * steps) for images in prompts for steps in (1, 2, 4, 8, 50)}
    assert {(work.network, work.images) for work in works} == teacher | student


def test_scores_are_by_every_scorer(plan, lines):
    kinds = ["clip", "blip", "image-reward"]
    paper = {(f"scores by {kind}", 1000) for kind in kinds}
    common = {(f"scores by {kind}", 3200) for kind in [*kinds, "pickscore", "hps"]}
    found = [{(work.name, work.images) for work in line.work} for line in asked(plan, "score")]
    assert {frozenset(work) for work in found} == {frozenset(paper), frozenset(common)}
    assert lines["score"].jobs == 16


def clip_of(image: tuple[int, int], text: tuple[int, int, int]) -> tuple[Any, Any]:
    """Calls of both towers of a CLIP: width and layers of each, and heads of the text's."""
    from transformers import CLIPConfig, CLIPModel

    image_tower, text_tower = (
        {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        for width, layers in (image, text[:2])
    )
    image_tower |= {"num_attention_heads": 16, "patch_size": 14}
    text_tower |= {"num_attention_heads": text[2]}
    with torch.device("meta"):
        net = CLIPModel(CLIPConfig(text_config=text_tower, vision_config=image_tower))
        tokens, pixels = torch.ones(1, 77, dtype=torch.long), torch.ones(1, 3, 224, 224)
    return partial(net.get_image_features, pixel_values=pixels), partial(net.get_text_features, tokens)


def blip_of(look: bool) -> tuple[Any, Any]:
    """Calls of both encoders of BLIP; ``look``: the text at the image."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    with torch.device("meta"):
        net = BlipForImageTextRetrieval(BlipConfig(**LARGE))
        tokens, pixels = torch.ones(1, TOKENS, dtype=torch.long), torch.ones(1, 3, 224, 224)
        seen = {"encoder_hidden_states": torch.ones(1, 197, 1024)} if look else {}
    return partial(net.vision_model, pixel_values=pixels), partial(net.text_encoder, tokens, **seen)


@pytest.mark.parametrize("name", ["clip", "blip", "image_reward", "pickscore", "hps"])
def test_rates_of_scorers_are_their_operations(name, plan):
    """Counted on networks of the published sizes."""
    large, huge = ((1024, 24), (768, 12, 12)), ((1280, 32), (1024, 24, 16))
    if name in ("blip", "image_reward"):
        calls = blip_of(look=name == "image_reward")
    else:
        calls = clip_of(*(large if name == "clip" else huge))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for call in calls:
            call()
    costs = plan.config.costs
    counted = costs.operations.float32.rate / counter.get_total_flops()
    assert costs.score[name].rate == pytest.approx(counted, rel=0.05)


def test_live_text_keeps_nothing_and_encodes_every_batch(plan):
    live = make_plan(merge(raw_config(), {"targets": ["table2"], "text": "live"}))
    assert [line.kept for line in asked(live, "text")] == [101 * ROW, 3_201 * ROW]
    (line,) = asked(live, "train")
    assert [(work.name, work.images) for work in line.work[1:]] == [("captions through sd3", 25_000 * 512)]
    assert line.device == "gpu"


def test_live_text_that_memory_keeps_is_encoded_once():
    live = make_plan(merge(raw_config("demo"), {"targets": ["table2"], "text": "live"}))
    counts = {
        work.images
        for line in asked(live, "train")
        for work in line.work
        if work.name == "captions through scenes-clip"
    }
    assert counts == {1901}


def test_questions_are_dear():
    """Of TwinFlow's table: an H100 answers the questions of a cell's 4,260 images in most of an hour."""
    asked_for = make_plan(merge(raw_config(), {"targets": ["twinflow-table1"]}))
    works = {work.name: work for line in asked(asked_for, "score") for work in line.work}
    assert works.keys() == {"scores by mask2former", "scores by questions"}
    questions, objects = works["scores by questions"], works["scores by mask2former"]
    assert (questions.images, objects.images) == (4260, 2212)
    assert 0.5 < questions.images / questions.rate.rate / 3600 < 1.5
    assert objects.images / objects.rate.rate < 600
    assert {work.rate.source for work in works.values()} == {"estimated"}
