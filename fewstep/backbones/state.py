"""Loading weights into a network that may have more parts than they do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn


def inherit(net: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load ``tensors`` from ``origin`` (a name for messages) into ``net``, whose dtype they take.

    Two parts that students add may be absent as a whole: the target-time embedding ``r_embedder``
    then keeps its start, and the flow-map head ``final_layer_u`` becomes a copy of ``final_layer``.

    Raises:
        ValueError: naming missing and unexpected tensors, and those of another shape.
    """
    own = net.state_dict()
    full = dict(tensors)
    if not _has(tensors, "r_embedder."):
        full |= {name: value for name, value in own.items() if name.startswith("r_embedder.")}
    if not _has(tensors, "final_layer_u."):
        for name in own:
            twin = name.replace("final_layer_u.", "final_layer.", 1)
            if twin != name and twin in tensors:
                full[name] = tensors[twin]
    faults = []
    if missing := [name for name in own if name not in full]:
        faults.append(f"missing {_some(missing)}")
    if unexpected := [name for name in full if name not in own]:
        faults.append(f"unexpected {_some(unexpected)}")
    if other := [name for name in own if name in full and full[name].shape != own[name].shape]:
        faults.append(
            "shape of "
            + _some(f"{name} is {list(full[name].shape)}, not {list(own[name].shape)}" for name in other)
        )
    if faults:
        raise ValueError(f"{origin} does not fit the backbone: {'; '.join(faults)}")
    net.load_state_dict(full)


def _has(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
