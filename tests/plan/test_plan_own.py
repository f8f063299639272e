"""Own images: what a folder says of a data set, and what follows from it in the plan."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from configs import ROOT, behind, raw_config
from own_images import draw, draw_parquet, own_plan

from fewstep.common.image_folders import look_into
from fewstep.config import ConfigError
from fewstep.config.base import merge, read_yaml
from fewstep.config.origins import SOMEWHERE
from fewstep.plan.targets import check

COLUMNS = ("image", "label")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(overrides=None, **more) -> str:
    with pytest.raises(ConfigError) as error:
        own_plan(overrides, **more)
    return str(error.value).removeprefix(f"{SOMEWHERE}: overrides.")


def test_a_folder_for_each_class(tmp_path):
    draw({"cats": 3, "dogs": 2})
    plan = own_plan()
    dataset = plan.parts.datasets["own"]
    assert (dataset.format, dataset.images, dataset.classes) == ("imagefolder", 5, 2)
    assert (dataset.names, dataset.resolution, dataset.crop) == (["cats", "dogs"], 32, "adm")
    assert plan.parts.tokenizers["own"].shape == [3, 32, 32]
    backbone = plan.runs["decm/base"].backbone
    assert (backbone.shape, backbone.classes) == ([3, 32, 32], 2)
    assert plan.config.notes == ["data set own: 5 images of 2 classes (cats, dogs) in data/own; 32x32 pixels"]


def test_images_in_the_folder_itself_are_one_class():
    draw({".": 4})
    dataset = own_plan().parts.datasets["own"]
    assert (dataset.images, dataset.classes, dataset.names) == (4, 1, ["own"])


@pytest.mark.parametrize("split", [False, True])
def test_the_hubs_folder_of_images(split):
    draw({"train/a": 3, "train/b": 1, **({"test/a": 2} if split else {})})
    Path("data/own/metadata.csv").write_text("file_name\n")
    dataset = own_plan().parts.datasets["own"]
    assert (dataset.images, dataset.names, dataset.prefix) == (4, ["a", "b"], "train/")


def test_one_class_in_a_split():
    draw({"train": 3, "test": 2})
    dataset = own_plan().parts.datasets["own"]
    assert (dataset.images, dataset.classes, dataset.prefix) == (3, 1, "train/")


@pytest.mark.parametrize("named", [True, False])
def test_the_hubs_parquet_files(named):
    for name, labels in (("train-00000-of-00002", [0, 2]), ("train-00001-of-00002", [1]), ("test-0", [0])):
        draw_parquet(Path(f"data/own/data/{name}.parquet"), labels, ["x", "y", "z"] if named else None)
    dataset = own_plan().parts.datasets["own"]
    assert (dataset.format, dataset.images, dataset.classes) == ("parquet", 3, 3)
    assert (dataset.prefix, dataset.names) == ("data/train", ["x", "y", "z"] if named else None)


def test_the_side_of_images_of_one_size():
    draw({".": 3}, size=(24, 24))
    assert own_plan(resolution=None).parts.datasets["own"].resolution == 24


def test_images_of_several_sizes():
    draw({".": 3}, size=(24, 24))
    draw({".": 2}, size=(60, 40), first=3)
    assert refused(resolution=None) == (
        "settings.datasets.own.resolution: is left out, and the images in data/own have 24x24 to "
        "60x40 pixels; give the side that they are cropped and resized to"
    )
    assert own_plan().config.notes == [
        "data set own: 5 images of 1 class (own) in data/own; 24x24 to 60x40 pixels, cropped to the centre "
        "and resized to 32x32"
    ]


def test_a_folder_that_is_not_there():
    assert refused() == "assets.own.path: there is no folder data/own"


def make_empty():
    Path("data/own").mkdir(parents=True)


def make_tars():
    make_empty()
    Path("data/own/a.tar").write_bytes(b"")


def make_mixed():
    draw({".": 1, "a": 1})


def make_both():
    draw({"a": 1})
    draw_parquet(Path("data/own/train.parquet"), [0])


def make_damaged():
    make_empty()
    Path("data/own/a.png").write_bytes(b"no image")


def make_damaged_table():
    make_empty()
    Path("data/own/a.parquet").write_bytes(b"no table")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            make_empty,
            r"data/own is empty; put images or .parquet files into it",
        ),
        (make_tars, r"but .tar \(1\); of tar files, give format, images, classes and resolution"),
        (make_mixed, r"data/own has images \(0.png\) beside folders of images \(a\); either all"),
        (make_both, r"data/own has 1 images beside 1 Parquet files; keep one"),
        (make_damaged, r"data/own/a.png is not an image"),
        (make_damaged_table, r"data/own/a.parquet: no images and labels in its columns image and label"),
    ],
)
def test_refused_folders(make, told):
    make()
    message = refused()
    assert message.startswith("assets.own.path: ") and "\n" not in message
    assert re.search(told, message), message


def test_a_mistake_is_told_where_the_path_stands():
    """The preset has it, not config/assets.yaml."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
        *("--profile", str(ROOT / "profiles/own"), "-n", "--quiet", "all"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert (
        "config/own.yaml: overrides.assets.own.path: there is no folder data/own" in done.stderr + done.stdout
    )


def test_other_files_in_the_folder_change_the_specs():
    draw({"a": 2, "b": 2})
    before = own_plan()
    assert own_plan().spec_text("fetch", "own") == before.spec_text("fetch", "own")
    draw({"a": 1}, first=2)
    after = own_plan()
    for stage, name in (("fetch", "own"), ("encode", "own"), ("train", "decm/base/0")):
        assert after.spec_text(stage, name) != before.spec_text(stage, name)


def test_a_long_look_is_kept_until_a_folder_changes(monkeypatch):
    draw({"a": 2, "b": 2})
    kept = Path("kept.json")
    first = look_into(Path("data/own"), COLUMNS, kept, slow=0)
    with monkeypatch.context() as patch:
        patch.setattr("fewstep.common.image_folders._look", None)
        assert look_into(Path("data/own"), COLUMNS, kept) == first
    draw({"b": 1}, first=2)
    assert look_into(Path("data/own"), COLUMNS, kept).images == 5
    kept.write_text("no JSON")
    assert look_into(Path("data/own"), COLUMNS, kept).images == 5


def test_what_is_given_is_not_inferred():
    draw({"a": 2, "b": 2})
    plan = own_plan({"settings": {"datasets": {"own": {"images": 4, "names": ["left", "right"]}}}})
    assert plan.parts.datasets["own"].names == ["left", "right"]


def test_the_word_infer_is_as_nothing():
    draw({"a": 2})
    given = dict.fromkeys(("images", "classes", "format", "resolution"), "infer")
    assert own_plan({"settings": {"datasets": {"own": given}}}).parts.datasets["own"].images == 2


def test_no_paper_has_tables_or_claims_of_own_images():
    draw({"a": 2})
    plan = own_plan()
    assert list(plan.tables) == ["table", "pictures"]
    assert plan.claims == []
    spec = plan.spec("table", "table")
    assert (spec.scale, spec.table.paper, spec.table.metric) == ("own", "", "frechet")
    assert plan.spec("table", "pictures").class_names == ["a"]
    assert len(behind(plan, "pictures")["examples"]) == 1  # real images, above the samples
    assert plan.runs["decm/base"].device == "cpu"


@pytest.mark.parametrize("based_on", ["config/own-pixels.yaml", "config/own-latents.yaml"])
def test_every_row_of_the_miniature_can_stand_in_the_table(based_on):
    draw({"a": 10, "b": 10})
    found = read_yaml(ROOT / "config/tables/zoo.yaml")["rows"]
    rows = [row for row in found if row["method"] != "dfm"]
    plan = own_plan({"tables": {"table": {"steps": [1], "rows": rows}}}, based_on=based_on)
    assert {run.recipe.scale for run in plan.tables["table"].runs.values()} == {"own"}
    for row in rows:
        check(plan, plan.model(row["method"]))


@pytest.mark.parametrize(
    ("classes", "start", "told"),
    [
        ({"a": 1, "b": 1}, 300, "classifier.start: 300 is not below the 200 training steps"),
        ({"a": 1, "b": 1}, 200, "classifier.start: 200 is not below the 200 training steps"),
        ({".": 2}, 5, "classifier: of one class there is nothing to tell apart; set classifier: null"),
        ({"a": 1, "b": 1}, 199, None),
    ],
)
def test_guidance_that_would_do_nothing_is_refused(classes, start, told):
    draw(classes)
    plan = own_plan({"methods": {"afm": {"loss": {"classifier": {"start": start}}}}})
    if told is None:
        return check(plan, plan.model("afm"))
    with pytest.raises(ConfigError, match=rf"methods\.afm\.loss\.{told}"):
        check(plan, plan.model("afm"))


SHORT = {"settings": {"recipes": {"own": {"train": {"steps": 10, "optimizer": {"warmup": 1}}}}}}
UNFIT = {"settings": {"backbones": {"own-dual": {"outputs": 1}}}}


@pytest.mark.parametrize(
    ("change", "method", "told"),
    [
        (SHORT, "scm", "methods.scm.loss.warmup: 100 is beyond the 10 training steps"),
        (SHORT, "ayf", "methods.ayf.loss.warmup: 100 is beyond the 10 training steps"),
        (UNFIT, "dumo", "methods.dumo.loss: needs a backbone with outputs: 2"),
    ],
)
def test_what_nothing_asks_for_need_not_suit_the_recipe(change, method, told):
    """What it needs is told when it stands in a table, or is asked for by name."""
    draw({"a": 2})
    plan = own_plan(change)
    check(plan, plan.file("csv", table="table"))
    for target in (plan.model(method), plan.path(f"<results>/specs/train/{method}/base/0.json")):
        with pytest.raises(ConfigError, match=f"^target {target}: .*{told}"):
            check(plan, target)
    rows = {"rows": [{"id": method, "label": method, "method": method}], "steps": [1]}
    assert told in refused(merge(change, {"tables": {"table": rows}}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss": {"warm": 1}}, "loss.warm: unknown key"),
        ({"loss": {"warmup": "a"}}, "loss.warmup: must be a whole number"),
        ({"train": {"stepps": 1}}, "train.stepps: unknown key"),
        ({"train": {"steps": 0}}, "train.steps: must be above 0"),
        ({"recipe": "owm"}, "recipe: unknown name 'owm'"),
        ({"backbone": "owm"}, "backbone: unknown name 'owm'"),
    ],
)
def test_what_is_wrong_in_itself_is_refused_where_nothing_asks_for_it(changes, told):
    draw({"a": 2})
    assert refused({"methods": {"ayf": changes}}).startswith(f"methods.ayf.{told}")


def test_the_preset_for_one_gpu():
    draw({"a": 20})
    plan = own_plan(resolution=256, based_on="config/own-latents.yaml")
    assert plan.parts.tokenizers["own"].shape == plan.runs["decm/base"].backbone.shape == [4, 32, 32]
    assert plan.runs["decm/base"].device == "gpu"
    assert {"sd-vae-ft-ema", "own"} == {job["asset"] for job in behind(plan, "table", "pictures")["fetch"]}
    assert refused(resolution=100, based_on="config/own-latents.yaml") == (
        "settings.datasets.own.resolution: 100 is no multiple of 8, which tokenizer own needs"
    )


def test_a_published_teacher_of_other_classes():
    """As the guide has it."""
    draw({"a": 20, "b": 1})
    guide = (ROOT / "config/README.md").read_text()
    example = yaml.safe_load(re.findall(r"```yaml\n(settings:.*?)```", guide, re.DOTALL)[0])
    plan = own_plan(example, resolution=256, based_on="config/own-latents.yaml")
    adopted, tuned = plan.spec("adopt", "published/base"), plan.spec("train", "teacher/base/0")
    assert (adopted.new_labels, adopted.backbone.classes) == (True, 2)
    assert tuned.teacher and tuned.loss.data and tuned.label_dropout == 0.1
    assert plan.runs["decm/base"].teacher == "teacher"
    assert plan.inputs("train", {"run": "teacher/base", "seed": "0"})["teacher"] == [plan.model("published")]


def test_a_network_of_two_recipes_says_its_shape():
    draw({"a": 2})
    parts = {"recipes": {"digits": {"backbone": "own"}}}
    assert refused({"settings": parts}) == (
        "config/own-pixels.yaml: overrides.settings.backbones.own.shape: is left out, and what it is used "
        "for has [4, 4, 4] and [3, 32, 32]; give it"
    )


def test_the_preset_is_short():
    assert len((ROOT / "config/own.yaml").read_text().splitlines()) <= 25
    assert raw_config("own")["targets"] == ["table", "pictures"]


def test_a_misspelt_key_is_not_one_that_is_left_out():
    draw({"a": 1, "b": 1}, (48, 40))
    misspelt = {"settings": {"datasets": {"own": {"resolutoin": 32}}}}
    assert refused(misspelt, resolution=None) == (
        "settings.datasets.own.resolutoin: unknown key, perhaps misspelt; did you mean 'resolution'?"
    )
    assert "images in data/own have 48x40 pixels; give the side" in refused(resolution=None)


def test_a_resolution_that_the_patches_do_not_divide():
    draw({"a": 1, "b": 1})
    told = (
        "settings.datasets.own.resolution: must be a multiple of {} for the patches of network own-teacher, "
        "not {}"
    )
    assert refused(resolution=30) == told.format(4, 30)
    assert refused(resolution=248, based_on="config/own-latents.yaml") == told.format(16, 248)
