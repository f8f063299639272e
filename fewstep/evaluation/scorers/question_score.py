"""Scores by questions: DPG-Bench (arXiv 2403.05135), and GenEval 2's Soft-TIFA (arXiv 2512.16853)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...data.asset_files import read_record
from ...data.question_table import CATEGORIES
from .answers import ROWS, YES, Answerer, Qwen3VL
from .geneval import Prompt
from .interface import RIGHT, Parts, Scorer, SelfTest

YES_OR_NO = "{} Answer yes or no."
ONE_WORD = "{} Answer in one word."
"""Soft-TIFA's own words (github.com/facebookresearch/GenEval2, evaluation.py)."""
PERCENT = 100
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class QuestionScorer(Scorer):
    """Asks each image its prompt's questions.

    Args:
        model: answers them.
    """

    def __init__(self, name: str, sha256: str, device: torch.device | str, model: Answerer) -> None:
        super().__init__(name, sha256, device, ROWS)
        self._model = model

    def _answers(self, images: Tensor, questions: Sequence[Sequence[str]]) -> list[Tensor]:
        """For each image the probabilities of what the answers begin with, (questions, tokens)."""
        image = [place for place, texts in enumerate(questions) for _ in texts]
        asked = [text for texts in questions for text in texts]

        def ask(part: range) -> Tensor:
            rows = slice(part.start, part.stop)
            return self._model(images[image[rows]], asked[rows])

        found = torch.cat(self._fitting(ask, range(len(asked))))
        return list(found.split([len(texts) for texts in questions]))

    def _said(self, likely: Tensor) -> list[str]:
        """The most likely answers, in small letters: "yes", "no", or something else."""
        return [self._model.text(token).strip().lower() for token in likely.argmax(-1).tolist()]

    def faults(self, test: SelfTest) -> str:
        asked = [
            [YES_OR_NO.format(f"Is there {prompt['prompt']} in the image?") for prompt in both]
            for both in zip(test.own, test.others, strict=True)
        ]
        answers = self._answers(test.images, asked)
        if not all(bool(each.isfinite().all()) for each in answers):
            return "its self-test gives NaN or infinity"
        said = [answer for each in answers for answer in self._said(each)]
        right = sum(answer == ("yes", "no")[place % 2] for place, answer in enumerate(said))
        if right < RIGHT * len(said):
            return f"its self-test: of {len(said)} questions only {right} are answered right"
        return ""


class DpgScorer(QuestionScorer):
    """DPG-Bench: the share of an image's questions that are answered "yes", as are all that they depend on.

    The number is the mean over images, of which every prompt has equally many, in per cent. That of a
    category is the share of "yes" among all its questions about all images, whatever they depend on. The row
    of an image: its share, its answers that are neither "yes" nor "no", and of each category the number of
    questions and of those that are answered "yes".
    """

    differs = "questions are answered by Qwen3-VL, not by mPLUG-large"

    def __init__(self, name: str, sha256: str, device: torch.device | str, model: Answerer) -> None:
        super().__init__(name, sha256, device, model)
        self.computes = (
            f"DPG-Bench (arXiv 2403.05135), per cent; questions answered by {model.called}; an answer "
            "that is neither yes nor no counts as no"
        )

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        texts = [[YES_OR_NO.format(one["question"]) for one in prompt["questions"]] for prompt in prompts]
        answers = self._answers(images, texts)
        return torch.tensor(
            [
                dpg_row(prompt["questions"], self._said(each))
                for prompt, each in zip(prompts, answers, strict=True)
            ]
        )

    def overall(self, values: Sequence[Any], prompts: Sequence[Prompt]) -> dict[str, float]:
        totals = [sum(column) for column in zip(*values, strict=True)]
        counts = dict(zip(CATEGORIES, zip(totals[2::2], totals[3::2], strict=True), strict=True))
        shares = {name: PERCENT * right / asked for name, (asked, right) in counts.items() if asked}
        return {"": PERCENT * totals[0] / len(values), **shares}

    def remarks(self, values: Sequence[Any]) -> dict[str, float]:
        asked = sum(sum(row[2::2]) for row in values)
        return {"questions": asked, "neither_yes_nor_no": sum(row[1] for row in values) / asked}


