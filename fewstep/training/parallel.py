"""How a training uses its devices: replicated or sharded, blocks checkpointed or compiled.

None of it changes what is computed, so none of it is in a spec. Blocks are the entries of the network's
``blocks``; a network without them (an autoencoder, a classifier) is sharded whole, and neither checkpointed
nor compiled. A network whose blocks are called several times in a forward is sharded by its ``units``.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils import checkpoint as checkpointing

from ..core.compilation import compile_blocks
from ..core.jvp import FORMULATIONS, STEP
from ..core.operations import recompute_contexts
from ..core.precision import cast_blocks

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast computes in, by precision."""
COARSE = 0.5
"""Most rad of a sinusoid that a central difference may step over: it is then wrong by 4 %."""
LAYOUTS = ("none", "ddp", "fsdp2")
"""One process; several that each hold all weights; several that each hold a part of them (ZeRO 3)."""


def check_supported(
    formulation: str,
    layout: str,
    checkpoint: bool,
    compile: bool,
    precision: str = "no",
    device: str = "cuda",
    time_scale: float = 1.0,
) -> None:
    """Refuse a combination that cannot work, or that would be silently wrong; all others are tested.

    Args:
        formulation: of the tangent, a key of core/jvp.py's FORMULATIONS.
        layout: one of LAYOUTS.
        checkpoint, compile: whether the blocks are.
        precision: "no", "bf16" or "fp16".
        device: type of the device, "cpu" or "cuda".
        time_scale: highest angular frequency of the network's time embedding, rad per unit time.

    Raises:
        ValueError: naming the options and the reason.
    """
    reason = ""
    if formulation not in FORMULATIONS:
        reason = f"unknown formulation; known: {', '.join(FORMULATIONS)}"
    elif layout not in LAYOUTS:
        reason = f"unknown layout; known: {', '.join(LAYOUTS)}"
    elif formulation == "functorch" and layout == "ddp":
        reason = "the sweep goes past DistributedDataParallel, and no gradient would be reduced"
    elif formulation in ("functorch", "split") and layout == "fsdp2":
        reason = "forward mode fails in FSDP2's hooks in some of the releases of torch allowed here"
    elif formulation == "functorch" and checkpoint:
        reason = "recomputation outside forward mode saves other tensors than the forward inside it"
    elif formulation in ("functorch", "split") and compile:
        reason = "forward mode does not go through a compiled block"
    elif formulation == "central" and precision != "no":
        reason = "in half precision the difference drowns in rounding"
    elif formulation == "central" and STEP * time_scale > COARSE:
        reason = (
            f"its step of {STEP} is {STEP * time_scale:.2g} rad of the fastest sinusoid of the time "
            f"(backbone.time_scale: {time_scale:g}); fit a smoother embedding first (reembed)"
        )
    elif precision == "fp16" and layout == "fsdp2":
        reason = "the loss scaler of fp16 sees only the local part of a gradient; use bf16"
    elif precision == "fp16" and device == "cpu":
        reason = "accelerate would train in float32 on a CPU; use bf16 or no"
    if reason:
        extras = " --checkpoint-blocks" * checkpoint + " --compile-blocks" * compile
        raise ValueError(f"--tangent {formulation}, layout {layout}, precision {precision}{extras}: {reason}")


def check_capture(layout: str, precision: str, device: str) -> None:
    """Refuse CUDA graphs where a step would wait for the host.

    Raises:
        ValueError: naming the reason.
    """
    reasons = {
        "a CUDA graph needs a GPU": device != "cuda",
        "FSDP2 gathers its weights anew in every step": layout == "fsdp2",
        "the loss scaler of fp16 reads from the device; use bf16": precision == "fp16",
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"--capture: {reason}")


def apply_compile_and_checkpointing(net: nn.Module, checkpoint: bool = False, compile: str = "") -> None:
    """Compile and checkpoint each block of a bare network in place; names of weights stay.

    Only ``forward`` is replaced, so that the hooks of FSDP2 run outside of both.

    Args:
        compile: backend of torch.compile, or "" for none.
    """
    if compile:
        compile_blocks(net, compile)
    if checkpoint:
        for block in getattr(net, "blocks", ()):
            block.forward = partial(_recomputed, block.forward)


