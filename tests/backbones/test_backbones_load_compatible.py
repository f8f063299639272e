"""Loading weights into a network with more parts, and the refusals."""

from __future__ import annotations

import pytest
import torch

from fewstep.backbones import build
from fewstep.backbones.model_file import load_compatible


def test_missing_unexpected_and_misshapen_tensors_are_named(spec):
    net = build(spec())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tensors = dict(net.state_dict())
    del tensors["blocks.1.mlp.w3.bias"]
    tensors["blocks.7.norm1.weight"] = torch.ones(24)
    tensors["final_layer.linear.weight"] = torch.ones(8, 24)
    with pytest.raises(ValueError) as caught:
        load_compatible(net, tensors, "teacher.safetensors")
    message = str(caught.value)
    assert message.startswith("teacher.safetensors does not fit the backbone: ")
    assert "missing blocks.1.mlp.w3.bias" in message
    assert "unexpected blocks.7.norm1.weight" in message
    assert "final_layer.linear.weight is [8, 24], not [4, 24]" in message
    assert "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_long_lists_are_cut(spec):
    with pytest.raises(ValueError, match=r"missing .* and \d+ more$"):
        load_compatible(build(spec()), {}, "empty")


@pytest.mark.parametrize(
    ("part", "changes"), [("r_embedder", {"target_time": True}), ("final_layer_u", {"outputs": 2})]
)
def test_an_added_part_may_be_absent_only_as_a_whole(spec, active, part, changes):
    full = active(spec(**changes), target=True)
    tensors = full.state_dict()
    names = [name for name in tensors if name.startswith(part)]
    other = build(spec(**changes))
    load_compatible(other, tensors, "full")
    assert all(torch.equal(value, tensors[name]) for name, value in other.state_dict().items())
    load_compatible(other, {name: value for name, value in tensors.items() if name not in names}, "teacher")
    del tensors[names[0]]
    with pytest.raises(ValueError, match=f"missing {names[0]}"):
        load_compatible(other, tensors, "partial")


def test_weights_with_parts_that_the_network_lacks_are_refused(spec):
    student = build(spec(target_time=True, outputs=2))
    with pytest.raises(ValueError, match=r"unexpected .*(r_embedder|final_layer_u)"):
        load_compatible(build(spec()), student.state_dict(), "student")
