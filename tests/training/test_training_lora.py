"""Adapters on a frozen network: only what trains is kept, the same training on any number of processes."""

from __future__ import annotations

import re
import signal

import pytest
import torch
from child_processes import ranks, signal_at_step
from safetensors.torch import load_file
from tiny_pipeline import Call, refused, replaced
from trained_files import close, curve, same, states

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("transformers")
from tiny_sd3 import ADAPTERS, CAPTIONS, TinyTrainings, calm_time, inputs, network, sd3

from fewstep.backbones import use_text
from fewstep.backbones.lora import AdaptersOff
from fewstep.backbones.model_file import load_model, load_network, save_model
from fewstep.backbones.sd3 import Sd3 as Sd3Network
from fewstep.common.files import sha256
from fewstep.config import dump
from fewstep.config.backbones import Lora, Sd3
from fewstep.config.settings import Guidance
from fewstep.config.specs import SampleSpec
from fewstep.data.text_store import open_text
from fewstep.evaluation.image_archive import open_images
from fewstep.training.state import STOPPED

SHARDED = ("--shard", "fsdp2")


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> TinyTrainings:
    return TinyTrainings(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def single(trainings, tmp_path_factory) -> Call:
    """DE-CM by adapters in one process."""
    call = trainings.train(trainings.spec(), tmp_path_factory.mktemp("single"))
    call()
    return call


def test_the_file_holds_what_trains(trainings, single):
    net = network(sd3(lora=ADAPTERS))
    tensors, card = load_model(single.out)
    assert tensors.keys() == net.trained
    assert card["base"] == sha256(trainings.base)
    assert card["text"]["digest"] == open_text(trainings.text, trainings.spec().text).digest
    assert card["self_test"]["tangent_error"] < 1e-2 and card["flops_per_step"] > 0
    trained = sum(tensor.numel() for tensor in tensors.values())
    whole = sum(tensor.numel() for tensor in net.state_dict().values())
    assert trained < whole / 4
    assert len(curve(single.outputs[1])) == 7
    assert any(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name)


def test_it_is_loaded_onto_its_base(trainings, single):
    net, card = load_network(single.out, sd3(lora=ADAPTERS), trainings.base)
    assert card["method"] == "decm" and not any(weight.requires_grad for weight in net.parameters())
    store = open_text(trainings.text, trainings.spec().text)
    base, _ = load_network(trainings.base, sd3(target_time=False))
    for each in (net, base):
        use_text(each, store)
    x, t, s, y = inputs(sd3())
    assert torch.equal(AdaptersOff(net)(x, t, s, y), base(x, t, s, y))
    assert not torch.equal(net(x, t, s, y), base(x, t, s, y))


def test_the_state_holds_what_trains(trainings, tmp_path):
    call = trainings.train(trainings.spec(), tmp_path).more("--save-steps", "2")
    assert ranks(call, tmp_path, 1, signal_at_step, step=3, number=signal.SIGTERM) == [STOPPED]
    names = network(sd3(lora=ADAPTERS)).trained
    (folder,) = (path for path in tmp_path.glob("state-*/step-*") if path.name == "step-000000004")
    files = list(folder.glob("*.safetensors"))
    saved = {name: tensor for path in files for name, tensor in load_file(path).items()}
    kinds = ("net", "ema", "optimizer.exp_avg.net", "optimizer.exp_avg_sq.net")
    tensors = {name for name in saved if not name.startswith("optimizer.step")}
    assert tensors == {f"{kind}.{name}" for kind in kinds for name in names}
    trained = sum(saved[f"net.{name}"].numel() for name in names)
    assert sum(path.stat().st_size for path in files) < 4 * 4 * trained + 200_000


@pytest.mark.parametrize(
    ("count", "options"), [(1, ()), (2, ()), (2, SHARDED)], ids=["one", "ddp on 2", "fsdp2 on 2"]
)
def test_resumed_in_one_process(trainings, single, tmp_path, count, options):
    """In the same bits where it began in one."""
    call = trainings.train(trainings.spec(), tmp_path)
    fault = {"fault": signal_at_step, "step": 3, "number": signal.SIGKILL}
    stopped = ranks(call.more("--save-steps", "3", *options), tmp_path, count, **fault)
    assert stopped[0] == -signal.SIGKILL, (tmp_path / "rank0.log").read_text()
    assert states(call) == ["step-000000003"]
    assert ranks(call, tmp_path, 1) == [0], (tmp_path / "rank0.log").read_text()
    assert "resumed at step 3 of 5" in (tmp_path / "rank0.log").read_text()
    (same if count == 1 else close)(call, single)


@pytest.mark.parametrize(
    "options",
    [(), SHARDED, (*SHARDED, "--checkpoint-blocks", "--device-batch", "3")],
    ids=["ddp", "fsdp2", "fsdp2-all"],
)
def test_two_processes(trainings, single, tmp_path, options):
    call = trainings.train(trainings.spec(), tmp_path).more(*options)
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, single)


