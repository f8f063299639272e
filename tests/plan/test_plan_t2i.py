"""The plan of text to image: captions, a base and its adapters, prompts and their scorers; at both scales."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from configs import ROOT, behind, copied, make_plan, raw_config, told

from fewstep.config import ConfigError, dump, read_spec
from fewstep.config.base import merge
from fewstep.config.specs import (
    CellKey,
    ExportSpec,
    PipelineSpec,
    PromptScoreSpec,
    ReembedSpec,
    SampleSpec,
    TextSpec,
    TrainSpec,
    score_spec_class,
)
from fewstep.config.text import Scorer
from fewstep.environment import machine
from fewstep.plan import Plan
from fewstep.plan.jobs import maker

ABLATIONS = ("fm", "fm-cd", "fm-n2n", "no-normalisation", "arctan", "log", "freq-1", "freq-5")
"""Variants of DE-CM in table3-t2i."""
STUDENT = {"run": "decm-t2i/base", "seed": "0"}


@dataclass(frozen=True)
class Scale:
    """A plan, and what text to image is called in it."""

    plan: Plan
    results: str
    latents: str
    encoder: str
    captions: str
    prompts: str
    protocol: str

    @property
    def cell(self) -> dict[str, str]:
        return {**STUDENT, "sampler": "mix", "steps": "4"}

    def model(self, run: str) -> list[str]:
        return [f"{self.results}/{run}/base/0/model.safetensors"]

    def record(self, asset: str) -> list[str]:
        return [self.plan.file("record", asset=asset)]

    def store(self, captions: str) -> list[str]:
        return [self.plan.file("text", encoder=self.encoder, captions=captions)]


@pytest.fixture(params=["paper", "demo"])
def scale(request, paper_plan, demo_plan) -> Scale:
    if request.param == "paper":
        return Scale(paper_plan, "results", "t2i-sd3", "sd3", "t2i-2m", "image-reward", "t2i-paper")
    names = ("results/demo", "scenes-latents", "scenes-clip", "scenes", "scenes-test", "scenes")
    return Scale(demo_plan, *names)


@pytest.fixture(scope="module")
def live_plan() -> Plan:
    return make_plan(merge(raw_config("demo"), {"text": "live", "targets": ["table2"]}))


def test_what_makes_a_model(scale):
    made = {name: run.maker for name, run in scale.plan.runs.items() if run.text_encoder == scale.encoder}
    assert made == {
        "sd35-medium/base": "adopt" if scale.protocol == "t2i-paper" else "train",
        "sd35-smooth/base": "reembed",
        "sd35-finetuned/base": "train",
        **{f"decm-t2i/{variant}": "train" for variant in ABLATIONS},
        **{f"{method}-t2i/base": "train" for method in ("cd", "decm", "meanflow", "rcgm", "twinflow")},
    }
    for name, stage in made.items():
        assert maker(scale.plan, scale.plan.file("model", run=name, seed=0)).stage == stage
    student, smooth = scale.plan.run("decm-t2i"), scale.plan.run("sd35-smooth")
    assert (student.teacher, student.base) == ("sd35-smooth", "sd35-smooth")
    # Its weights are fitted, not learnt from the network that they were.
    assert (smooth.teacher, smooth.base) == (None, None)
    assert scale.plan.run("sd35-finetuned").base is None


def test_one_seed_of_what_is_not_trained(demo_plan):
    table = make_plan(merge(raw_config("demo"), {"seeds": [0, 1]})).tables["table2"]
    assert table.seeds == {"sd35-medium": [0], "decm": [0, 1]}
    assert demo_plan.tables["table2"].seeds == {"sd35-medium": [0], "decm": [0]}


def test_inputs_of_training(scale):
    found = scale.plan.inputs("train", STUDENT)
    assert found == {
        "spec": [f"{scale.results}/specs/train/decm-t2i/base/0.json"],
        "latents": [scale.plan.file("manifest", latents=scale.latents)],
        "text": scale.store(scale.captions),
        "captions": [],
        "encoder": [],
        "continued": [],
        "teacher": scale.model("sd35-smooth"),
        "sampling": [f"{scale.results}/specs/sampling/decm-t2i/base.json"],
    }


def test_inputs_of_the_text_stage(scale):
    dataset = scale.plan.parts.datasets[scale.captions]
    encoder = scale.model("scenes-clip") if scale.encoder == "scenes-clip" else scale.record("sd35-medium")
    found = scale.plan.inputs("text", {"encoder": scale.encoder, "captions": scale.captions})
    assert (found["captions"], found["encoder"]) == (scale.record(dataset.asset), encoder)
    found = scale.plan.inputs("text", {"encoder": scale.encoder, "captions": scale.prompts})
    asset = scale.plan.parts.prompts[scale.prompts].asset
    assert (found["captions"], found["encoder"]) == (scale.record(asset), encoder)


def test_a_clip_reads_words(demo_plan):
    found = demo_plan.inputs("train", {"run": "scenes-clip/base", "seed": "0"})
    assert found["text"] == [demo_plan.file("text", encoder="scenes-words", captions="scenes")]
    words = demo_plan.inputs("text", {"encoder": "scenes-words", "captions": "scenes"})
    assert words["encoder"] == []


def test_inputs_of_fitting_a_time(scale):
    found = scale.plan.inputs("reembed", {"run": "sd35-smooth/base", "seed": "0"})
    assert found["model"] == scale.model("sd35-medium")


def test_inputs_of_sampling(scale):
    """Adapters need their base, and images of prompts the prompts' store, not that of the data."""
    images = scale.plan.image_set(scale.protocol)
    assert images.startswith(f"{scale.prompts}-")
    found = scale.plan.inputs("sample", {**scale.cell, "images": images})
    assert (found["model"], found["base"]) == (scale.model("decm-t2i"), scale.model("sd35-smooth"))
    assert found["text"] == scale.store(scale.prompts)
    whole = {"run": "sd35-medium/base", "seed": "0", "sampler": "euler-sd3", "steps": "4", "images": images}
    found = scale.plan.inputs("sample", whole)
    assert (found["base"], found["text"]) == ([], scale.store(scale.prompts))


