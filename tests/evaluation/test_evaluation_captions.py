"""Sampling from captions: the prompts' store, the base of adapters, and what the card says of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from archive_contents import card_of, images_of
from tiny_pipeline import Call, refused, replaced

pytest.importorskip("transformers", reason="needs the extra [t2i]")
pytest.importorskip("peft", reason="needs the extra [t2i]")
from tiny_sd3 import ADAPTERS, CAPTIONS, CARD, Encoder, network, sd3, write_captions

from fewstep.backbones.model_file import load_model, save_model
from fewstep.common.files import sha256
from fewstep.config import dump
from fewstep.config.backbones import Sd3
from fewstep.config.settings import Guidance, Sampler, Tokenizer
from fewstep.config.specs import LatentCard, SampleSpec, TextCard
from fewstep.data.text_store import open_text
from fewstep.evaluation.image_archive import open_images

PIXELS = LatentCard(
    name="digits-pixels",
    shape=[1, 8, 8],
    classes=10,
    images=1797,
    tokenizer=Tokenizer(kind="pixels", shape=[1, 8, 8]),
)
STUDENT, WHOLE = sd3(lora=ADAPTERS), sd3(target_time=False)
ENCODER = {"encoder": CARD.encoder.model_dump(mode="json"), "weights": Encoder.weights}


class Another(Encoder):
    """Other weights, and so other embeddings, of the same form."""

    weights = {"encoder": "1" * 64}

    def __call__(self, caption: str):
        return super().__call__(f"{caption}, otherwise")


@dataclass(frozen=True)
class Models:
    base: Path
    student: Path
    text: Path

    def call(
        self, folder: Path, backbone: Sd3 = STUDENT, text: TextCard | None = CARD, **changes: Any
    ) -> Call:
        """Of 20 images by two steps."""
        values: dict[str, Any] = {
            "backbone": backbone,
            "sampler": Sampler(kind="cm"),
            "guidance": None,
            "steps": 2,
            "images": 20,
            "labels": "balanced",
            "uint8": "round",
            "seed": 0,
            "latents": PIXELS,
            "text": text,
            "image": [1, 8, 8],
        }
        spec = SampleSpec(**values | changes)
        folder.mkdir(parents=True, exist_ok=True)
        path, out = folder / "spec.json", folder / "images.tar"
        path.write_text(dump(spec), encoding="utf-8")
        own = [self.student] if backbone.lora else [self.base]
        words = ["--spec", path, "--model", *own, "--base", *([self.base] if backbone.lora else [])]
        words += ["--text", self.text, "--latents", "--tokenizer", "--out", out]
        return Call("sample", [str(word) for word in words], [out])


def save_student(path: Path, base: Path, **card: Any) -> Path:
    net = network(STUDENT)
    adapters = {name: net.state_dict()[name] for name in net.trained}
    latents = {"latents": PIXELS.model_dump(mode="json")}
    save_model(path, adapters, STUDENT, {**latents, "base": sha256(base), "status": "trained", **card})
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    folder = tmp_path_factory.mktemp("captions")
    base = folder / "base.safetensors"
    card = {"latents": PIXELS.model_dump(mode="json"), "status": "trained", "text": ENCODER}
    save_model(base, network(WHOLE).state_dict(), WHOLE, card)
    student = save_student(folder / "student.safetensors", base, text=ENCODER)
    return Models(base, student, write_captions(folder / "text"))


@pytest.fixture(scope="module")
def sampled(models, tmp_path_factory) -> Path:
    return models.call(tmp_path_factory.mktemp("sampled"))()


def test_the_card_names_captions_and_store(models, sampled):
    card = card_of(sampled)
    store = open_text(models.text, CARD)
    assert card["text_store"]["digest"] == store.digest and card["text_store"] == store.card
    assert card["captions"] == {str(label): caption for label, caption in enumerate(CAPTIONS)}
    assert card["text"]["name"] == "digits" and card["evaluations"] == 2
    assert card["model"]["base"] == sha256(models.base)
    archive = open_images(sampled)
    assert archive.labels(0).tolist() == list(range(10)) * 2


def test_captions_of_what_is_shown_only(models, tmp_path):
    card = card_of(models.call(tmp_path, images=3)())
    assert card["captions"] == {"0": "zero", "1": "one", "2": "two"}


def test_labels_are_of_the_prompts(models, tmp_path):
    """Not of the data that the network was trained on."""
    few = CARD.model_copy(update={"name": "few", "captions": 4})
    text = tmp_path / "text"
    text.mkdir()
    manifest = write_few(text, few)
    call = replaced(models.call(tmp_path, text=few, images=8), "--text", str(manifest))
    assert open_images(call()).labels(0).tolist() == [0, 1, 2, 3] * 2
    assert card_of(call.out)["captions"] == dict(zip("0123", CAPTIONS[:4], strict=True))


def write_few(folder: Path, card: TextCard) -> Path:
    from fewstep.data.text_encoding import text_content, write_store

    captions = CAPTIONS[: card.captions]
    content = text_content(card, captions, Encoder(), "captions")
    write_store(content, captions, Encoder(), folder / "manifest.json")
    return folder / "manifest.json"


def test_images_follow_from_their_captions(models, sampled, tmp_path):
    """The same noise under other captions: every image is another one; under its own the same."""
    again = models.call(tmp_path / "again")()
    assert torch.equal(images_of(again), images_of(sampled))
    card = CARD.model_copy(update={"name": "others"})
    manifest = write_captions(tmp_path / "text", card, Otherwise())
    call = replaced(models.call(tmp_path / "others", text=card), "--text", str(manifest))
    assert not torch.equal(images_of(call()), images_of(sampled))


class Otherwise(Another):
    """Such an encoder that says that it is the first one."""

    weights = Encoder.weights


def test_adapters_change_their_base(models, sampled, tmp_path):
    whole = models.call(tmp_path, WHOLE)()
    assert not torch.equal(images_of(whole), images_of(sampled))
    assert "base" not in card_of(whole)["model"]
    assert card_of(whole)["text_store"] == card_of(sampled)["text_store"]


def test_guidance_asks_for_the_empty_caption(models, sampled, tmp_path):
    guided = models.call(tmp_path / "guided", guidance=Guidance(scale=4.0))()
    assert card_of(guided)["evaluations"] == 4
    assert not torch.equal(images_of(guided), images_of(sampled))
    one = models.call(tmp_path / "one", guidance=Guidance(scale=1.0))()
    assert (images_of(one).int() - images_of(sampled).int()).abs().max() <= 1


def test_captions_need_their_store(models, tmp_path):
    refused(
        replaced(models.call(tmp_path), "--text"),
        "digits: the network is conditioned on captions; pass --text",
    )


def test_adapters_need_their_base(models, tmp_path):
    call = models.call(tmp_path)
    refused(replaced(call, "--base"), f"{models.student}: holds adapters: give --base")
    other = tmp_path / "other.safetensors"
    tensors, card = load_model(models.base)
    name = next(iter(tensors))
    kept = {key: card[key] for key in ("latents", "status", "text")}
    save_model(other, tensors | {name: tensors[name] + 1}, WHOLE, kept)
    refused(replaced(call, "--base", str(other)), f"{other}: has sha256 {sha256(other)}, but the base of")
    whole = replaced(models.call(tmp_path, WHOLE), "--base", str(models.base))
    refused(whole, f"{models.base}: holds a whole network: leave --base out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "others"}, "name: the store has 'digits', the spec asks for 'others'"),
        ({"captions": 9}, "captions: the store has 10, the spec asks for 9"),
        (
            {"encoder": CARD.encoder.model_copy(update={"length": 4})},
            "encoder.length: the store has 3, the spec asks for 4",
        ),
        (
            {"encoder": CARD.encoder.model_copy(update={"dtype": "bfloat16"})},
            "encoder.dtype: the store has 'float32', the spec asks for 'bfloat16'",
        ),
    ],
)
def test_another_store(models, tmp_path, change, words):
    refused(models.call(tmp_path, text=CARD.model_copy(update=change)), f"{models.text}: {words}")


def test_a_store_of_other_weights(models, tmp_path):
    """The same configuration, and an encoder that was trained again: of the same form, and of no use."""
    manifest = write_captions(tmp_path / "text", CARD, Another())
    call = replaced(models.call(tmp_path), "--text", str(manifest))
    words = f"{models.student}: learned from other embeddings of captions (weights "
    refused(call, words + f"{Encoder.weights} there, {Another.weights} here")
    # Published weights name none.
    bare = save_student(tmp_path / "bare.safetensors", models.base)
    replaced(call, "--model", str(bare))()


def test_a_store_that_the_network_cannot_read(models, tmp_path):
    class Narrow(Encoder):
        context = [5, 20]

        def __call__(self, caption: str):
            context, pooled = super().__call__(caption)
            return type(super().__call__(caption))(context[:, :, :20], pooled)

    manifest = write_captions(tmp_path / "text", CARD, Narrow())
    refused(replaced(models.call(tmp_path), "--text", str(manifest)), "context", "20", "24")


def test_captions_that_changed_beside_their_store(models, tmp_path):
    manifest = write_captions(tmp_path / "text")
    path = manifest.with_name("manifest.captions.json")
    path.write_text(path.read_text().replace("seven", "eleven"))
    refused(replaced(models.call(tmp_path), "--text", str(manifest)), f"{path.name}: sha256: ")
    # Before anything is sampled.
    assert not list(tmp_path.glob("*.chunks-*"))