@pytest.mark.parametrize(
    "options", [("--checkpoint-blocks",), ("--tangent", "split")], ids=lambda given: given[-1]
)
def test_options_of_one_process(trainings, single, tmp_path, options):
    call = trainings.train(trainings.spec(), tmp_path).more(*options)
    call()
    close(call, single)


def test_bf16_on_a_cast_base(trainings, tmp_path):
    """The frozen weights of blocks are held in bf16, which autocast would make of them at every use."""
    call = trainings.train(trainings.spec(precision="bf16"), tmp_path)
    call()
    tensors, card = load_model(call.out)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert card["self_test"]["tangent_error"] < 0.1


def test_a_target_network_shares_the_base(trainings, tmp_path):
    """A moving average that losses call (CTM's) has weights of its own for what trains alone."""
    call = trainings.train(trainings.spec("ctm"), tmp_path).more("--save-steps", "2")
    assert ranks(call, tmp_path, 1, signal_at_step, step=3, number=signal.SIGTERM) == [STOPPED]
    call()
    whole = trainings.train(trainings.spec("ctm"), tmp_path / "whole")
    whole()
    same(call, whole)
    assert load_model(call.out)[0].keys() == network(sd3(lora=ADAPTERS)).trained


def test_a_teacher_of_captions(trainings, tmp_path):
    """Trained whole, with dropped captions, at SD3's own fast time; then distilled whole, and by adapters."""
    backbone = sd3(target_time=False, time_scale=1000.0)
    teacher = trainings.train(trainings.spec("teacher", backbone), tmp_path / "teacher")
    teacher()
    tensors, card = load_model(teacher.out)
    assert "base" not in card and card["text"]["captions"] == 10 and card["self_test"]["tangent_error"] < 2e-2
    assert tensors.keys() == network(backbone).state_dict().keys()
    for name, spec in {
        "whole": sd3(time_scale=1000.0),
        "lora": sd3(time_scale=1000.0, lora=ADAPTERS),
    }.items():
        student = trainings.train(trainings.spec("decm", spec), tmp_path / name, teacher.out)
        student()
        assert load_model(student.out)[1].get("base") == (sha256(teacher.out) if name == "lora" else None)


def test_a_smooth_time_is_tuned(trainings, tmp_path, monkeypatch):
    """By the velocity of the network of SD3's own time, whose time embedding is fitted at the start."""
    teacher = trainings.write_base(tmp_path / "fast.safetensors", time_scale=1000.0)
    tensors, card = load_model(teacher)
    calm_time(tensors)
    save_model(teacher, tensors, sd3(target_time=False, time_scale=1000.0), card)
    spec = trainings.spec("teacher", sd3(target_time=False, time_scale=20.0))
    spec = spec.model_copy(update={"teacher": True, "guidance": Guidance(scale=1.0), "label_dropout": 0.0})
    first = {}
    for name in ("fitted", "not"):
        if name == "not":
            monkeypatch.setattr(Sd3Network, "fit_time", lambda net, teacher: None)
        call = trainings.train(spec, tmp_path / name, teacher)
        call()
        first[name] = curve(call.outputs[1])[0]["loss_fm"]
    assert 0 < first["fitted"] < first["not"] / 20