def test_inputs_of_scores(scale):
    """The scorers' weights come in the order of their names, whatever that of the configuration is."""
    found = scale.plan.inputs("score", {**scale.cell, "protocol": scale.protocol})
    assert found["prompts"] == scale.record(scale.plan.parts.prompts[scale.prompts].asset)
    assert (found["extractor"], found["reference"]) == ([], [])
    if scale.protocol == "scenes":
        assert found["scorers"] == [*scale.model("scenes-clip"), *scale.model("scenes-detector")]
    else:
        blip, clip, reward = "blip-large", "clip-vit-l14", "image-reward"
        assets = [blip, "bert-base-uncased", clip, reward, "bert-base-uncased"]
        assert found["scorers"] == [path for asset in assets for path in scale.record(asset)]


def test_scores_of_table_2(paper_plan):
    """Its three columns under the inferred protocol; those that readers expect today under the common one."""
    table = paper_plan.tables["table2"]
    assert table.protocols == ["t2i-paper", "t2i-common"]
    given = {name: paper_plan.parts.protocols[name] for name in table.protocols}
    assert given["t2i-paper"].metrics == ["clip", "blip", "image_reward"]
    assert {*given["t2i-common"].metrics} == {*given["t2i-paper"].metrics, "pickscore", "hps"}
    reported = {metric for row in table.table.rows for metric in row.reported}
    assert reported == set(given["t2i-paper"].metrics) <= {table.table.metric, *table.table.metrics}
    found = [
        paper_plan.inputs("score", {**STUDENT, "sampler": "mix", "steps": "4", "protocol": name})["scorers"]
        for name in table.protocols
    ]
    assert set(found[0]) < set(found[1])
    assets = {"clip-vit-h14", "pickscore-v1", "hps-v2.1"}
    assert set(found[1]) - set(found[0]) == {paper_plan.file("record", asset=asset) for asset in assets}
    assert {*assets, "hpsv2-prompts", "image-reward-prompts"} <= set(paper_plan.assets(["table2"]))
    # The miniature has a CLIP and a detector of its own.
    assert not {*assets, "blip-large"} & set(make_plan(raw_config("demo")).assets(["table2"]))


