"""Scores by questions: DPG-Bench and Soft-TIFA by hand, and a tiny random Qwen3-VL."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scoring_factories import SAMPLE
from tiny_pipeline import Call, refused, replaced
from torch import Tensor

pytest.importorskip("transformers")

from tiny_qwen import qwen_folder, tokenizer
from tiny_text import write_record

from fewstep.config import dump
from fewstep.config.settings import Weights
from fewstep.config.specs import CellKey, PromptScoreSpec
from fewstep.config.text import PromptProtocol, PromptSet, Scorer
from fewstep.data.asset_files import read_record
from fewstep.evaluation.image_archive import write_images
from fewstep.evaluation.prompt_scoring import check_prompts, compute_metrics
from fewstep.evaluation.scorers.answers import NO, YES, Qwen3VL
from fewstep.evaluation.scorers.drawn_shapes import COLOURS, SHAPES, drawn_shapes
from fewstep.evaluation.scorers.interface import Parts
from fewstep.evaluation.scorers.question_score import (
    DpgScorer,
    SoftTifaScorer,
    check_dpg,
    check_soft_tifa,
    dpg_row,
    open_questions,
    spellings,
)

IMAGE = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


def asked(number: int, category: str, *parents: int) -> dict[str, Any]:
    return {"id": number, "question": f"question {number}?", "category": category, "parents": [*parents]}


def bag(*questions: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": "a red bag", "id": "a", "questions": [*questions]}


class Says:
    """A stand-in for a model: what ``answer`` says to image and question, with certainty."""

    called = "a stand-in"
    words = ("yes", " Yes", "no", "a bag", "NO")

    def __init__(self, answer: Callable[[Tensor, str], str]) -> None:
        self.answer = answer

    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        said = [self.words.index(self.answer(*pair)) for pair in zip(images, questions, strict=True)]
        return torch.eye(len(self.words))[said]

    def beginnings(self, answers: Sequence[str]) -> list[int]:
        return [self.words.index(answer) for answer in answers if answer in self.words]

    def text(self, token: int) -> str:
        return self.words[token]


# DPG-Bench

QUESTIONS = [asked(1, "entity"), asked(2, "attribute", 1), asked(3, "attribute", 2), asked(4, "global")]


@pytest.mark.parametrize(
    ("said", "share", "neither"),
    [
        (["yes", "yes", "yes", "yes"], 1.0, 0),
        (["no", "yes", "yes", "yes"], 1 / 4, 0),  # 2 hangs on 1, and 3 on 2: 4 alone is left
        (["yes", "no", "yes", "yes"], 2 / 4, 0),
        (["yes", "yes", "no", "no"], 2 / 4, 0),
        (["maybe", "yes", "yes", "yes"], 1 / 4, 1),  # as no
        (["", "a bag", "yes.", "no"], 0.0, 3),
    ],
)
def test_an_image_of_dpg(said, share, neither):
    row = dpg_row(QUESTIONS, said)
    assert row[:2] == [share, neither]
    yes = [answer == "yes" for answer in said]
    # global, entity, attribute, relation, other: questions and those answered yes, whatever they hang on.
    assert row[2:] == [1, yes[3], 1, yes[0], 2, yes[1] + yes[2], 0, 0, 0, 0]


def test_several_parents_and_parents_that_come_later():
    questions = [asked(1, "other", 2, 3), asked(2, "entity"), asked(3, "entity")]
    assert dpg_row(questions, ["yes", "yes", "yes"])[0] == 1
    assert dpg_row(questions, ["yes", "yes", "no"])[0] == pytest.approx(1 / 3)


def test_dpg_by_hand():
    """Two prompts of two images: per image, per prompt, over all; categories over all images."""
    prompts = [bag(*QUESTIONS), bag(asked(1, "entity"), asked(2, "relation", 1))]
    shown = [prompts[image % 2] for image in range(4)]
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    answers = [
        ["yes", "yes", "no", " Yes"],  # 3 of 4
        ["no", "yes"],  # 0 of 2, and the relation's answer is yes
        ["no", "yes", "yes", "a bag"],  # 0 of 4, one is neither
        ["yes", "NO"],  # 1 of 2
    ]

    def answer(image: Tensor, question: str) -> str:
        number = int(question.removeprefix("question ").partition("?")[0])
        assert question == f"question {number}? Answer yes or no."
        return answers[int(image[0, 0, 0])][number - 1]

    scorer = DpgScorer("dpg", "0" * 64, "cpu", Says(answer))
    values = scorer(images, shown).tolist()
    protocol = PromptProtocol.model_validate(
        {
            "kind": "prompt-scores",
            "prompts": "dpg-bench",
            "images": 4,
            "scorers": {"dpg": {"kind": "questions", "weights": {"asset": "x", "file": "y"}}},
            "metrics": ["dpg", "dpg_global", "dpg_entity", "dpg_attribute", "dpg_relation"],
        }
    )
    assert compute_metrics(protocol, {"dpg": scorer}, {"dpg": values}, shown) == {
        "dpg": pytest.approx(100 * ((3 / 4 + 0) / 2 + (0 + 1 / 2) / 2) / 2),
        "dpg_global": pytest.approx(100 * 1 / 2),
        "dpg_entity": pytest.approx(100 * 2 / 4),
        "dpg_attribute": pytest.approx(100 * 3 / 4),
        "dpg_relation": pytest.approx(100 * 1 / 2),
    }
    assert scorer.remarks(values) == {"questions": 12, "neither_yes_nor_no": pytest.approx(1 / 12)}
    assert scorer.card["differs"] == "questions are answered by Qwen3-VL, not by mPLUG-large"
    assert "a stand-in" in scorer.card["computes"]


# Soft-TIFA


def test_how_answers_are_spelled():
    assert spellings("Is the bag red?", "Yes") == YES
    assert spellings("How many bags are in the image?", "three") == (
        *("three", "Three", "3"),
        *(" three", " Three", " 3"),
    )


class Believes(Says):
    """One that gives every word of ``chances`` its probability, whatever it is asked."""

    def __init__(self, chances: dict[str, float]) -> None:
        self.words, self.chances = tuple(chances), chances
        self.asked: list[str] = []

    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        self.asked += questions
        return torch.tensor([[*self.chances.values()]] * len(questions))


def test_soft_tifa_by_hand():
    """Yes 0.5 + 0.125, "three" 0.25 in letters and as a figure: means of 5/8, 1/4 and 5/8."""
    model = Believes({"Yes": 0.5, " yes": 0.125, "three": 0.1875, "3": 0.0625, "no": 0.125})
    scorer = SoftTifaScorer("geneval2", "0" * 64, "cpu", model)
    pairs = [
        ["Are there any cows in the image?", "Yes"],
        ["How many cows are in the image?", "three"],
        ["Are the cows plastic?", "Yes"],
    ]
    prompts = [{"prompt": "three plastic cows", "vqa_list": pairs}, {"prompt": "cows", "vqa_list": pairs[:1]}]
    values = scorer(IMAGE.expand(2, -1, -1, -1), prompts)
    first = (0.625 * 0.25 * 0.625) ** (1 / 3), (0.625 + 0.25 + 0.625) / 3
    torch.testing.assert_close(values, torch.tensor([[*first], [0.625, 0.625]]))
    found = scorer.overall(values.tolist(), prompts)
    assert found == {"": pytest.approx((first[0] + 0.625) / 2), "atoms": pytest.approx((0.5 + 0.625) / 2)}
    assert model.asked[1] == "How many cows are in the image? Answer in one word."


def test_an_answer_without_any_probability():
    scorer = SoftTifaScorer("geneval2", "0" * 64, "cpu", Believes({"Yes": 0.0, "no": 1.0}))
    prompt = {"prompt": "x", "vqa_list": [["Is it?", "Yes"]]}
    assert scorer(IMAGE, [prompt]).tolist() == [[0.0, 0.0]]


# What cannot be asked


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "vqa_list: is missing or empty"),
        ({"vqa_list": []}, "vqa_list: is missing or empty"),
        ({"vqa_list": [["Is it?"]]}, r"vqa_list\.0: must be a question and its answer, not \['Is it\?'\]"),
        ({"vqa_list": [["Is it?", "Yes"], [" ", "Yes"]]}, r"vqa_list\.1: the question is empty"),
        ({"vqa_list": [["Is it?", "No"]]}, r"vqa_list\.0: the answer is 'No', not Yes, to 'Is it\?'"),
        (
            {"vqa_list": [["How many?", "12"]]},
            r"vqa_list\.0: the answer is '12', not a number from one to ten",
        ),
    ],
)
def test_prompts_without_questions_of_geneval2(prompt, message):
    with pytest.raises(ValueError, match=rf"x\.jsonl: line 3: {message}"):
        check_soft_tifa(prompt, "x.jsonl: line 3")


def test_prompts_without_questions_of_dpg():
    with pytest.raises(ValueError, match=r"line 3: questions: are missing; .* format: dpg-csv"):
        check_dpg({"prompt": "x"}, "x.jsonl: line 3")
    check_dpg(bag(asked(1, "entity")), "here")


# The self-test


def sees(image: Tensor, question: str) -> str:
    """Looks at the drawn shapes."""
    middle = tuple(image[:, image.shape[1] // 2, image.shape[2] // 2].tolist())
    colour = next(name for name, value in COLOURS.items() if value == middle)
    corner = bool((image[:, 13, 13] < 255).any())
    shape = "square" if corner else "circle" if bool((image[:, 16, 32] < 255).any()) else "triangle"
    assert shape in SHAPES
    assert question.startswith("Is there a ") and question.endswith(" in the image? Answer yes or no.")
    return "yes" if f"a {colour} {shape} in" in question else "no"


def test_the_self_test():
    """Drawn shapes: of each is asked whether it is there, and whether another one is."""
    test = drawn_shapes([3, 64, 64])
    assert DpgScorer("dpg", "0" * 64, "cpu", Says(sees)).faults(test) == ""
    always = DpgScorer("dpg", "0" * 64, "cpu", Says(lambda image, question: "yes"))
    assert always.faults(test) == "its self-test: of 24 questions only 12 are answered right"
    evades = SoftTifaScorer("geneval2", "0" * 64, "cpu", Says(lambda image, question: "a bag"))
    assert "of 24 questions only 0 are answered right" in evades.faults(test)
    broken = DpgScorer("dpg", "0" * 64, "cpu", Believes({"yes": math.nan}))
    assert broken.faults(test) == "its self-test gives NaN or infinity"


# The model itself


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_folder(tmp_path_factory.mktemp("qwen") / "qwen")


def test_a_model_of_the_hub(record):
    """Beginnings of answers as generation has them; questions of other lengths beside it change nothing."""
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    folder = record.with_suffix("")
    assert len([*folder.glob("*.safetensors")]) > 1
    model = Qwen3VL(folder, "cpu")
    images = torch.randint(0, 256, (2, 3, 48, 32), dtype=torch.uint8)
    questions = ["Is it red?", "Are there two big circles in the image, both of them blue?"]
    found = model(images, questions)
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    processor = AutoProcessor.from_pretrained(folder)
    net = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    for image, question, row in zip(images, questions, found, strict=True):
        content = [
            {"type": "image", "image": image.permute(1, 2, 0).numpy()},
            {"type": "text", "text": question},
        ]
        given = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        said = net.generate(
            **given, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        torch.testing.assert_close(row, said.scores[0][0].float().softmax(-1), atol=1e-5, rtol=1e-4)
        assert int(row.argmax()) == int(said.sequences[0, -1])
    assert found[0].sub(found[1]).abs().max() > 1e-4
    turned = model(images.flip(0), questions)
    assert found.sub(turned).abs().max() > 1e-5  # it looks at the images
    grey = images[:, :1].contiguous()
    torch.testing.assert_close(model(grey, questions), model(grey.expand(-1, 3, -1, -1), questions))


def test_beginnings(record):
    model, vocabulary = Qwen3VL(record.with_suffix(""), "cpu"), tokenizer().get_vocab()
    assert model.beginnings(YES) == [vocabulary[word] for word in ("Yes", "yes", "ĠYes", "Ġyes")]
    # " No" and " no" begin with a space here, which counts once.
    assert model.beginnings(NO) == [vocabulary[word] for word in ("No", "no", "Ġ")]
    assert model.text(vocabulary["Ġyes"]) == " yes"


def test_folders_that_are_no_model(record, tmp_path):
    folder = tmp_path / "qwen"
    folder.mkdir()
    for file in record.with_suffix("").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.json").unlink()
    with pytest.raises(ValueError, match="qwen: has no chat template"):
        Qwen3VL(folder, "cpu")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="qwen: not the processor of a Qwen3-VL"):
        Qwen3VL(folder, "cpu")


FILE = "model.safetensors.index.json"


def test_what_is_opened(record):
    entry = Scorer(kind="questions", weights=Weights(asset="qwen", file=FILE))
    for name, kind in (("dpg", DpgScorer), ("geneval2", SoftTifaScorer)):
        given = Parts(name, entry, {"weights": record}, None, Path("unread"), torch.device("cpu"))
        scorer = open_questions(given)
        assert type(scorer) is kind and scorer.sha256 == read_record(record).digest
    assert "answered right" in scorer.faults(drawn_shapes([3, 32, 32]))


# The stage


def stage(folder: Path, record: Path) -> Call:
    """GenEval 2 on two images, by the tiny model."""
    lines = [
        {"prompt": f"{count} cows", "vqa_list": [["How many cows are in the image?", count]]}
        for count in ("one", "two")
    ]
    asset = folder / "prompts"
    asset.mkdir()
    (asset / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = {"asset": "qwen", "file": FILE}
    spec = PromptScoreSpec(
        cell=CellKey(method="decm", variant="base", seed=0, sampler="cm", steps=1, protocol="made-up"),
        protocol=PromptProtocol.model_validate(
            {
                "kind": "prompt-scores",
                "prompts": "geneval2",
                "images": 2,
                "scorers": {"geneval2": {"kind": "questions", "weights": weights}},
                "metrics": ["geneval2", "geneval2_atoms"],
            }
        ),
        prompts=PromptSet(asset="prompts", files=["data.jsonl"], prompts=2),
        scorers={},
        sample=SAMPLE.model_copy(update={"images": 2, "image": [3, 32, 32]}),
    )
    (folder / "spec.json").write_text(dump(spec))
    model = {"status": "trained", "code": None, "backbone": {"kind": "mlp"}}
    card = {**spec.sample.model_dump(mode="json"), "spec": "0", "evaluations": 1, "model": model}
    write_images(folder / "images.tar", card, [(np.zeros((2, 3, 32, 32), np.uint8), np.arange(2))])
    out = folder / "metrics.json"
    words = ["--spec", str(folder / "spec.json"), "--images", str(folder / "images.tar"), "--scorers"]
    words += [str(record), "--prompts", str(write_record(asset)), "--out", str(out)]
    return Call("score", words, [out])


def test_random_weights_are_refused_by_the_stage(record, tmp_path):
    refused(stage(tmp_path, record), "metrics.json: scorer geneval2: its self-test: of 24 questions only")


def test_the_stage(record, tmp_path, monkeypatch):
    monkeypatch.setattr(SoftTifaScorer, "faults", lambda scorer, test: "")
    call = stage(tmp_path, record)
    call()
    found = json.loads(call.out.read_text())
    assert found["geneval2_atoms"] == pytest.approx(found["geneval2"])  # one question each
    assert 0 < found["geneval2"] < 1
    assert found["scorers"]["geneval2"]["sha256"] == read_record(record).digest
    call.out.unlink()
    refused(replaced(call, "--scorers"), "0 files for the scorers geneval2")


def test_metrics_over_questions_that_there_are_not(record):
    protocol = PromptProtocol.model_validate(
        {
            "kind": "prompt-scores",
            "prompts": "dpg-bench",
            "images": 1,
            "scorers": {"dpg": {"kind": "questions", "weights": {"asset": "x", "file": "y"}}},
            "metrics": ["dpg", "dpg_relation"],
        }
    )
    spec = PromptScoreSpec(
        cell=CellKey(method="decm", variant="base", seed=0, sampler="cm", steps=1, protocol="made-up"),
        protocol=protocol,
        prompts=PromptSet(asset="x", files=["dpg_bench.csv"], format="dpg-csv", prompts=1),
        scorers={},
        sample=SAMPLE,
    )
    with pytest.raises(ValueError, match=r"no prompt is of relation, which the protocol's metric dpg_rel"):
        check_prompts(spec, [bag(asked(1, "entity"))], record)
    check_prompts(spec, [bag(asked(1, "entity"), asked(2, "relation", 1))], record)
    with pytest.raises(ValueError, match=r"qwen\.json: dpg_bench\.csv: line 1: questions: are missing"):
        check_prompts(spec, [{"prompt": "x"}], record)
