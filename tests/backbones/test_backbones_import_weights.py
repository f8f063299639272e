"""Published weights: tiny files in every published format through the adopt stage, and the refusals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewstep import adopt
from fewstep.backbones.import_weights import import_weights, read_weights
from fewstep.backbones.model_file import check_tokenizer, load_model, versions
from fewstep.common.cli import run
from fewstep.common.files import sha256
from fewstep.config import ConfigError, digest, dump
from fewstep.config.settings import Sampler, Tokenizer
from fewstep.config.specs import AdoptSpec

TOKENIZER = Tokenizer(kind="pixels", shape=[4, 6, 4])
SAMPLER = Sampler(kind="euler", shift=0.3)


def adopt_spec(backbone, file) -> AdoptSpec:
    return AdoptSpec(
        method="teacher", backbone=backbone, asset="released", file=file, tokenizer=TOKENIZER, sampler=SAMPLER
    )


@pytest.fixture
def published(tmp_path):
    """Write spec, asset record and file; returns the arguments of the stage."""

    def make(backbone, content, file="weights/teacher.pt", **record) -> list[str]:
        path = tmp_path / "assets" / "released" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif file.endswith(".safetensors"):
            save_file(content, path)
        else:
            torch.save(content, path)
        entry = {"name": file, "bytes": path.stat().st_size, "sha256": sha256(path), "source": "x"} | record
        body = {"name": "released", "kind": "http", "title": "", "licence": "", "files": [entry]}
        (tmp_path / "assets" / "released.json").write_text(json.dumps(body))
        spec = adopt_spec(backbone, file)
        (tmp_path / "spec.json").write_text(dump(spec))
        return [
            *("--spec", str(tmp_path / "spec.json")),
            *("--asset", str(tmp_path / "assets" / "released.json")),
            *("--out", str(tmp_path / "out" / "model.safetensors")),
        ]

    return make


def post_hoc(state, other):
    """The flat state of a post-hoc EMA with two profiles."""
    emas = {"step": torch.tensor(7), "ema_models.0.initted": torch.tensor(True)}
    for index, tensors in enumerate((other, state)):
        emas |= {f"ema_models.{index}.ema_model.{name}": value for name, value in tensors.items()}
    return emas


FORMATS = {
    "safetensors": ("", lambda state, other: state),
    "bare": ("", lambda state, other: state),
    "ema": ("ema", lambda state, other: {"model": other, "ema": state, "opt": {"lr": 1e-4}, "epoch": 3}),
    "ema only": ("ema", lambda state, other: {"ema": state, "_extracted_from": "x.pt"}),
    "emas": (
        "emas.ema_models.1",
        lambda state, other: {"model": other, "ema": other, "emas": post_hoc(state, other)},
    ),
    "distributed": ("ema", lambda state, other: {"ema": {f"module.{name}": v for name, v in state.items()}}),
    "compiled": (
        "emas.ema_models.1",
        lambda state, other: {
            "emas": post_hoc({f"_orig_mod.module.{name}": v for name, v in state.items()}, other)
        },
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("qk_norm", [False, True])
def test_published_formats_are_adopted_bit_for_bit(spec, active, published, name, qk_norm):
    backbone = spec(qk_norm=qk_norm)
    state = active(backbone).state_dict()
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    file = "w.safetensors" if name == "safetensors" else "w.pt"
    place, content = FORMATS[name]
    arguments = published(backbone, content(state, other), file)
    adopt.main(arguments)
    tensors, card = load_model(arguments[-1])
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[key], state[key]) for key in state)
    del card["sha256"]
    assert card.pop("versions") == versions()
    assert card == {
        "status": "released",
        "source": {
            "asset": "released",
            "file": file,
            "sha256": sha256(Path(arguments[3]).with_suffix("") / file),
            "weights": place,
            "converted": [],
        },
        "latents": {"tokenizer": TOKENIZER.model_dump(mode="json")},
        "sampler": SAMPLER.model_dump(mode="json"),
        "spec": digest(adopt_spec(backbone, file)),
        "backbone": backbone.model_dump(mode="json"),
        "code": None,
    }


@pytest.mark.parametrize("reverse", [False, True])
def test_a_published_velocity_becomes_both_heads(spec, active, inputs, tmp_path, reverse):
    """Of a network with one output; where its time runs the other way, both heads are turned."""
    one = active(spec())
    both, converted = import_weights(one.state_dict(), spec(outputs=2), tmp_path / "x.pt", reverse)
    x, t, s, y = inputs(spec())
    velocity, flow_map = both(x, t, s, y)
    assert torch.equal(velocity, flow_map)
    expected = -one(x, 1 - t, s, y) if reverse else one(x, t, s, y)
    torch.testing.assert_close(velocity, expected, rtol=1e-3, atol=1e-4)
    assert bool(converted) == reverse


def test_networks_of_other_latents_are_refused(spec, active, published):
    arguments = published(spec(), active(spec()).state_dict())
    adopt.main(arguments)
    card = load_model(arguments[-1])[1]
    check_tokenizer(card, TOKENIZER, arguments[-1])
    other = TOKENIZER.model_copy(update={"multiplier": 0.18215})
    with pytest.raises(ValueError, match=r"another tokenizer \(multiplier 1.0 there, 0.18215 here\)"):
        check_tokenizer(card, other, arguments[-1])
    with pytest.raises(ValueError, match="its card names none"):
        check_tokenizer({}, TOKENIZER, "x")


def test_old_torch_files_are_read(spec, active, tmp_path):
    state = active(spec()).state_dict()
    torch.save({"ema": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "old.pt")[0]["pos_embed"], state["pos_embed"])


def test_half_precision_is_widened_exactly(spec, active, published):
    state = {name: value.bfloat16() for name, value in active(spec()).state_dict().items()}
    arguments = published(spec(), {"ema": state})
    adopt.main(arguments)
    tensors, _ = load_model(arguments[-1])
    assert all(value.dtype == torch.float32 for value in tensors.values())
    assert all(torch.equal(tensors[name], state[name].float()) for name in state)


def test_a_missing_target_embedding_is_added_without_effect(spec, active, published):
    state = active(spec()).state_dict()
    arguments = published(spec(target_time=True), state)
    adopt.main(arguments)
    first, _ = load_model(arguments[-1])
    torch.manual_seed(123)
    adopt.main(arguments)
    again, _ = load_model(arguments[-1])
    assert set(first) - set(state) == {f"r_embedder.mlp.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")}
    assert not first["r_embedder.mlp.2.weight"].any() and first["r_embedder.mlp.0.weight"].any()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_global_random_state_is_left_alone(spec, active, published):
    arguments = published(spec(), active(spec()).state_dict())
    before = torch.random.get_rng_state()
    adopt.main(arguments)
    assert torch.equal(before, torch.random.get_rng_state())


def refusal(arguments) -> str:
    with pytest.raises(ValueError) as caught:
        adopt.main(arguments)
    assert not Path(arguments[-1]).exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_unexpected_tensors_are_named(spec, active, published):
    state = active(spec()).state_dict()
    del state["blocks.0.norm1.weight"]
    state["blocks.2.norm1.weight"] = torch.ones(24)
    message = refusal(published(spec(), {"ema": state}))
    assert "teacher.pt does not fit the backbone" in message
    assert "missing blocks.0.norm1.weight" in message and "unexpected blocks.2.norm1.weight" in message


@pytest.mark.parametrize("given", [False, True])
def test_wrong_qk_norm_names_the_setting(spec, active, published, given):
    state = active(spec(qk_norm=given)).state_dict()
    message = refusal(published(spec(qk_norm=not given), state))
    assert f"set qk_norm: {str(given).lower()}" in message


def test_wrong_class_count_names_the_setting(spec, active, published):
    message = refusal(published(spec(classes=6), active(spec()).state_dict()))
    assert "labels for 5 classes" in message and "classes: 6" in message
    assert "new_labels: true" in message


def test_other_classes_have_new_embeddings_where_that_is_asked_for(spec, active, published, capsys):
    state = active(spec()).state_dict()
    arguments = published(spec(classes=3), state)
    sets = json.loads(Path(arguments[1]).read_text())
    del sets["digest"]
    Path(arguments[1]).write_text(json.dumps(sets | {"new_labels": True}))
    adopt.main(arguments)
    told = "embeddings of 3 classes drawn anew, in place of 5; the unconditional one kept"
    assert told in capsys.readouterr().out
    tensors, card = load_model(arguments[-1])
    assert card["source"]["converted"] == [told]
    name = "y_embedder.embedding_table.weight"
    assert torch.equal(tensors[name][-1], state[name][-1])
    assert len(tensors[name]) == 4 and not torch.equal(tensors[name][:3], state[name][:3])
    assert all(torch.equal(tensors[key], value) for key, value in state.items() if key != name)
    again, _ = import_weights(dict(state), spec(classes=3), Path("x"), new_labels=True)
    assert torch.equal(again.state_dict()[name], tensors[name])


def test_new_embeddings_in_place_of_none_are_refused(spec, active):
    state = active(spec()).state_dict()
    del state["y_embedder.embedding_table.weight"]
    with pytest.raises(ValueError, match="x: new_labels: there are no embeddings of classes of width"):
        import_weights(state, spec(classes=3), Path("x"), new_labels=True)


def test_a_target_embedding_that_the_backbone_lacks_names_the_setting(spec, active, published):
    message = refusal(published(spec(), active(spec(target_time=True)).state_dict()))
    assert "set target_time: true" in message


def test_another_width_is_a_shape_mismatch(spec, active, published):
    message = refusal(published(spec(width=32), active(spec()).state_dict()))
    assert "pos_embed is [1, 24, 24], not [1, 24, 32]" in message


def test_wrong_checksum(spec, active, published):
    state = active(spec()).state_dict()
    message = refusal(published(spec(), state, sha256="0" * 64))
    assert f"not {'0' * 64}" in message and "fetch the asset again" in message


def test_pickled_objects_are_refused(spec, active, published):
    content = {"ema": active(spec()).state_dict(), "args": argparse.Namespace(lr=1.0)}
    assert "holds pickled objects" in refusal(published(spec(), content))


def test_raw_training_weights_are_refused(spec, active, published):
    content = {"model": active(spec()).state_dict(), "epoch": 3}
    message = refusal(published(spec(), content))
    assert "under emas or ema" in message and "model, epoch" in message


def test_an_ema_with_one_profile_is_refused(spec, published):
    assert "emas has no ema_models.1" in refusal(published(spec(), {"emas": {"step": torch.tensor(1)}}))


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_damaged_files(spec, published, file, content):
    assert file in refusal(published(spec(), content, file))


def test_other_number_types_are_refused(spec, active, published):
    state = active(spec()).state_dict()
    state["pos_embed"] = state["pos_embed"].double()
    assert "pos_embed: is torch.float64" in refusal(published(spec(), state))


def test_non_finite_weights_and_outputs_are_refused(spec, active, published):
    state = active(spec()).state_dict()
    weight = state["final_layer.linear.weight"]
    weight[0, 0] = float("nan")
    assert "final_layer.linear.weight: has values" in refusal(published(spec(), state))
    weight.fill_(3e38)
    assert "not finite" in refusal(published(spec(), state))


def test_records_that_do_not_match(spec, active, published, tmp_path):
    arguments = published(spec(), active(spec()).state_dict())
    record = Path(arguments[3])
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"name": "other"}))
    assert "is the record of other" in refusal(arguments)
    record.write_text(json.dumps(content | {"files": []}))
    assert "has no file 'weights/teacher.pt'" in refusal(arguments)
    record.write_text("{}")
    assert "released.json: not the record of a fetched asset: name: is missing" in refusal(arguments)
    record.write_text(json.dumps(content))
    (tmp_path / "assets/released/weights/teacher.pt").unlink()
    assert "teacher.pt is missing; fetch the asset again" in refusal(arguments)


def test_run_prints_one_line_and_exits_with_one(capsys):
    def refuse(argv):
        raise ConfigError("spec.json: backbone: wrong")

    with pytest.raises(SystemExit) as caught:
        run(refuse)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: spec.json: backbone: wrong\n"

    def broken(argv):
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError):
        run(broken)