@pytest.mark.parametrize(
    ("protocol", "assets", "prompts", "images"),
    [
        ("t2i-geneval", ["mask2former-swin-small", "clip-vit-l14"], "geneval-prompts", 4 * 553),
        ("t2i-dpg", ["qwen3-vl-8b"], "dpg-bench", 4 * 1065),
        ("t2i-geneval2", ["qwen3-vl-8b"], "geneval2-prompts", 800),
    ],
)
def test_scores_of_objects_and_questions(paper_plan, protocol, assets, prompts, images):
    cell = {**STUDENT, "sampler": "mix", "steps": "4", "protocol": protocol}
    found = paper_plan.inputs("score", cell)
    assert found["scorers"] == [paper_plan.file("record", asset=asset) for asset in assets]
    assert found["prompts"] == [paper_plan.file("record", asset=prompts)]
    spec = paper_plan.spec("score", f"decm-t2i/base/0/mix-4/{protocol}")
    assert isinstance(spec, PromptScoreSpec) and spec.scorers == {}
    assert spec.sample.images == images and images % spec.prompts.prompts == 0


def test_twinflows_table_takes_several_protocols(paper_plan):
    """GenEval's own; DPG-Bench for its column; GenEval 2 for who asks for it."""
    table = paper_plan.tables["twinflow-table1"]
    assert table.protocols == ["t2i-geneval"] and table.extra_metrics["dpg"] == "t2i-dpg"
    assert "geneval2-prompts" not in paper_plan.assets(["twinflow-table1"])
    changes = {"tables": {"twinflow-table1": {"metrics": ["geneval2"]}}}
    asked = make_plan(merge(raw_config(), {"overrides": changes}))
    assert asked.tables["twinflow-table1"].extra_metrics == {"geneval2": "t2i-geneval2"}
    assert "geneval2-prompts" in asked.assets(["twinflow-table1"])


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"kind": "questions", "weights": {"method": "x"}}, "kind: questions must be of assets"),
        (
            {
                "kind": "mask2former",
                "weights": {"asset": "x", "file": "y"},
                "colours": {"method": "scenes-clip"},
            },
            "kind: mask2former must be of assets",
        ),
        ({"kind": "mask2former", "weights": {"asset": "x", "file": "y"}}, "needed by, kind: mask2former"),
    ],
)
def test_published_networks_are_assets(scorer, message):
    with pytest.raises(ValueError, match=message):
        Scorer.model_validate(scorer)


def test_scorers_are_ordered_by_name():
    raw = raw_config("demo")
    scorers = {"geneval": {"kind": "cells", "weights": {"method": "scenes-detector"}}}
    scorers |= {"clip": {"kind": "clip", "weights": {"method": "scenes-clip"}}}
    entry = {"kind": "prompt-scores", "prompts": "scenes-test", "images": 323, "metrics": ["geneval", "clip"]}
    protocols = {"mine": entry | {"scorers": scorers}}
    settings = {
        "protocols": protocols,
        "recipes": {"scenes": {"protocols": ["scenes", "scenes-fid", "mine"]}},
    }
    changes = {"settings": settings, "tables": {"table2": {"metrics": ["clip"]}}}
    plan = make_plan(merge(raw, {"overrides": changes}))
    assert list(plan.parts.protocols["mine"].scorers) == ["geneval", "clip"]
    found = plan.inputs("score", {**STUDENT, "sampler": "mix", "steps": "4", "protocol": "mine"})
    assert found["scorers"] == [plan.model("scenes-clip"), plan.model("scenes-detector")]


def test_a_preset_adds_networks_and_prompts(demo_plan):
    """Of kinds that have neither classes nor an extractor."""
    network = demo_plan.parts.backbones["sd3-scenes-smooth"].model_dump() | {"layers": 2}
    autoencoder = demo_plan.parts.backbones["scenes-autoencoder"].model_dump()
    changes = {"backbones": {"mine": network, "another": autoencoder}}
    parts = make_plan(merge(raw_config("demo"), {"overrides": {"settings": changes}})).parts
    assert parts.backbones["mine"].layers == 2 and parts.backbones["another"].latent == 8