def dpg_row(questions: Sequence[Mapping[str, Any]], said: Sequence[str]) -> list[float]:
    """The numbers of an image, as `DpgScorer` says.

    Args:
        said: the answer to each question, in small letters.
    """
    yes = {one["id"]: answer == "yes" for one, answer in zip(questions, said, strict=True)}
    parents = {one["id"]: one["parents"] for one in questions}

    def holds(number: int) -> bool:
        return yes[number] and all(map(holds, parents[number]))

    by_category: defaultdict[str, list[bool]] = defaultdict(list)
    for one in questions:
        by_category[one["category"]].append(yes[one["id"]])
    counts = [count for name in CATEGORIES for count in (len(by_category[name]), sum(by_category[name]))]
    share = sum(map(holds, yes)) / len(yes)
    neither = sum(answer not in ("yes", "no") for answer in said)
    return [float(number) for number in (share, neither, *counts)]


class SoftTifaScorer(QuestionScorer):
    """GenEval 2: an image's mean probability of its questions' right answers, geometric and arithmetic.

    Both are means over prompts, shares and not per cent. The row of an image holds both.
    """

    def __init__(self, name: str, sha256: str, device: torch.device | str, model: Answerer) -> None:
        super().__init__(name, sha256, device, model)
        self.computes = (
            f"GenEval 2 (arXiv 2512.16853), Soft-TIFA: probabilities of right answers by {model.called}, "
            "geometric mean over a prompt's questions; atoms: arithmetic mean"
        )

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        texts = [[ONE_WORD.format(question) for question, _ in prompt["vqa_list"]] for prompt in prompts]
        answers = self._answers(images, texts)
        return torch.tensor(
            [self._row(prompt["vqa_list"], each) for prompt, each in zip(prompts, answers, strict=True)]
        )

    def _row(self, asked: Sequence[Sequence[str]], likely: Tensor) -> list[float]:
        found = [
            float(row[self._model.beginnings(spellings(question, answer))].sum())
            for (question, answer), row in zip(asked, likely, strict=True)
        ]
        logarithms = [math.log(one) if one > 0 else -math.inf for one in found]
        return [math.exp(sum(logarithms) / len(found)), sum(found) / len(found)]

    def overall(self, values: Sequence[Any], prompts: Sequence[Prompt]) -> dict[str, float]:
        geometric, arithmetic = (sum(column) / len(values) for column in zip(*values, strict=True))
        return {"": geometric, "atoms": arithmetic}


def spellings(question: str, answer: str) -> tuple[str, ...]:
    """How a right answer may be spelled: a number in letters and as a figure, or "yes"; Soft-TIFA's rule."""
    if not question.startswith("How many"):
        return YES
    figure = str(NUMBERS.index(answer) + 1)
    words = (answer, answer.capitalize(), figure)
    return (*words, *(f" {word}" for word in words))


def check_dpg(prompt: Prompt, where: str) -> None:
    """Refuse a prompt without DPG-Bench's questions.

    Raises:
        ValueError: naming ``where`` and the key.
    """
    if not prompt.get("questions"):
        raise ValueError(
            f"{where}: questions: are missing; DPG-Bench needs a set of prompts of format: dpg-csv"
        )


def check_soft_tifa(prompt: Prompt, where: str) -> None:
    """Refuse a prompt without GenEval 2's questions and answers.

    Raises:
        ValueError: naming ``where`` and the key.
    """
    asked = prompt.get("vqa_list")
    if not isinstance(asked, list) or not asked:
        raise ValueError(
            f"{where}: vqa_list: is missing or empty; GenEval 2 needs questions with their answers"
        )
    for number, pair in enumerate(asked):
        here = f"{where}: vqa_list.{number}"
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise ValueError(f"{here}: must be a question and its answer, not {pair!r}")
        question, answer = pair
        if not question.strip():
            raise ValueError(f"{here}: the question is empty")
        counts = question.startswith("How many")
        if answer not in NUMBERS if counts else answer.lower() != "yes":
            wanted = "a number from one to ten" if counts else "Yes"
            raise ValueError(f"{here}: the answer is {answer!r}, not {wanted}, to {question!r}")


def open_questions(parts: Parts) -> QuestionScorer:
    """The scorer by a published Qwen3-VL, DPG-Bench's or GenEval 2's by the name of its metrics.

    Raises:
        ConfigError: a file is missing, or not the one that was fetched.
        ValueError: it is of another network.
    """
    model = Qwen3VL(parts.with_folder("weights")[0].parent, parts.device)
    scorer = {"dpg": DpgScorer, "geneval2": SoftTifaScorer}[parts.name]
    return scorer(parts.name, read_record(parts.paths["weights"]).digest, parts.device, model)
