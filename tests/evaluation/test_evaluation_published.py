"""BLIP, ImageReward, PickScore and HPS v2.1 in miniature: the numbers of plain torch, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import tiny_scorers as tiny
from tiny_scorers import parts, pictures, prompts
from tiny_text import write_record

from fewstep.config.text import ScorerKind
from fewstep.evaluation.prompt_scoring import OPENERS
from fewstep.evaluation.scorers import blip_score
from fewstep.evaluation.scorers.drawn_shapes import drawn_shapes
from fewstep.evaluation.scorers.interface import Parts, Scorer, SelfTest

TEXTS = ["a dog", "a red cat", "circle square"]


@pytest.fixture(autouse=True)
def small_blip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blip_score, "LARGE", tiny.BLIP)


@dataclass(frozen=True)
class Case:
    """A published scorer in files, and its number by hand."""

    parts: Parts
    state: tiny.State
    """Its weights by the names of its file."""
    write: Callable[[Path, tiny.State], Path]
    by_hand: Callable[[tiny.State, Tensor, Sequence[str]], Tensor]
    tokens: int
    """Words of the longest prompt that is not cut."""

    def open(self) -> Scorer:
        return OPENERS[self.parts.entry.kind](self.parts)

    def changed(self, folder: Path, state: tiny.State) -> Parts:
        """The same with other weights."""
        file = self.parts.entry.weights.file or ""
        tokenizer = self.parts.paths["tokenizer"], self.parts.entry.files["tokenizer"].file
        record = self.write(folder / "changed" / file, state)
        return parts(self.parts.entry.kind, self.parts.name, (record, file), tokenizer)


def pickscore_file(path: Path, state: tiny.State) -> Path:
    """Its weights by the names of transformers."""
    return tiny.clip_folder(path.parent, state)


def pickscores(_: tiny.State, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Of the same network, by the names of open_clip."""
    state = tiny.open_clip_state()
    return state["logit_scale"].exp() * tiny.clip_cosines(state, images, texts)


def halved(state: tiny.State) -> tiny.State:
    return {name: value.half().float() for name, value in state.items()}


@pytest.fixture(scope="module", params=["pickscore", "hps", "blip", "image_reward"])
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("scorers")
    if request.param in ("pickscore", "hps"):
        tokenizer = tiny.clip_folder(folder / "clip-h"), "config.json"
        published = request.param == "pickscore"
        state = tiny.clip_net().state_dict() if published else tiny.open_clip_state()
        tokens = tiny.LENGTH - 2
    else:
        tokenizer = tiny.vocabulary(folder / "bert"), "vocab.txt"
        state, tokens = tiny.blip_state(), tiny.TOKENS - 2
    write, by_hand, file, kind = {
        "pickscore": (pickscore_file, pickscores, "model.safetensors", "pickscore"),
        "hps": (
            tiny.hps_file,
            lambda own, *given: 100 * tiny.clip_cosines(halved(own), *given),
            "HPS_v2.1_compressed.pt",
            "hps",
        ),
        "blip": (tiny.blip_file, tiny.blip_cosines, "model_large.pth", "blip"),
        "image_reward": (tiny.image_reward_file, tiny.rewards, "ImageReward.pt", "image-reward"),
    }[request.param]
    record = write(folder / "weights" / file, state)
    return Case(parts(kind, request.param, (record, file), tokenizer), state, write, by_hand, tokens)


def test_numbers_by_hand(case):
    """From authors' names; a prompt of other words, and the words in another order, have other numbers."""
    scorer, images = case.open(), pictures(3)
    seen = []
    for texts in (TEXTS, TEXTS[1:] + TEXTS[:1], ["dog a", "cat red a", "square circle"]):
        found = scorer(images, prompts(*texts))
        expected = case.by_hand(case.state, images, texts)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        seen.append(found)
    for other in seen[1:]:
        assert ((seen[0] - other).abs() > 1e-3).all()
    assert ((seen[0] - scorer(images.flip(0), prompts(*TEXTS)))[[0, 2]].abs() > 1e-3).all()


def test_numbers_do_not_depend_on_the_images_beside(case):
    scorer, images = case.open(), pictures(3)
    alone = [scorer(images[row : row + 1], prompts(*TEXTS[row : row + 1])) for row in range(3)]
    torch.testing.assert_close(torch.cat(alone), scorer(images, prompts(*TEXTS)), atol=1e-4, rtol=1e-5)


@pytest.mark.gpu
def test_numbers_on_a_gpu(case):
    there = OPENERS[case.parts.entry.kind](replace(case.parts, device=torch.device("cuda")))
    found = there(pictures(3), prompts(*TEXTS))
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, case.open()(pictures(3), prompts(*TEXTS)), atol=1e-2, rtol=1e-3)


def test_long_prompts_grey_images_and_other_sizes(case):
    scorer = case.open()
    long = ["a", *["dog", "cat", "red"] * 133]
    images = pictures(1)
    cut = scorer(images, prompts(" ".join(long[: case.tokens])))
    torch.testing.assert_close(scorer(images, prompts(" ".join(long))), cut)
    shorter = scorer(images, prompts(" ".join(long[: case.tokens - 1])))
    assert not torch.allclose(cut, shorter, atol=1e-4)
    grey = images[:, :1]
    same = scorer(grey.expand(-1, 3, -1, -1), prompts(*TEXTS[:1]))
    torch.testing.assert_close(scorer(grey, prompts(*TEXTS[:1])), same)
    for height, width in ((8, 8), (24, 24), (64, 48)):
        other = pictures(1, height, width)
        expected = case.by_hand(case.state, other, TEXTS[:1])
        torch.testing.assert_close(scorer(other, prompts(*TEXTS[:1])), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="images have 1 or 3 channels, not 4"):
        scorer(torch.zeros(1, 4, 24, 24, dtype=torch.uint8), prompts(*TEXTS[:1]))