def test_inputs_of_export_and_pipeline(scale):
    found = scale.plan.inputs("export", STUDENT)
    names = ("model", "base", "origin")
    runs = ("decm-t2i", "sd35-smooth", "sd35-medium")
    assert [found[name] for name in names] == [scale.model(run) for run in runs]
    if scale.protocol == "scenes":
        found = scale.plan.inputs("pipeline", {"run": "sd35-medium/base", "seed": "0"})
        assert found["latents"] == [scale.plan.file("manifest", latents=scale.latents)]
        assert found["tokenizer"] == scale.model("scenes-autoencoder")
        assert found["encoder"] == scale.model("scenes-clip")


def test_a_base_that_is_not_fitted_is_the_origin(demo_plan):
    """A student of SD3 at its own time is adapters of that network itself."""
    backbones = {"sd3-scenes-lora": {"time_scale": 1000.0}}
    changes = {"settings": {"backbones": backbones}, "methods": {"decm-t2i": {"teacher": "sd35-medium"}}}
    plan = make_plan(merge(raw_config("demo"), {"overrides": changes}))
    found = plan.inputs("export", STUDENT)
    assert (found["base"], found["origin"]) == ([plan.model("sd35-medium")], [])


def test_only_adapters_are_exported(demo_plan):
    with pytest.raises(ConfigError, match=r"sd35-medium\.backbone: sd3-scenes has no adapters \(lora\)"):
        demo_plan.inputs("export", {"run": "sd35-medium/base", "seed": "0"})


@pytest.mark.parametrize(
    ("plan", "run", "words"),
    [
        ("paper_plan", "sd35-medium/base", "published weights have a folder of diffusers already"),
        ("demo_plan", "decm-t2i/base", "sd3-scenes-lora is no plain SD3"),
    ],
)
def test_only_a_plain_sd3_of_ours_becomes_a_folder(plan, run, words, request):
    with pytest.raises(ConfigError) as error:
        request.getfixturevalue(plan).spec("pipeline", run)
    assert words in str(error.value) and ".backbone: " in str(error.value)


# Specs


def test_a_text_spec_of_a_data_set(scale):
    spec = scale.plan.spec("text", f"{scale.encoder}/{scale.captions}")
    assert isinstance(spec, TextSpec) and spec.prompts is None
    assert spec.dataset == scale.plan.parts.datasets[scale.captions]
    assert (spec.text.name, spec.text.captions) == (scale.captions, spec.dataset.classes)
    assert spec.text.encoder == scale.plan.parts.text_encoders[scale.encoder]
    assert (spec.backbone is not None) == (scale.encoder == "scenes-clip")
    # The same captions, whoever reads them.
    assert scale.plan.spec("train", "decm-t2i/base/0").text == spec.text


def test_a_text_spec_of_prompts(scale):
    spec = scale.plan.spec("text", f"{scale.encoder}/{scale.prompts}")
    assert spec.dataset is None and spec.prompts == scale.plan.parts.prompts[scale.prompts]
    assert (spec.text.name, spec.text.captions) == (scale.prompts, spec.prompts.prompts)
    images = scale.plan.image_set(scale.protocol)
    sample = scale.plan.spec("sample", f"decm-t2i/base/mix-4/{images}")
    assert sample.text == spec.text and sample.labels == "balanced"
    assert sample.images % spec.text.captions == 0


def test_specs_of_class_to_image_know_nothing_of_captions(demo_plan):
    """Their digests stay those that they were."""
    assert "text" not in demo_plan.spec("train", "decm/base/0").model_dump()
    images = demo_plan.image_set("digits")
    assert "text" not in demo_plan.spec("sample", f"decm/base/mix-4/{images}").model_dump()
    # Of captions, but by a network that is given none.
    assert demo_plan.spec("train", "scenes-autoencoder/base/0").text is None


def test_a_spec_of_a_fitted_time(scale):
    spec = scale.plan.spec("reembed", "sd35-smooth/base")
    assert isinstance(spec, ReembedSpec)
    assert (spec.method, spec.reembed.of, spec.backbone.time_scale) == ("sd35-smooth", "sd35-medium", 20.0)
    with pytest.raises(ConfigError, match=r"decm-t2i\.reembed: "):
        scale.plan.spec("reembed", "decm-t2i/base")