# What is refused.


def test_captions_and_spec_go_together(trainings, tmp_path):
    call = trainings.train(trainings.spec(), tmp_path)
    refused(replaced(call, "--text"), "spec.json", "needs --text with one manifest")
    other = trainings.spec().model_copy(update={"text": None})
    refused(trainings.train(other, tmp_path), "spec.json", "has no captions: leave --text out")


def test_other_captions(trainings, tmp_path):
    spec = trainings.spec()
    other = spec.model_copy(update={"text": spec.text.model_copy(update={"captions": 9})})
    refused(trainings.train(other, tmp_path), "captions", "10", "9")


def test_captions_of_another_width(trainings, tmp_path):
    spec = trainings.spec(backbone=sd3(lora=ADAPTERS, context=32))
    base = trainings.write_base(tmp_path / "base.safetensors", context=32)
    refused(trainings.train(spec, tmp_path, base), "widths 24 and 12", "backbone.context 32")


def test_a_state_belongs_to_its_captions(trainings, tmp_path, capfd, monkeypatch):
    call = trainings.train(trainings.spec(), tmp_path).more("--save-steps", "2")
    assert ranks(call, tmp_path, 1, signal_at_step, step=3, number=signal.SIGKILL) == [-signal.SIGKILL]
    monkeypatch.setattr("fewstep.data.text_store.TextContent.digest", "1" * 64)
    monkeypatch.setattr("fewstep.data.text_store.open_part", _any_digest)
    call()
    assert "saved state of another captions discarded" in capfd.readouterr().out


def _any_digest(files, path, content, rows):
    from fewstep.common.tensor_files import open_safetensors

    file = files.enter_context(open_safetensors(path))
    return file.get_slice("rows"), file.get_tensor("checksums")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 4}, "heads: 4, not 2"),
        ({"time_scale": 1000.0}, "time_scale: 1000.0, not 20.0"),
    ],
    ids=["size", "time"],
)
def test_a_base_that_does_not_fit(trainings, tmp_path, changes, words):
    base = trainings.write_base(tmp_path / "base.safetensors", **changes)
    refused(trainings.train(trainings.spec(), tmp_path, base), f"{base}: is not the base", words)


def test_a_base_with_a_target_time(trainings, tmp_path):
    """A teacher knows one time."""
    base = tmp_path / "base.safetensors"
    save_model(base, network(sd3()).state_dict(), sd3(), load_model(trainings.base)[1])
    refused(trainings.train(trainings.spec(), tmp_path, base), f"{base}: is not the base", "target_time")


@pytest.mark.parametrize("lora", [Lora(rank=2), Lora(rank=4, targets=["attn.to_q"])], ids=["rank", "targets"])
def test_adapters_of_another_shape(trainings, single, tmp_path, lora):
    """By what the file says of itself, and by what it holds."""
    other = sd3(lora=lora)
    with pytest.raises(ValueError, match=f"{re.escape(str(single.out))}: holds backbone lora: ") as error:
        load_network(single.out, other, trainings.base)
    assert "\n" not in str(error.value)
    tensors, card = load_model(single.out)
    save_model(tmp_path / "liar.safetensors", tensors, other, card)
    with pytest.raises(ValueError, match=r"liar.* does not fit the backbone: (shape of|unexpected) "):
        load_network(tmp_path / "liar.safetensors", other, trainings.base)


def test_a_file_without_adapters(trainings, single, tmp_path):
    _, card = load_model(single.out)
    save_model(tmp_path / "empty.safetensors", {}, sd3(lora=ADAPTERS), card)
    with pytest.raises(ValueError, match=r"empty.safetensors does not fit the backbone: missing .*lora_A"):
        load_network(tmp_path / "empty.safetensors", None, trainings.base)