def keep_compiled_code(folder: Path) -> None:
    """Let inductor keep its code in ``folder``, for a resumed training, unless the user has said where.

    It must be called before anything is compiled. The code is the same from wherever it comes.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.absolute()))


def _recomputed(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """``forward`` of the inputs, called once more in the backward, if there is one."""
    if not torch.is_grad_enabled():  # checkpoint of torch 2.11 would refuse forward mode
        return forward(*inputs, **named)
    # No objective draws random numbers inside the network.
    options = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": recompute_contexts}
    return checkpointing.checkpoint(forward, *inputs, **options, **named)


def shard(net: nn.Module, device: torch.device, processes: int, release: bool | None = None) -> nn.Module:
    """FSDP2 over all processes, block by block, in place.

    Weights stay float32, as under DistributedDataParallel, and autocast does the rest: the same numbers.

    Args:
        release: free what lies outside the blocks after a forward too, where no backward follows.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for unit in getattr(net, "units", getattr(net, "blocks", ())):
        fully_shard(unit, mesh=mesh)
    return fully_shard(net, mesh=mesh, reshard_after_forward=release)


def prepare(accelerator: Accelerator, module: nn.Module, layout: str) -> nn.Module:
    """The module on its device, in its layout, under the accelerator's autocast."""
    if layout != "fsdp2":
        return accelerator.prepare(module)
    sharded = shard(module.to(accelerator.device), accelerator.device, accelerator.num_processes)
    # Accelerate has no FSDP2 on CPUs, nor for two modules; "evaluation" keeps it from wrapping once more.
    return accelerator.prepare_model(sharded, evaluation_mode=True)


def freeze(
    accelerator: Accelerator, net: nn.Module, layout: str = "none", constant: bool = False
) -> nn.Module:
    """Prepare in place a network that is not trained: on its device, without gradients, under autocast.

    Every process holds all of it, or its part under fsdp2.

    Args:
        constant: its weights never change: what autocast would cast in its blocks at every use is cast now.
    """
    net = net.to(accelerator.device).eval().requires_grad_(False)
    if constant and accelerator.mixed_precision != "no":
        cast_blocks(net, HALF[accelerator.mixed_precision])
    if layout == "fsdp2":
        net = shard(net, accelerator.device, accelerator.num_processes, release=True)
    forward = net.forward

    def cast(*inputs: Any, **more: Any) -> Any:
        with accelerator.autocast():
            return forward(*inputs, **more)

    net.forward = cast
    return net


@contextmanager
def casts_kept(accelerator: Accelerator, layout: str) -> Iterator[None]:
    """Within this context autocast casts each trained weight once, not at every use.

    Outside of networks nothing is cast. Weights must not change in it. Under FSDP2 nothing is kept: every
    process would hold the whole network in half precision.
    """
    if accelerator.mixed_precision == "no" or layout == "fsdp2":
        yield
        return
    kind, dtype = accelerator.device.type, HALF[accelerator.mixed_precision]
    with torch.autocast(kind, dtype), torch.autocast(kind, dtype, enabled=False):
        yield


@contextmanager
def ddp_sync(accelerator: Accelerator, modules: Iterable[nn.Module], now: bool) -> Iterator[None]:
    """Forward and backward passes whose gradients are reduced between processes now, or later.

    FSDP2 always reduces: gradients that wait would lie whole on every process.
    """
    with ExitStack() as stack:
        for module in modules:
            if not now and not isinstance(module, FSDPModule):
                stack.enter_context(accelerator.no_sync(module))
        yield


def peak_memory(accelerator: Accelerator) -> list[float]:
    """Most MiB that each process has held at once: tensors on its GPU, or all its pages where it has none."""
    if accelerator.device.type == "cuda":
        own = torch.cuda.max_memory_allocated(accelerator.device) / 2**20
    else:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    peaks: list[float] = accelerator.gather(torch.tensor([own], device=accelerator.device)).tolist()
    return peaks


def agreed(accelerator: Accelerator, step: int, *flags: bool) -> list[bool]:
    """Each flag, true on all processes if it is true on any.

    Several processes confer at every tenth step only, so that a step costs no exchange; in between no flag
    counts.
    """
    if accelerator.num_processes == 1:
        return list(flags)
    if step % 10:
        return [False] * len(flags)
    votes = torch.tensor(flags, dtype=torch.float32, device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(votes, reduction="sum").tolist()]


def local_tensor(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be sharded, in the same memory, without a graph."""
    tensor = tensor.detach() if tensor.requires_grad else tensor
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; if it is sharded, every process must ask."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors; sharded ones are put together one by one, on the CPU."""
    return {
        name: full_tensor(tensor).cpu() if isinstance(tensor, DTensor) else tensor
        for name, tensor in tensors.items()
    }