def test_a_card_and_a_self_test(case):
    """A scorer that cannot tell prompts apart is refused."""
    scorer = case.open()
    assert scorer.card["sha256"] == case.parts.file("weights")[1]
    words = {"pickscore": "54.598", "hps": "100 x cosine", "blip": "BLIP", "image_reward": "standardised"}
    assert words[case.parts.name] in scorer.card["computes"]
    test = drawn_shapes([3, 64, 64])
    assert scorer(test.images, test.own).isfinite().all()
    fault = scorer.faults(SelfTest(test.images, test.own, test.own))
    assert fault == "its self-test: of 12 pictures only 0 score higher with their own prompt"


def told(given: Parts) -> str:
    with pytest.raises(ValueError) as error:
        OPENERS[given.entry.kind](given)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_of_another_network(case, tmp_path):
    name = next(name for name in case.state if name.endswith(("mlp.fc1.weight", "mlp.c_fc.weight")))
    without = {key: value for key, value in case.state.items() if key != name}
    said = told(case.changed(tmp_path / "a", without))
    assert "does not fit the backbone: missing" in said and "mlp.fc1.weight" in said
    said = told(case.changed(tmp_path / "b", case.state | {name: torch.zeros(3, 3)}))
    assert "shape of" in said and "mlp.fc1.weight is [3, 3], not [32, 16]" in said
    said = told(case.changed(tmp_path / "c", case.state | {"an_adapter": torch.zeros(3)}))
    assert said.endswith("unexpected an_adapter") and str(tmp_path / "c") in said


def test_a_head_of_another_network(tmp_path, monkeypatch):
    bert = tiny.vocabulary(tmp_path / "bert"), "vocab.txt"
    monkeypatch.setattr(tiny, "head_state", lambda: {"mlp.layers.0.weight": torch.zeros(2, 2)})
    record = tiny.image_reward_file(tmp_path / "weights" / "ImageReward.pt", tiny.blip_state())
    said = told(parts("image-reward", "image_reward", (record, "ImageReward.pt"), bert))
    assert "missing mlp.layers.0.bias, mlp.layers.2.weight" in said and "and 5 more" in said
    assert "mlp.layers.0.weight is [2, 2], not [1024, 12]" in said


def test_files_that_are_not_what_was_fetched(case, tmp_path):
    given = case.changed(tmp_path, case.state)
    path = given.file("weights")[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{path}: differs from {given.paths['weights']}: its sha256 is" in told(given)
    path.unlink()
    assert told(given) == (
        f"{given.paths['weights']}: files.{path.name}: {path} is missing; fetch the asset again "
        "(snakemake -R fetch)"
    )
    record = given.paths["tokenizer"]
    file = record.with_suffix("") / (given.entry.files["tokenizer"].file or "")
    given = case.changed(tmp_path / "again", case.state)
    kept = file.read_bytes()
    try:
        file.write_bytes(b"another")
        assert f"{file}: differs from {record}" in told(given)
    finally:
        file.write_bytes(kept)


def test_a_config_that_was_not_fetched_is_not_read(case, tmp_path):
    """Beside weights of one file it counts for nothing; in a folder that is read whole it is refused."""
    given = case.changed(tmp_path, case.state)
    record = given.paths["weights"]
    stranger = given.file("weights")[0].with_name("config.json")
    if case.parts.name == "pickscore":
        stranger = stranger.with_name("preprocessor_config_2.json")
    stranger.write_text("nothing")
    if case.parts.name != "pickscore":
        assert OPENERS[given.entry.kind](given).sha256 == given.file("weights")[1]
        return
    assert told(given).startswith(f"{record}: files: does not name {stranger.name}")


def test_files_that_run_code_are_not_opened(tmp_path):
    """Its hash is right, but it is not a file of tensors."""
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save({"model": {"x": Path("/")}}, folder / "blip.pth")
    bert = tiny.vocabulary(tmp_path / "bert"), "vocab.txt"
    said = told(parts("blip", "blip", (write_record(folder), "blip.pth"), bert))
    assert "holds pickled objects" in said and str(folder / "blip.pth") in said
    torch.save({"model": {"x": 1}}, folder / "blip.pth")
    said = told(parts("blip", "blip", (write_record(folder), "blip.pth"), bert))
    assert "not tensors: x" in said


def test_a_vocabulary_that_is_none(tmp_path):
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_bytes(b"\xff\xfe")
    record = tiny.blip_file(tmp_path / "weights" / "model.pth", tiny.blip_state())
    said = told(parts("blip", "blip", (record, "model.pth"), (write_record(bert), "vocab.txt")))
    assert f"{bert / 'vocab.txt'}: not the vocabulary of BERT" in said


def test_what_a_scorer_is_made_of():
    asset = {"asset": "some", "file": "weights.pt"}
    both = {"weights": asset, "tokenizer": asset}
    entry = tiny.Scorer.model_validate
    for kind in ("pickscore", "hps", "blip", "image-reward"):
        assert list(entry({"kind": kind} | both).files) == ["weights", "tokenizer"]
        with pytest.raises(ValueError, match="tokenizer belongs to, and is needed by"):
            entry({"kind": kind, "weights": asset})
        with pytest.raises(ValueError, match="must be of assets"):
            entry({"kind": kind, "weights": {"method": "mine"}, "tokenizer": asset})
    with pytest.raises(ValueError, match="tokenizer belongs to, and is needed by"):
        entry({"kind": "clip"} | both)
    assert OPENERS.keys() == set(get_args(ScorerKind))
