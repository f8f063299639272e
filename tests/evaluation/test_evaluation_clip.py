"""The CLIP score, by a CLIP that was trained here and by a published one, against what transformers says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

pytest.importorskip("transformers")

from tiny_text import CLIP, clip_file, write_record
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from fewstep.backbones.model_file import load_model, load_network, save_model
from fewstep.config import ConfigError
from fewstep.evaluation.scorers.clip_score import ClipScorer, Towers, published_towers, trained_towers
from fewstep.evaluation.scorers.drawn_shapes import drawn_shapes
from fewstep.evaluation.scorers.geneval import Prompt

WORDS = ["a", "dog", "red", "cat", "square", "circle"]
SIDE = 24


def prompts(*texts: str) -> list[Prompt]:
    return [{"prompt": text} for text in texts]


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=draws, dtype=torch.uint8)


def scorer(towers: Towers) -> ClipScorer:
    return ClipScorer("clip", "0" * 64, "cpu", towers)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_file(tmp_path_factory.mktemp("clip") / "clip.safetensors")


def test_a_trained_clip(trained):
    """The cosine, with the card's vocabulary: start 2, words, end 3, padding 0, unknown 1."""
    net, card = load_network(trained)
    words = {word: number for number, word in enumerate(card["text"]["vocabulary"])}
    images = pictures(3, 16)
    ids = [
        [2, words["a"], words["dog"], 3, 0, 0, 0, 0],
        [2, words["two"], 1, words["cats"], 3, 0, 0, 0],
        [2, words["a"], words["dog"], 3, 0, 0, 0, 0],
    ]
    expected = cosine_similarity(
        net.embed_images(images / 127.5 - 1), net.embed_tokens(torch.tensor(ids)), dim=1
    )
    given = prompts("a dog", "two quick cats", "A dog")
    found = scorer(trained_towers(trained, CLIP, "cpu"))(images, given)
    torch.testing.assert_close(found, expected)
    assert found.std() > 0


def test_long_prompts_and_grey_images_of_a_trained_clip(trained):
    one = scorer(trained_towers(trained, CLIP, "cpu"))
    long = " ".join(["a dog"] * 200)
    cut = one(pictures(1, 16), prompts(long))
    torch.testing.assert_close(cut, one(pictures(1, 16), prompts("a dog a dog a dog")))
    grey = pictures(2, 16)[:, :1]
    same = one(grey.expand(-1, 3, -1, -1), prompts("a dog", "a red cat"))
    torch.testing.assert_close(one(grey, prompts("a dog", "a red cat")), same)


def test_images_of_another_size_of_a_trained_clip(trained):
    with pytest.raises(ValueError, match=r"the CLIP takes images \(3, 16, 16\), not \(3, 24, 24\)"):
        scorer(trained_towers(trained, CLIP, "cpu"))(pictures(1, 24), prompts("a dog"))


def test_a_clip_without_vocabulary(trained, tmp_path):
    tensors, _ = load_model(trained)
    save_model(tmp_path / "bare.safetensors", tensors, CLIP, {})
    with pytest.raises(ConfigError, match=r"text\.vocabulary is missing in its card"):
        trained_towers(tmp_path / "bare.safetensors", CLIP, "cpu")


def byte_tokenizer(length: int) -> CLIPTokenizer:
    """CLIP's kind of tokenizer: a token for each letter, and one for each of WORDS."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    units = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                units.append("".join(pair))
            parts = ["".join(pair), *parts[2:]]
    units += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a folder as OpenAI's CLIP has it, with random weights."""
    folder = tmp_path_factory.mktemp("published") / "clip"
    tokenizer = byte_tokenizer(12)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 12,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    image = {"image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = CLIPModel(CLIPConfig(text_config=tower | words, vision_config=tower | image, projection_dim=8))
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return write_record(folder)


def test_a_published_clip(published):
    """Resized, bicubic, cropped in the middle, and normalised, by Pillow and by hand."""
    one = scorer(published_towers(published, "model.safetensors", "cpu"))
    images = pictures(2, 48)[:, :, :, :40].contiguous()
    mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    pixels = []
    for picture in images:
        resized = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((24, 28), Image.Resampling.BICUBIC)
        cropped = np.asarray(resized)[2:26]
        pixels.append(((cropped / 255 - mean) / std).transpose(2, 0, 1))
    net = CLIPModel.from_pretrained(published.with_suffix(""))
    tokenizer = byte_tokenizer(12)
    numbers = tokenizer.get_vocab()
    start, end = numbers["<|startoftext|>"], numbers["<|endoftext|>"]
    ids = [
        [start, numbers["a</w>"], numbers["dog</w>"], end, *[end] * 8],
        [start, numbers["a</w>"], numbers["red</w>"], numbers["cat</w>"], end, *[end] * 7],
    ]
    with torch.no_grad():
        output = net(
            input_ids=torch.tensor(ids), pixel_values=torch.tensor(np.stack(pixels), dtype=torch.float32)
        )
    expected = cosine_similarity(output.image_embeds, output.text_embeds)
    found = one(images, prompts("a dog", "a red cat"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert one(images, prompts(" ".join(["dog"] * 400), "a cat")).isfinite().all()
    assert one(images[:, :1], prompts("a dog", "a cat")).isfinite().all()


def test_a_published_clip_that_is_not_what_was_fetched(published, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for file in published.with_suffix("").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    record = write_record(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"does not name adapter_config\.json"):
        published_towers(record, "model.safetensors", "cpu")
    (folder / "adapter_config.json").unlink()
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="differs from"):
        published_towers(record, "model.safetensors", "cpu")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="not a CLIP of transformers"):
        published_towers(write_record(folder), "model.safetensors", "cpu")


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
    fault = scorer(published_towers(published, "model.safetensors", "cpu")).faults(drawn_shapes([3, 64, 64]))
    assert "score higher with their own prompt" in fault