def test_a_spec_of_prompt_scores(scale):
    spec = scale.plan.spec("score", f"decm-t2i/base/0/mix-4/{scale.protocol}")
    assert isinstance(spec, PromptScoreSpec)
    assert spec.cell == CellKey(
        method="decm-t2i", variant="base", seed=0, sampler="mix", steps=4, protocol=scale.protocol
    )
    assert spec.prompts == scale.plan.parts.prompts[scale.prompts]
    assert spec.sample == scale.plan.spec(
        "sample", f"decm-t2i/base/mix-4/{scale.plan.image_set(scale.protocol)}"
    )
    ours = {"clip": "clip", "geneval": "conv-classifier"} if scale.protocol == "scenes" else {}
    assert {name: network.kind for name, network in spec.scorers.items()} == ours


def test_a_spec_of_an_export_has_the_licence_of_its_base(scale):
    spec = scale.plan.spec("export", "decm-t2i/base")
    assert isinstance(spec, ExportSpec)
    # What was trained here stands under the licence of its data.
    licence = "Stability AI Community License" if scale.protocol == "t2i-paper" else "CC BY-SA 4.0"
    assert spec.licence == licence
    assert spec.guidance == scale.plan.run("decm-t2i").guidance
    assert spec.backbone == scale.plan.run("decm-t2i").backbone


def test_specs_survive_the_disk(scale, tmp_path):
    images = scale.plan.image_set(scale.protocol)
    names = {
        ("text", f"{scale.encoder}/{scale.captions}"): TextSpec,
        ("reembed", "sd35-smooth/base"): ReembedSpec,
        ("train", "decm-t2i/base/0"): TrainSpec,
        ("sample", f"decm-t2i/base/mix-4/{images}"): SampleSpec,
        ("score", f"decm-t2i/base/0/mix-4/{scale.protocol}"): PromptScoreSpec,
        ("export", "decm-t2i/base"): ExportSpec,
    }
    if scale.protocol == "scenes":
        names["pipeline", "sd35-medium/base"] = PipelineSpec
    path = tmp_path / "spec.json"
    for (stage, name), model in names.items():
        text = scale.plan.spec_text(stage, name) + "\n"
        path.write_text(text)
        assert dump(read_spec(model, path)) == text, stage
        if stage == "score":
            assert score_spec_class(scale.plan.spec(stage, name).model_dump()) is PromptScoreSpec


# Captions that are encoded by the training itself


def test_live_text_keeps_no_store_of_the_captions(live_plan):
    stores = [job.key for job in live_plan.jobs() if job.stage == "text"]
    # Prompts are few, and every cell reads them.
    assert stores == [{"encoder": "scenes-clip", "captions": "scenes-test"}]
    stored = make_plan(merge(raw_config("demo"), {"targets": ["table2"]}))
    names = {job.key["captions"] for job in stored.jobs() if job.stage == "text"}
    assert names == {"scenes", "scenes-test"}
    # What is trained and sampled stays what it was.
    others = [[job for job in plan.jobs() if job.stage != "text"] for plan in (live_plan, stored)]
    assert sorted(map(str, others[0])) == sorted(map(str, others[1]))


def test_live_text_is_encoded_from_its_spec(live_plan):
    found = live_plan.inputs("train", STUDENT)
    assert found["text"] == ["results/demo/specs/text/scenes-clip/scenes.json"]
    assert found["captions"] == [live_plan.file("record", asset="scenes")]
    assert found["encoder"] == [live_plan.model("scenes-clip")]
    words = live_plan.inputs("train", {"run": "scenes-clip/base", "seed": "0"})
    assert words["text"] == ["results/demo/specs/text/scenes-words/scenes.json"] and words["encoder"] == []
    for run in ("scenes-autoencoder/base", "decm/base"):
        found = live_plan.inputs("train", {"run": run, "seed": "0"})
        assert [found[name] for name in ("text", "captions", "encoder")] == [[], [], []]


def test_live_text_changes_no_spec(live_plan, demo_plan):
    for name in ("decm-t2i/base/0", "scenes-clip/base/0"):
        assert live_plan.spec_text("train", name) == demo_plan.spec_text("train", name)


# Environments, by whose packages jobs run


