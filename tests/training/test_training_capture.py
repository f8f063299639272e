"""A training step can be captured: it never waits for the device, and its shapes never change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from configs import make_plan, raw_config
from recorded_operations import Recorder
from tiny_pipeline import Call, TinyPipeline, refused
from torch import Tensor

from fewstep.backbones import build as build_network
from fewstep.backbones import use_text
from fewstep.backbones.model_file import load_model
from fewstep.config.specs import TextCard
from fewstep.core.method import Batch, Loss, kind_of_step
from fewstep.data.text_store import open_text
from fewstep.methods import build, parameter_classes
from fewstep.training.parallel import check_capture
from fewstep.training.trainer import Trainer


def recorded(call: Call, monkeypatch: pytest.MonkeyPatch) -> dict[int, list[tuple[Any, ...]]]:
    """Operations of each step's updates, of a training that also runs to its end."""
    steps: dict[int, list[tuple[Any, ...]]] = {}
    original = Trainer._update

    def update(self: Trainer, loss: Loss, slices: Any) -> dict[str, Tensor]:
        if kind_of_step(self.method.updates(self.progress.step)) not in self.draws:
            return original(self, loss, slices)  # the first of its kind, which finds out what to draw
        with Recorder() as recorder:
            values = original(self, loss, slices)
        steps.setdefault(self.progress.step, []).extend(recorder.seen)
        return values

    monkeypatch.setattr(Trainer, "_update", update)
    call()
    return steps


METHODS = {
    name: method.loss.name
    for name, method in make_plan(raw_config("demo")).config.methods.items()
    if method.recipe.startswith("digits")
    and name not in ("meanflow-sdvae", "meanflow-b2", "dumo-b2", "f2d2-shortcut", "f2d2-distill")
    and not name.startswith("get-")
}


def test_every_method_is_looked_at():
    assert set(METHODS.values()) == parameter_classes().keys() - {"contrast"}  # below


@pytest.mark.parametrize("name", METHODS)
def test_steps_differ_in_numbers_only(pipeline: TinyPipeline, tmp_path, monkeypatch, name):
    """No operation waits for the device, and none has another shape or Python number in another step."""
    taught_by = {"tcm": "tcm-stage1", "f2d2-meanflow": "f2d2-teacher"}.get(name)
    short = {n: {"train": {"steps": 8, "optimizer": {"warmup": 2}}} for n in (name, taught_by) if n}
    pipeline = pipeline.varied({"methods": short})
    if taught_by:
        pipeline.train(taught_by)()
    method = pipeline.plan.config.methods[name]
    steps = recorded(pipeline.train(name, tmp_path), monkeypatch)
    kinds: dict[tuple[str, ...], list[list[tuple[Any, ...]]]] = {}
    for step, seen in sorted(steps.items()):
        kinds.setdefault(kind_of_step(build(method.loss).updates(step)), []).append(seen)
    assert max(steps) == 7 and all(len(same) > 1 for same in kinds.values())
    for first, *others in kinds.values():
        assert len(first) > 50
        for other in others:
            changed = [pair for pair in zip(first, other, strict=True) if pair[0] != pair[1]]
            assert not changed, changed[0]


def test_a_guided_generators_steps_differ_in_numbers_only(pipeline, tmp_path, monkeypatch):
    """Three networks in turns; steps of two kinds, as guidance starts in the middle; the generator's blocks
    repeat."""
    deep = {"backbones": {"lightningdit-digits": {"repeats": 2}}}
    guided = {"afm": {"loss": {"classifier": {"start": 5}}}}
    pipeline = pipeline.varied({"methods": guided, "settings": deep})
    steps = recorded(pipeline.train("afm", tmp_path), monkeypatch)
    plain, guided_steps = [steps[step] for step in range(1, 5)], [steps[step] for step in (6, 7)]
    assert all(other == same[0] for same in (plain, guided_steps) for other in same)
    assert len(guided_steps[0]) > len(plain[0])


def test_contrast_with_captions_differs_in_numbers_only(tmp_path):
    """As above, of a CLIP and the captions that its store looks up."""
    pytest.importorskip("transformers", reason="needs the extra [t2i]")
    from tiny_text import CAPTIONS, CLIP, encoder

    from fewstep.data.text_encoders import open_text_encoder
    from fewstep.data.text_encoding import text_content, write_store

    card = TextCard(name="tiny", captions=len(CAPTIONS), encoder=encoder("words"))
    words = open_text_encoder(card.encoder, None, None, CAPTIONS)
    write_store(text_content(card, CAPTIONS, words, "here"), CAPTIONS, words, tmp_path / "manifest.json")
    net = build_network(CLIP)
    use_text(net, open_text(tmp_path / "manifest.json", card))
    method = build(parameter_classes()["contrast"](group=4))
    context: Any = None  # the loss asks nothing of it
    seen = []
    for y in (torch.tensor([0, 1, 2, -1]), torch.tensor([3, 3, 3, 3])):
        images = torch.randn(4, *CLIP.shape)
        net.zero_grad()
        with Recorder() as recorder:
            method.loss(net, Batch(images, images, y), context).loss.backward()
        seen.append(recorder.seen)
    assert seen[0] == seen[1] and len(seen[0]) > 50


def test_autocast_casts_each_weight_once_in_an_update(pipeline, tmp_path, monkeypatch):
    """Each matrix of the student once; of the frozen teacher's blocks none."""
    half = pipeline.varied({"settings": {"recipes": {"digits": {"train": {"precision": "bf16"}}}}})
    seen = recorded(half.train("facm", tmp_path / "facm"), monkeypatch)[7]
    copied = [
        given[0] for name, *given in seen if name == "aten._to_copy.default" and "torch.bfloat16" in given
    ]
    matrices = [shape for shape, _ in copied if len(shape) == 2]
    tensors, _ = load_model(tmp_path / "facm" / "model.safetensors")
    # Activations have the shapes of other matrices.
    blocks = [
        tuple(w.shape) for n, w in tensors.items() if n.startswith("blocks") and ".mlp." in n and w.ndim == 2
    ]
    assert len(blocks) == 2
    for shape in set(blocks):
        assert matrices.count(shape) == blocks.count(shape), shape


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("none", "no", "cpu"), "needs a GPU"),
        (("fsdp2", "no", "cuda"), "FSDP2"),
        (("ddp", "fp16", "cuda"), "loss scaler"),
    ],
)
def test_capture_is_refused_with_its_reason(given, words):
    with pytest.raises(ValueError, match=f"--capture: .*{words}"):
        check_capture(*given)
    check_capture("ddp", "bf16", "cuda")


def test_capture_on_a_cpu_is_refused_before_anything_is_written(pipeline, tmp_path):
    refused(pipeline.train("cd", tmp_path).more("--capture"), "--capture: a CUDA graph needs a GPU")
