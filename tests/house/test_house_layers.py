"""Who may import whom."""

from __future__ import annotations

import sys

import pytest
from house_sources import area, imports, modules, ours, reached, theirs

STAGES = ["fetch", "encode", "adopt", "train", "sample", "reference", "score"]
STAGES += ["table", "figure", "claims", "report"]

# Area -> the areas and third parties that its modules may import.
INWARD = {
    "config": ({"config", "files"}, {"pydantic", "yaml"}),
    "plan": ({"plan", "config"}, set()),
    "core": ({"core", "config"}, {"torch", "numpy"}),
    "methods": ({"core", "config"}, {"torch"}),
    "backbones": ({"backbones", "core", "config"}, {"torch", "diffusers"}),
}

# Third party -> the only modules that know it; a trailing dot means everything below.
PLACES = {
    "accelerate": {"training.", "ranks"},
    "diffusers": {"data.tokenizers", "data.vavae", "backbones.unet"},
    "webdataset": {"data.", "images"},
    "torch_fidelity": {"fidelity"},
    "huggingface_hub": {"data.hub"},
    "sklearn": {"fetch"},
    "matplotlib": {"figures."},
    "jinja2": {"report"},
    "yaml": {"config."},
    "snakemake": set(),
    "tensorboard": set(),
    "torchvision": set(),
}


def members(name: str) -> list[str]:
    return [module for module in modules() if area(module) == name]


@pytest.mark.parametrize("name", INWARD)
def test_layers(name):
    inside, outside = INWARD[name]
    assert members(name)
    for module in members(name):
        for other in ours(module):
            # the package itself holds nothing but its version
            assert other == "fewstep" or area(other) in inside, f"{module} imports {other}"
        strangers = theirs(module) - outside - sys.stdlib_module_names
        assert not strangers, f"{module} imports {strangers}"


def test_methods_do_not_know_each_other():
    for module in members("methods"):
        assert not {name for name in ours(module) if area(name) == "methods"}, module


def test_nothing_below_the_stages_imports_a_stage():
    lower = [module for module in modules() if area(module) not in {*STAGES, "launch", "doctor"}]
    assert len(lower) > 40
    for module in lower:
        found = {other for other in ours(module) if area(other) in {*STAGES, "launch"}}
        # drawing a table's numbers takes its words
        assert not found or (area(module) == "figures" and found == {"fewstep.table"}), f"{module}: {found}"


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


def test_planning_reaches_no_torch():
    for module in reached("fewstep.plan"):
        assert not theirs(module) & {"torch", "numpy", "snakemake"}, module


def test_only_the_tangents_file_knows_functorch():
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
    assert "torch" in imports("fewstep.training.ema")
    assert "fewstep.config.settings" in imports("fewstep.training.ema")
    assert "fewstep.core.rng" in imports("fewstep.core.method")
    assert "fewstep.data.hub" in imports("fewstep.fetch"), "lazy imports count"
    assert "diffusers" in imports("fewstep.data.tokenizers")