@pytest.mark.parametrize(
    ("stage", "key", "name"),
    [
        ("fetch", {"asset": "digits"}, "workflow"),
        ("fetch", {"asset": "scenes"}, "t2i"),
        ("fetch", {"asset": "sd35-medium"}, "workflow"),
        ("train", {"run": "decm/base"}, "torch"),
        ("train", {"run": "decm-t2i/base"}, "t2i"),
        ("train", {"run": "scenes-clip/base"}, "t2i"),
        ("train", {"run": "scenes-detector/base"}, "torch"),
        ("sample", {"run": "decm/base"}, "torch"),
        ("sample", {"run": "sd35-medium/base"}, "t2i"),
        ("score", {"run": "decm/base", "protocol": "digits"}, "metrics"),
        ("score", {"run": "decm-t2i/base", "protocol": "scenes"}, "t2i"),
        ("costs", {}, "torch"),
    ],
)
def test_environments(stage, key, name, demo_plan):
    assert demo_plan.environment(stage, key) == name
    assert (ROOT / "envs" / f"{name}.yaml").exists()


def test_costs_of_captions_are_counted_with_their_packages(live_plan):
    assert live_plan.environment("costs", {}) == "t2i"
    # A curve of the training alone: nothing is sampled, and with live text there is no store.
    table = {"kind": "training", "metric": "loss", "metrics": []}
    changes = {"text": "live", "targets": ["table2"], "overrides": {"tables": {"table2": table}}}
    plan = make_plan(merge(raw_config("demo"), changes))
    assert not behind(plan, "table2").keys() & {"text", "sample"}
    assert plan.environment("costs", {}) == "t2i"


# Claims


def test_claims_of_a_target_of_their_own(demo_plan, paper_plan):
    ours = [entry.claim.id for entry in demo_plan.claims_of("scenes-claims")]
    assert len(ours) == 8 and all(name.startswith("t2i-") for name in ours)
    assert demo_plan.parts_of("scenes-claims") == [
        "results/demo/scenes-claims.csv",
        "results/demo/scenes-claims.md",
    ]
    report = [entry.claim.id for entry in demo_plan.claims_of("claims")]
    assert report and not set(report) & set(ours)
    spec = demo_plan.spec("claims", "scenes-claims")
    assert [claim.id for claim in spec.claims] == ours and spec.scale == "demo"
    # Three seeds of the student against the one of what it starts from.
    cells = spec.cells["t2i-geneval-1"]
    assert [[key.seed for key in keys] for keys in cells] == [[0, 0], [1, 0], [2, 0]]
    assert {key.protocol for keys in cells for key in keys} == {"scenes"}
    files = demo_plan.inputs("claims", {"claims": "scenes-claims"})["metrics"]
    assert demo_plan.metrics(cells[2][0]) in files
    assert maker(demo_plan, "results/demo/scenes-claims.csv").key == {"claims": "scenes-claims"}
    # Made when it is asked for.
    assert "scenes-claims" not in demo_plan.wanted and "scenes-claims" not in paper_plan.wanted
    asked = make_plan(merge(raw_config("demo"), {"targets": ["scenes-claims"]}))
    assert asked.targets() == demo_plan.parts_of("scenes-claims")


def test_claims_hold_at_their_scales_only(demo_plan, paper_plan):
    """The paper reports no GenEval here, and its recipe's protocol has none."""
    found = {entry.claim.id for entry in paper_plan.claims_of("scenes-claims")}
    assert found == {"t2i-clip-1", "t2i-clip-2", "t2i-clip-4"}
    scales = {entry.claim.id: entry.claim.scales for entry in demo_plan.claims_of("scenes-claims")}
    assert {name for name, given in scales.items() if given == ["demo"]} == scales.keys() - found
    assert paper_plan.spec("claims", "scenes-claims").scale == "paper"


# What is made by name, and gated


def doctor_lines(plan: Plan, monkeypatch, tmp_path, token: str = "") -> dict[str, machine.Check]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.chdir(tmp_path)
    return {check.name: check for check in machine.assets(plan)}


def test_tables_made_by_name_are_not_wanted(paper_plan):
    assert not {"table2", "figure7"} & set(paper_plan.wanted)
    assert "sd35-medium" not in paper_plan.assets() and "sd35-medium" in paper_plan.assets(["table2"])