def test_the_base_that_a_file_belongs_to(trainings, single, tmp_path):
    with pytest.raises(ValueError, match=r"model.safetensors: holds adapters: give --base"):
        load_network(single.out)
    with pytest.raises(ValueError, match=r"base.safetensors: holds a whole network: leave --base out"):
        load_network(trainings.base, None, trainings.base)
    tensors, card = load_model(trainings.base)
    name = next(iter(tensors))
    save_model(
        tmp_path / "other.safetensors", tensors | {name: tensors[name] + 1}, sd3(target_time=False), card
    )
    with pytest.raises(ValueError, match=f"other.safetensors: has sha256 .* {sha256(trainings.base)}"):
        load_network(single.out, None, tmp_path / "other.safetensors")


OTHER_WEIGHTS = {"weights": {"encoder": "1" * 64}}


def named(trainings, model, out, **text):
    """A copy of a model file whose card says that it learned from other embeddings of captions."""
    tensors, card = load_model(model)
    store = open_text(trainings.text, trainings.spec().text).card
    save_model(out, tensors, Sd3.model_validate(card["backbone"]), card | {"text": store | text})
    return out


def test_a_base_that_learned_from_other_embeddings(trainings, tmp_path):
    """By an encoder of the same configuration with other weights."""
    same_text = named(trainings, trainings.base, tmp_path / "same.safetensors", caption_list="2" * 64)
    trainings.train(trainings.spec(steps=3), tmp_path / "same", same_text)()
    other = named(trainings, trainings.base, tmp_path / "other.safetensors", **OTHER_WEIGHTS)
    call = trainings.train(trainings.spec(), tmp_path, other)
    refused(call, "other.safetensors: learned from other embeddings of captions (weights ")
    whole = sd3(target_time=False)
    call = trainings.train(trainings.spec(backbone=whole), tmp_path, other)
    refused(call, "other.safetensors: learned from other embeddings of captions (weights ")


def test_sampling_from_adapters(trainings, single, tmp_path):
    """On their base and the embeddings that they learned from, and on no others."""
    spec = trainings.spec()
    asked = {"backbone": spec.backbone, "sampler": {"kind": "cm"}, "guidance": None, "steps": 1, "images": 4}
    asked |= {"labels": "balanced", "uint8": "round", "seed": 0, "latents": spec.latents, "text": spec.text}
    sample = SampleSpec.model_validate({**asked, "image": [1, 8, 8]})
    (tmp_path / "spec.json").write_text(dump(sample))
    words = ["--spec", tmp_path / "spec.json", "--model", single.out, "--base", trainings.base]
    words += ["--text", trainings.text, "--latents", trainings.latents, "--out", tmp_path / "images.tar"]
    call = Call("sample", [str(word) for word in words], [tmp_path / "images.tar"])
    call()
    card = open_images(call.out).card
    assert card["captions"] == {str(place): CAPTIONS[place] for place in range(4)}
    assert card["model"]["base"] == sha256(trainings.base)
    assert card["text_store"]["digest"] == open_text(trainings.text, spec.text).digest
    call.out.unlink()
    base = named(trainings, trainings.base, tmp_path / "base.safetensors")
    refused(replaced(call, "--base", str(base)), "base.safetensors: has sha256")
    refused(replaced(call, "--base"), "give --base")
    refused(replaced(call, "--text"), "pass --text")
    student = named(trainings, single.out, tmp_path / "student.safetensors", **OTHER_WEIGHTS)
    refused(replaced(call, "--model", str(student)), "student.safetensors: learned from other embeddings")


def test_central_differences_of_a_fast_time(trainings, tmp_path):
    spec = trainings.spec(backbone=sd3(lora=ADAPTERS, time_scale=1000.0))
    refused(trainings.train(spec, tmp_path).more("--tangent", "central"), "5 rad", "reembed")
