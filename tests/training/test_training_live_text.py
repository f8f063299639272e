"""Captions that the training encodes itself: the model of the store, bit for bit."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from child_processes import ranks, signal_at_step
from tiny_pipeline import Call, refused, replaced
from trained_files import same

pytest.importorskip("transformers", reason="needs the extra [t2i]")
pytest.importorskip("peft", reason="needs the extra [t2i]")
import tiny_text
from tiny_sd3 import ADAPTERS, CAPTIONS, TinyTrainings, sd3

from fewstep import text as text_stage
from fewstep.backbones.model_file import load_model, save_model
from fewstep.config import dump
from fewstep.config.backbones import Backbone, Clip
from fewstep.config.settings import Dataset
from fewstep.config.specs import TextCard, TextSpec, TrainSpec
from fewstep.config.text import TextEncoder
from fewstep.data.text_store import open_text
from fewstep.methods import parameter_classes
from fewstep.training.state import STOPPED

WIDTHS = {"context": 2 * tiny_text.CLIP.width, "pooled": 2 * tiny_text.CLIP.embedding}
"""What SD3 is given where one CLIP stands for both."""


@dataclass(frozen=True)
class Captions:
    """Latents and a base, a record with captions, and a CLIP that encodes them."""

    trainings: TinyTrainings
    record: Path
    clip: Path
    base: Path

    def spec(self, encoder: TextEncoder, backbone: Backbone | None = None) -> TextSpec:
        dataset = Dataset(asset="captions", format="scenes", resolution=32, classes=len(CAPTIONS), images=20)
        card = TextCard(name="digits", captions=len(CAPTIONS), encoder=encoder)
        return TextSpec(text=card, dataset=dataset, backbone=backbone)

    def of_clip(self, dtype: str = "float32") -> TextSpec:
        return self.spec(tiny_text.encoder("clip", dtype), tiny_text.CLIP)

    def training(self, text: TextSpec) -> TrainSpec:
        """DE-CM by adapters, on these captions."""
        spec = self.trainings.spec(backbone=sd3(lora=ADAPTERS, **WIDTHS))
        return spec.model_copy(update={"text": text.text})

    def stored(self, spec: TrainSpec, text: TextSpec, folder: Path) -> Call:
        """A training on a store, which is made first."""
        folder.mkdir(parents=True, exist_ok=True)
        manifest = folder / "text" / "manifest.json"
        manifest.parent.mkdir()
        words = ["--spec", write(text, folder), "--captions", self.record, *self.encoder(text)]
        text_stage.main([str(word) for word in (*words, "--out", manifest)])
        return replaced(self.trainings.train(spec, folder, self.base), "--text", str(manifest))

    def live(self, spec: TrainSpec, text: TextSpec, folder: Path) -> Call:
        """The same without a store."""
        folder.mkdir(parents=True, exist_ok=True)
        call = replaced(self.trainings.train(spec, folder, self.base), "--text", str(write(text, folder)))
        return call.more(*map(str, ("--captions", self.record, *self.encoder(text))))

    def encoder(self, text: TextSpec) -> list[str]:
        """As the rules give it: without weights the option has no value."""
        return ["--encoder", *([str(self.clip)] if text.backbone else [])]


def write(text: TextSpec, folder: Path) -> Path:
    path = folder / "text.json"
    path.write_text(dump(text), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> Captions:
    folder = tmp_path_factory.mktemp("live")
    trainings = TinyTrainings(folder / "trainings")
    files = folder / "captions"
    files.mkdir()
    (files / "captions.json").write_text(json.dumps({"captions": CAPTIONS}))
    return Captions(
        trainings,
        tiny_text.write_record(files),
        tiny_text.clip_file(folder / "clip.safetensors", CAPTIONS),
        trainings.write_base(folder / "base.safetensors", **WIDTHS),
    )


@pytest.fixture(scope="module")
def stored(captions, tmp_path_factory) -> Call:
    """DE-CM by adapters, on a store."""
    text = captions.of_clip()
    call = captions.stored(captions.training(text), text, tmp_path_factory.mktemp("stored"))
    call()
    return call


def test_the_same_model(captions, stored, tmp_path):
    text = captions.of_clip()
    call = captions.live(captions.training(text), text, tmp_path)
    call()
    same(call, stored)
    manifest = stored.out.parent / "text" / "manifest.json"
    card = load_model(call.out)[1]["text"]
    assert card["digest"] == open_text(manifest, text.text).digest
    assert card["captions"] == len(CAPTIONS) and card["weights"].keys() == {"clip"}
    # No store is kept.
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["model.safetensors"]
    assert not list(tmp_path.rglob("manifest*"))


def test_a_stopped_training_goes_on_without_its_store(captions, stored, tmp_path):
    """Which of both it is, is not of its state."""
    text = captions.of_clip()
    spec = captions.training(text)
    first = captions.stored(spec, text, tmp_path).more("--save-steps", "2")
    fault = {"fault": signal_at_step, "step": 3, "number": signal.SIGTERM}
    assert ranks(first, tmp_path, 1, **fault) == [STOPPED], (tmp_path / "rank0.log").read_text()
    call = captions.live(spec, text, tmp_path)
    assert ranks(call, tmp_path, 1) == [0], (tmp_path / "rank0.log").read_text()
    assert "resumed at step 4 of 5" in (tmp_path / "rank0.log").read_text()
    same(call, stored)


def test_words_of_a_clip(captions, tmp_path):
    """Their vocabulary, which the CLIP's card keeps, comes from the captions themselves."""
    text = captions.spec(TextEncoder(kind="words", length=4))
    sizes = {"patch": 4, "width": 8, "layers": 1, "heads": 2, "embedding": 8, "length": 4, "vocabulary": 20}
    changes = {
        "backbone": Clip(kind="clip", shape=[1, 8, 8], **sizes),
        "loss": parameter_classes()["contrast"](name="contrast", group=6),
        "text": text.text,
        "teacher": False,
        "guidance": None,
    }
    spec = TrainSpec.model_validate(captions.trainings.spec().model_copy(update=changes).model_dump())
    live = captions.live(spec, text, tmp_path / "live")
    store = captions.stored(spec, text, tmp_path / "stored")
    for call in (live, store):
        call()
    same(live, store)
    assert set(CAPTIONS) < set(load_model(live.out)[1]["text"]["vocabulary"])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": "others"}, "text.name"),
        ({"captions": 9}, "text.captions"),
        ({"encoder": tiny_text.encoder("clip", "bfloat16")}, "text.encoder"),
    ],
)
def test_a_spec_of_other_captions(captions, tmp_path, change, key):
    text = captions.of_clip()
    other = text.model_copy(update={"text": text.text.model_copy(update=change)})
    call = captions.live(captions.training(text), other, tmp_path)
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == (
        f"{tmp_path / 'text.json'}: {key}: not those of the captions digits that this run is to learn; "
        "give --text their spec"
    )
    assert not any(path.exists() for path in call.outputs)