def test_doctor_warns_of_the_gate_of_a_table_made_by_name(paper_plan, monkeypatch, tmp_path):
    check = doctor_lines(paper_plan, monkeypatch, tmp_path)["asset sd35-medium"]
    assert check.state == "warn"
    page = "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium"
    licence = f"accept its licence (Stability AI Community License) at {page} and set HF_TOKEN"
    assert check.text.startswith("is gated: for ") and licence in check.text
    check = doctor_lines(paper_plan, monkeypatch, tmp_path, "made up")["asset sd35-medium"]
    assert check.state == "ok"


def test_doctor_refuses_a_gate_of_what_is_wanted(monkeypatch, tmp_path):
    plan = make_plan(merge(raw_config(), {"targets": ["table2"]}))
    found = doctor_lines(plan, monkeypatch, tmp_path)
    assert found["asset sd35-medium"].state == "fail"
    assert found["asset clip-vit-l14"].state == "ok"


def test_the_miniature_has_no_gate(demo_plan, monkeypatch, tmp_path):
    assert doctor_lines(demo_plan, monkeypatch, tmp_path).keys() == {"asset digits"}


# Mistakes

RECIPE = "{scale: demo, latents: scenes-latents, backbone: sd3-scenes-smooth, teacher: sd35-smooth, " + (
    "guidance: {scale: 2.0}, train: {steps: 10, global_batch_size: 8, optimizer: {lr: 1.0e-3}, "
    "ema: {kind: constant, decay: 0.9}}}"
)
MINE = "sd35-finetuned: {recipe: mine}"
MISTAKES = {
    "captions of images without": (
        "overrides: {settings: {recipes: {digits: {text_encoder: scenes-clip}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.digits.text_encoder: the images of digits-latents "
            "have no captions"
        ],
    ),
    "SD3 without captions": (
        f"overrides: {{settings: {{recipes: {{mine: {RECIPE}}}}}, methods: {{{MINE}}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.mine.text_encoder: is missing; backbone "
            "sd3-scenes-smooth is conditioned on captions"
        ],
    ),
    "a CLIP without captions": (
        "overrides: {settings: {recipes: {scenes-clip: {text_encoder: null}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.scenes-clip.text_encoder: is missing; backbone "
            "scenes-clip is conditioned on captions"
        ],
    ),
    "words for a CLIP's embeddings": (
        "overrides: {settings: {recipes: {scenes-clip: {text_encoder: scenes-clip}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.scenes-clip.text_encoder: scenes-clip is of kind "
            "clip, but backbone scenes-clip needs one of kind words"
        ],
    ),
    "an encoder": (
        "overrides: {settings: {recipes: {scenes: {text_encoder: scene-clip}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.scenes.text_encoder: unknown name 'scene-clip'; "
            "did you mean 'scenes-clip'?"
        ],
    ),
    "an encoder without weights": (
        "overrides: {settings: {text_encoders: {scenes-clip: {weights: null}}}}",
        [
            "config/mine.yaml: overrides.settings.text_encoders.scenes-clip: kind: clip needs weights: "
            "method, not none"
        ],
    ),
    "adapters without a teacher": (
        "overrides: {methods: {decm-t2i: {teacher: false}}}",
        [
            "config/mine.yaml: overrides.methods.decm-t2i.teacher: backbone sd3-scenes-lora has adapters "
            "(lora), which need a teacher"
        ],
    ),
    "a time of another kind of network": (
        "overrides: {methods: {facm: {reembed: {of: sd35-medium}}}}",
        [
            "config/mine.yaml: overrides.methods.facm.reembed: backbone lightningdit-digits is of kind "
            "lightningdit, not sd3"
        ],
    ),
    "a time fitted to another kind of network": (
        "overrides: {methods: {sd35-smooth: {reembed: {of: teacher}}}}",
        [
            "config/mine.yaml: overrides.methods.sd35-smooth.reembed.of: backbone "
            "lightningdit-digits-teacher differs from sd3-scenes-smooth in kind; the embedding of a time has "
            "time_scale alone of its own"
        ],
    ),
    "a time fitted to a smaller network": (
        "overrides: {settings: {backbones: {sd3-scenes-smooth: {layers: 6, dual_attention: 3}}}}",
        [
            "config/methods/t2i.yaml: sd35-smooth.reembed.of: backbone sd3-scenes differs from "
            "sd3-scenes-smooth in layers, dual_attention; the embedding of a time has time_scale alone of "
            "its own"
        ],
    ),
    "times in a circle": (
        "overrides: {methods: {sd35-medium: {reembed: {of: sd35-smooth}}}}",
        [
            "config/mine.yaml: overrides.methods.sd35-medium.reembed.of: sd35-medium <- sd35-smooth <- "
            "sd35-medium goes in a circle",
            "config/methods/t2i.yaml: sd35-smooth.reembed.of: sd35-smooth <- sd35-medium <- sd35-smooth "
            "goes in a circle",
        ],
    ),
    "a time of its own": (
        "overrides: {methods: {sd35-smooth: {reembed: {of: sd35-smooth}}}}",
        [
            "config/mine.yaml: overrides.methods.sd35-smooth.reembed.of: sd35-smooth is the entry itself; "
            "name another"
        ],
    ),
    "prompts without an encoder": (
        "overrides: {settings: {recipes: {digits: {protocols: [digits, scenes]}}}}",
        [
            "config/mine.yaml: overrides.settings.recipes.digits.protocols: scenes has prompts, which need a "
            "text_encoder"
        ],
    ),
    "images and prompts": (
        "overrides: {settings: {protocols: {scenes: {images: 324}}}}",
        [
            "config/mine.yaml: overrides.settings.protocols.scenes.images: 324 images do not divide into 323 "
            "prompts; give a multiple"
        ],
    ),
    "a set of prompts": (
        "overrides: {settings: {protocols: {scenes: {prompts: scene-test}}}}",
        [
            "config/mine.yaml: overrides.settings.protocols.scenes.prompts: unknown name 'scene-test'; did "
            "you mean 'scenes-test'?"
        ],
    ),
    "prompts named like a data set": (
        "overrides: {settings: {prompts: {scenes: {asset: scenes, files: [prompts.jsonl], prompts: 323}}}}",
        ["config/mine.yaml: overrides.settings.prompts.scenes: a data set has that name; rename one"],
    ),
    "a scorer of another": (
        "overrides: {settings: {protocols: {scenes: {scorers: {geneval: {kind: clip}}}}}}",
        [
            "config/mine.yaml: overrides.settings.protocols.scenes: scorers.geneval.kind: clip is of another "
            "scorer"
        ],
    ),
    "a metric without its scorer": (
        "overrides: {settings: {protocols: {t2i-common: {metrics: [clip, geneval]}}}}",
        ["config/mine.yaml: overrides.settings.protocols.t2i-common: metrics: geneval needs scorers.geneval"],
    ),
    "a prompt beyond the set": (
        "overrides: {tables: {figure7: {classes: [0, 323]}}}",
        ["config/mine.yaml: overrides.tables.figure7.classes: 323, but sd35-medium has the prompts 0 to 322"],
    ),
    "too few steps": (
        "overrides: {tables: {table2: {rows: {decm: {sampler: mix}}}}}",
        ["config/mine.yaml: overrides.tables.table2.rows.decm: sampler 'mix' needs at least 2 steps, not 1"],
    ),
    "how captions are read": (
        "text: alive",
        ["config/mine.yaml: text: 'alive' is not one of stored, live; did you mean 'live'?"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told(mistake, tmp_path):
    preset, lines = MISTAKES[mistake]
    assert told(copied(tmp_path), f"based_on: config/demo.yaml\n{preset}\n") == lines


@pytest.mark.parametrize("name", ["table2", "plan", "report"])
def test_claims_in_the_file_of_another_target(name, tmp_path):
    file = copied(tmp_path) / "config/claims.yaml"
    file.write_text(file.read_text().replace("target: scenes-claims", f"target: {name}", 1))
    assert told(tmp_path, "based_on: config/demo.yaml\n") == [
        f"config/claims.yaml: t2i-geneval-1.target: {name!r} is the name of another target; "
        "choose one of its own"
    ]
