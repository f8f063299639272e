"""The CLIP score, by a CLIP that was trained here and by a published one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

pytest.importorskip("transformers")

from tiny_scorers import clip_cosines, clip_folder, clip_net, open_clip_state, parts, pictures, prompts
from tiny_text import CLIP, clip_file, write_record

from fewstep.backbones.model_file import load_model, load_network, save_model
from fewstep.config import ConfigError
from fewstep.evaluation.scorers.cosine_score import CosineScorer, open_clip
from fewstep.evaluation.scorers.drawn_shapes import drawn_shapes
from fewstep.evaluation.scorers.towers import trained_towers


def scorer(weights: Path) -> CosineScorer:
    return CosineScorer("clip", "0" * 64, "cpu", trained_towers(weights, CLIP, "cpu"), "a cosine")


def opened(record: Path) -> CosineScorer:
    return open_clip(parts("clip", "clip", (record, "model.safetensors")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_file(tmp_path_factory.mktemp("clip") / "clip.safetensors")


def test_a_trained_clip(trained):
    """The cosine, with the card's vocabulary: start 2, words, end 3, padding 0, unknown 1."""
    net, card = load_network(trained)
    words = {word: number for number, word in enumerate(card["text"]["vocabulary"])}
    images = pictures(3, 16, 16)
    ids = [
        [2, words["a"], words["dog"], 3, 0, 0, 0, 0],
        [2, words["two"], 1, words["cats"], 3, 0, 0, 0],
        [2, words["a"], words["dog"], 3, 0, 0, 0, 0],
    ]
    expected = cosine_similarity(
        net.embed_images(images / 127.5 - 1), net.embed_tokens(torch.tensor(ids)), dim=1
    )
    given = prompts("a dog", "two quick cats", "A dog")
    found = scorer(trained)(images, given)
    torch.testing.assert_close(found, expected)
    assert found.std() > 0


def test_long_prompts_and_grey_images_of_a_trained_clip(trained):
    one = scorer(trained)
    long = " ".join(["a dog"] * 200)
    cut = one(pictures(1, 16, 16), prompts(long))
    torch.testing.assert_close(cut, one(pictures(1, 16, 16), prompts("a dog a dog a dog")))
    grey = pictures(2, 16, 16)[:, :1]
    same = one(grey.expand(-1, 3, -1, -1), prompts("a dog", "a red cat"))
    torch.testing.assert_close(one(grey, prompts("a dog", "a red cat")), same)


def test_images_of_another_size_of_a_trained_clip(trained):
    with pytest.raises(ValueError, match=r"the CLIP takes images \(3, 16, 16\), not \(3, 24, 24\)"):
        scorer(trained)(pictures(1, 24, 24), prompts("a dog"))


def test_a_clip_without_vocabulary(trained, tmp_path):
    tensors, _ = load_model(trained)
    save_model(tmp_path / "bare.safetensors", tensors, CLIP, {})
    with pytest.raises(ConfigError, match=r"text\.vocabulary is missing in its card"):
        trained_towers(tmp_path / "bare.safetensors", CLIP, "cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a folder as OpenAI's CLIP has it, with random weights."""
    return clip_folder(tmp_path_factory.mktemp("published") / "clip", clip_net().state_dict())


def test_a_published_clip(published):
    """The cosine by plain torch, from an image that is not square; a prompt in another order has another."""
    images = pictures(2, 48, 48)[:, :, :, :40].contiguous()
    for given in (["a dog", "a red cat"], ["a red cat", "dog a"]):
        found = opened(published)(images, prompts(*given))
        expected = clip_cosines(open_clip_state(), images, given)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_published_clip_that_is_not_what_was_fetched(published, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for file in published.with_suffix("").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    record = write_record(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"does not name adapter_config\.json"):
        opened(record)
    (folder / "adapter_config.json").unlink()
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="differs from"):
        opened(record)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="not a CLIP of transformers"):
        opened(write_record(folder))


def test_the_drawn_shapes():
    test = drawn_shapes([3, 64, 64])
    assert test.images.shape == (12, 3, 64, 64) and test.images.dtype == torch.uint8
    assert len({picture.numpy().tobytes() for picture in test.images}) == 12
    for own, other in zip(test.own, test.others, strict=True):
        assert not set(own["prompt"].split()[1:]) & set(other["prompt"].split()[1:])
    corner, middle = test.images[0, :, 0, 0], test.images[0, :, 32, 32]
    assert corner.tolist() == [255] * 3 and middle.tolist() == [220, 30, 30]
    assert drawn_shapes([1, 8, 8]).images.shape == (12, 1, 8, 8)


def test_a_clip_that_was_never_trained_is_refused(published):
    fault = opened(published).faults(drawn_shapes([3, 64, 64]))
    assert "score higher with their own prompt" in fault