def test_other_captions_than_the_spec_says(captions, tmp_path):
    files = tmp_path / "fewer"
    files.mkdir()
    (files / "captions.json").write_text(json.dumps({"captions": CAPTIONS[:9]}))
    text = captions.of_clip()
    call = captions.live(captions.training(text), text, tmp_path / "run")
    call = replaced(call, "--captions", str(tiny_text.write_record(files)))
    refused(call, "captions.json: dataset.classes: found 9")


def test_an_encoder_that_is_missing(captions, tmp_path):
    text = captions.of_clip()
    call = captions.live(captions.training(text), text, tmp_path)
    refused(replaced(call, "--encoder"), "encoder.kind: clip needs a file of weights; pass --encoder")


def test_an_encoder_without_captions(captions, tmp_path):
    text = captions.of_clip()
    call = captions.live(captions.training(text), text, tmp_path)
    refused(replaced(call, "--captions"), "spec.json: --encoder is for captions that are encoded here")


def test_a_teacher_of_another_encoder(captions, tmp_path):
    """Its conditions would be others, of the same form."""
    tensors, card = load_model(captions.base)
    other = tmp_path / "base.safetensors"
    encoder = captions.of_clip().text.encoder.model_dump(mode="json")
    backbone = sd3(target_time=False, **WIDTHS)
    own = {"latents": card["latents"], "text": {"encoder": encoder, "weights": {"clip": "0" * 64}}}
    save_model(other, tensors, backbone, own)
    text = captions.of_clip()
    call = captions.live(captions.training(text), text, tmp_path / "run")
    words = f"{other}: learned from other embeddings of captions (weights"
    refused(replaced(call, "--teacher", str(other)), words)
