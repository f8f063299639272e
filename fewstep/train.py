"""Train one run: a network, a method, latents, perhaps a teacher.

    python -m fewstep.train --spec SPEC --latents manifest.json [--teacher model.safetensors]
        --out model.safetensors --curve train.jsonl

Runs alike in one process and under `accelerate launch`: the global batch is the spec's, processes and
gradient accumulation divide it, and the result does not depend on them. SIGTERM or SIGUSR1 saves the
state and exits with status 75; the next start resumes from there.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from . import wrap
from .backbones import build
from .backbones.model_file import check_tokenizer, load_compatible, load_model, load_network, save_model
from .calibration import calibrated
from .common.cli import parser, run
from .common.files import atomic
from .config import digest, read_spec
from .config.networks import FlowNetwork
from .config.settings import ConstantEma
from .config.specs import TrainSpec
from .core.ema import Approach, Ema
from .core.guidance import ClassifierFreeGuidance
from .core.jvp import value_and_tangent
from .core.method import Batch, Context, Loss, LossOutput, loss_parts
from .core.rng import Streams, fold_in
from .data.loader import Loader, rows_at_once, split_batch
from .data.shards import LatentShards
from .flops import per_step
from .methods import build as build_method
from .optimize import learning_rate, make_optimizer
from .provenance import code_digest
from .selftest import SelfTest
from .state import STOPPED, Curve, Progress, State, StopRequest


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ConfigError: a bad spec.
        ValueError: latents or teacher that do not fit it, or a batch that the processes cannot divide.
        FloatingPointError: too many non-finite updates in a row.
    """
    arguments = parser(__doc__)
    arguments.add_argument("--latents", type=Path, required=True, help="manifest.json of the shards")
    arguments.add_argument("--teacher", type=Path, nargs="*", default=[], help="model that teaches")
    arguments.add_argument("--curve", type=Path, required=True, help="train.jsonl to write")
    arguments.add_argument("--device-batch", type=int, help="most rows a device holds at once")
    arguments.add_argument("--save-minutes", type=float, default=15, help="time between saved states")
    arguments.add_argument("--save-steps", type=int, default=0, help="steps between saved states, instead")
    arguments.add_argument("--tangent", default="fused", help="formulation of the tangent (core/jvp.py)")
    arguments.add_argument(
        "--shard", choices=["none", "fsdp2"], default="none", help="how several processes hold the weights"
    )
    arguments.add_argument(
        "--checkpoint-blocks", action="store_true", help="recompute blocks in the backward: less memory"
    )
    arguments.add_argument(
        "--compile-blocks",
        nargs="?",
        const="inductor",
        default="",
        metavar="BACKEND",
        help="torch.compile each block",
    )
    arguments.add_argument(
        "--no-self-test", action="store_true", help="start even where gradients or tangents look wrong"
    )
    given = arguments.parse_args(argv)
    Trainer(read_spec(TrainSpec, given.spec), given).run()


class Trainer:
    """One training, from its spec to the model file."""

    def __init__(self, spec: TrainSpec, given) -> None:
        self.spec = spec
        self.given = given
        gpu = torch.cuda.is_available()
        self.accelerator = Accelerator(
            cpu=not gpu,
            mixed_precision=spec.train.precision,
            log_with="tensorboard",
            project_dir=str(given.out.parent),
        )
        # Under torchrun without GPUs a misconfigured Accelerator is N lone processes, silently.
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if self.accelerator.num_processes != started:
            raise ValueError(
                f"{started} processes started, but accelerate sees {self.accelerator.num_processes}"
            )
        self.device = self.accelerator.device
        several = {"none": "ddp", "fsdp2": "fsdp2"}[given.shard]
        self.layout = several if self.accelerator.num_processes > 1 else "none"
        wrap.refuse(
            given.tangent,
            self.layout,
            given.checkpoint_blocks,
            bool(given.compile_blocks),
            spec.train.precision,
        )
        shards = LatentShards(given.latents)
        shards.check(spec.latents)
        self.loader = Loader(shards, spec.seed, spec.train.global_batch_size)
        self.method = build_method(spec.loss)
        self.rows = split_batch(
            spec.train.global_batch_size,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            given.device_batch or rows_at_once(spec.latents.shape),
            group=self.method.group,
        )
        self._build()

    def _build(self) -> None:
        spec, accelerator = self.spec, self.accelerator
        torch.manual_seed(fold_in(spec.seed, "initial weights"))
        net = build(spec.backbone)
        extra = self.method.extra()
        self.teacher_net: nn.Module | None = None
        if spec.teacher:
            if len(self.given.teacher) != 1:
                raise ValueError(f"{self.given.spec}: this run needs --teacher with one model file")
            tensors, card = load_model(self.given.teacher[0])
            load_compatible(net, tensors, str(self.given.teacher[0]))
            check_tokenizer(card, spec.latents.tokenizer, self.given.teacher[0])
            self.teacher_net = load_network(self.given.teacher[0])[0]
            # Guidance makes its batches vary.
            wrap.arrange(self.teacher_net, compile=self.given.compile_blocks, dynamic=None)
            self.teacher_net = wrap.freeze(accelerator, self.teacher_net)
        self.progress = Progress()
        folder = self.given.out.parent / f"state-{digest(spec)}"
        self.state = State(accelerator, folder, self.progress, self.layout == "fsdp2")
        self.self_test: SelfTest | None = None
        if not self.given.no_self_test and not self.state.saved():
            self.self_test = SelfTest(net.to(self.device), spec.loss.kind, self.loader, self.device)
        target = copy.deepcopy(net) if self.method.target_decay is not None else None
        wrap.arrange(net, self.given.checkpoint_blocks, self.given.compile_blocks)
        trained = [module for module in (net, extra) if module is not None]
        self.modules = [wrap.prepare(accelerator, module, self.layout) for module in trained]
        weights = [weight for module in self.modules for weight in module.parameters()]
        self.optimizer = make_optimizer(spec.train.optimizer, weights)
        self.net = self.modules[0]
        self.extra = self.modules[1] if extra is not None else None
        self.optimizer = accelerator.prepare(self.optimizer)
        self.averages = [Ema(self.net, spec.train.ema)]
        self.target = self._follow(target) if target is not None else None
        self.state.hold(self.modules, self.optimizer, self.averages)

    def _follow(self, target: nn.Module) -> nn.Module:
        """The moving average that the losses see, from a copy of the network."""
        decay = self.method.target_decay
        assert decay is not None
        wrap.arrange(target, compile=self.given.compile_blocks, dynamic=None)
        target = wrap.freeze(self.accelerator, target, self.layout)
        law = Approach(decay) if self.method.target_warmup else ConstantEma(kind="constant", decay=decay)
        self.averages.append(Ema(self.net, law, into=target))
        return target

    @property
    def ema(self) -> Ema:
        """The average that is written as the model."""
        return self.averages[0]

    def run(self) -> None:
        """Train to the last step, resuming if there is a state, and write model and curve."""
        spec, accelerator, progress = self.spec, self.accelerator, self.progress
        stop = StopRequest(accelerator)
        resumed = self.state.restore()
        if progress.eta is None:
            progress.eta = calibrated(spec, self.teacher_net, self.loader.shards, self.device)
        if self.self_test is not None:
            progress.self_test = self._self_test(self.self_test)
            self.self_test = None
        if progress.flops is None:
            progress.flops = self._flops()
        if resumed:
            accelerator.print(f"resumed at step {progress.step} of {spec.train.steps}")
        curve = (
            Curve(self.state.folder / "train.jsonl", progress.step) if accelerator.is_main_process else None
        )
        accelerator.init_trackers("tensorboard")
        saved_at = time.monotonic()
        bar = tqdm(
            total=spec.train.steps,
            initial=progress.step,
            desc=f"{spec.method}/{spec.variant}/{spec.seed}",
            disable=not accelerator.is_main_process,
            mininterval=1 if sys.stderr.isatty() else 10,
        )
        while progress.step < spec.train.steps:
            shown = self._step(progress.step, curve)
            progress.step += 1
            bar.update()
            if shown:
                bar.set_postfix(shown, refresh=False)
            due = (
                progress.step % self.given.save_steps == 0
                if self.given.save_steps
                else time.monotonic() - saved_at > 60 * self.given.save_minutes
            )
            stopping = stop.agreed(progress.step)
            # Clocks differ between processes; the main one's decides.
            if stopping or self._together(due):
                if curve:
                    curve.flush()
                self.state.save()
                saved_at = time.monotonic()
            if stopping:
                accelerator.print(f"asked to stop: state saved at step {progress.step}")
                accelerator.end_training()
                raise SystemExit(STOPPED)
        bar.close()
        if curve:
            curve.flush()
        weights = wrap.gather(self.ema.tensors())
        if curve:
            self._write(curve.path, weights)
        accelerator.wait_for_everyone()
        self.state.remove()
        peaks = " ".join(f"{peak:.0f}" for peak in wrap.peak_memory(accelerator))
        accelerator.print(f"peak memory of each process: {peaks} MiB")
        # Last: it also takes the process group down.
        accelerator.end_training()

    def _together(self, due: bool) -> bool:
        if self.accelerator.num_processes == 1 or self.given.save_steps:
            return due
        if self.progress.step % 10:
            return False
        vote = torch.tensor(float(due and self.accelerator.is_main_process), device=self.device)
        return bool(self.accelerator.reduce(vote, reduction="sum") > 0)

    def _slices(self, step: int) -> list[tuple[Batch, Context]]:
        """This process's rows of one step, as all its updates share them."""
        return [(self.loader.rows(step, cut, self.device), self._context(step, cut)) for cut in self.rows]

    def _flops(self) -> float:
        """Operations of a training step over the global batch; nothing is kept of the passes behind it."""
        own = per_step(self.method, self.net, self._slices, self.spec.train.steps, self.optimizer.zero_grad)
        own = torch.tensor(own, dtype=torch.float64, device=self.device)
        return float(self.accelerator.reduce(own, reduction="sum"))

    def _step(self, step: int, curve: Curve | None) -> dict[str, str]:
        """All optimizer updates of one training step; returns what the progress bar shows."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec.train.optimizer, step, self.spec.train.steps)
        shown: dict[str, str] = {}
        slices = self._slices(step)
        for update, loss in enumerate(self.method.updates(step)):
            terms, norm = self._update(step, loss, slices)
            if step % self.spec.train.log_every == 0:
                values = {
                    "loss": float(terms.loss),
                    "grad_norm": norm,
                    "lr": self.optimizer.param_groups[0]["lr"],
                }
                values |= {name: float(value) for name, value in terms.logs.items()}
                self.accelerator.log(
                    {f"update{update}/{key}": value for key, value in values.items()}, step=step
                )
                if curve:
                    curve.write(step=step, update=update, **values)
                shown = {"loss": f"{values['loss']:.3f}", "grad": f"{norm:.2f}"}
        return shown

    def _update(self, step: int, loss: Loss, slices: list[tuple[Batch, Context]]) -> tuple[LossOutput, float]:
        """One optimizer update over the global batch; non-finite ones are counted and skipped."""
        accelerator = self.accelerator
        total = self._backward(loss, slices, accelerator.backward)
        norm = float(self._clip())
        finite = math.isfinite(norm)
        if finite or accelerator.scaler is not None:  # the scaler itself skips, and must see it
            self.optimizer.step()
        self.optimizer.zero_grad()
        if finite:
            for average in self.averages:
                average.update(self.net)
            self.progress.in_a_row = 0
        else:
            self._count_skipped(step, total)
        if accelerator.num_processes > 1:
            total = {name: accelerator.reduce(value, reduction="mean") for name, value in total.items()}
        return LossOutput(total.pop("loss"), total), norm

    def _backward(
        self, loss: Loss, slices: list[tuple[Batch, Context]], backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]:
        """Gradients of the loss over the slices, and its value and terms; one graph is held at a time."""
        share, total = 1 / len(slices), {"loss": torch.zeros((), device=self.device)}
        work = [(part, *each) for each in slices for part in loss_parts(loss)]
        for number, (part, batch, context) in enumerate(work):
            with wrap.reducing(self.accelerator, self.modules, now=number + 1 == len(work)):
                terms = part(self.net, batch, context)
                backward(terms.loss * share)
            for name, value in {"loss": terms.loss, **terms.logs}.items():
                total[name] = total.get(name, 0) + value.detach() * share
        return total

    def _self_test(self, test: SelfTest) -> dict[str, object]:
        """One backward of the first update over the first rows, and the tangent; nothing is kept of them."""
        first = self._backward(self.method.updates(0)[0], self._slices(0)[:1], Tensor.backward)
        result = test.result(self.accelerator, self.net, self.modules, first["loss"], self.given.tangent)
        self.optimizer.zero_grad()
        return result

    def _clip(self) -> Tensor:
        weights = [weight for module in self.modules for weight in module.parameters()]
        limit = self.spec.train.optimizer.clip
        return wrap.whole(self.accelerator.clip_grad_norm_(weights, math.inf if limit is None else limit))

    def _count_skipped(self, step: int, terms: dict[str, Tensor]) -> None:
        self.progress.skipped += 1
        self.progress.in_a_row += 1
        if self.progress.in_a_row >= self.spec.train.max_skipped_updates:
            saved = self.state.saved()
            shown = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
            raise FloatingPointError(
                f"step {step}: {self.progress.in_a_row} non-finite updates in a row ({shown}); "
                f"last good state: {saved[-1] if saved else 'none'}"
            )

    def _context(self, step: int, rows: slice) -> Context:
        spec = self.spec
        null = spec.backbone.classes if isinstance(spec.backbone, FlowNetwork) else 0
        teacher = None
        if self.teacher_net is not None:
            teacher = ClassifierFreeGuidance(self.teacher_net, spec.guidance, null, self.progress.eta)
        return Context(
            step=step,
            steps=spec.train.steps,
            rng=Streams(spec.seed, step, spec.train.global_batch_size, rows, self.device),
            null=null,
            jvp=lambda net, inputs, tangents, y: value_and_tangent(
                net, inputs, tangents, y, self.given.tangent
            ),
            teacher=teacher,
            teacher_net=self.teacher_net,
            target=self.target,
            label_dropout=spec.label_dropout,
            extra=self.extra,
        )

    def _write(self, curve: Path, weights: dict[str, Tensor]) -> None:
        """Model and curve under their final names."""
        with atomic(self.given.curve) as temporary:
            shutil.copyfile(curve, temporary)
        spec = self.spec
        card = {
            "status": "trained",
            "spec": digest(spec),
            "code": code_digest(spec.loss.name),
            "method": spec.method,
            "variant": spec.variant,
            "seed": spec.seed,
            "steps": spec.train.steps,
            "batch": spec.train.global_batch_size,
            "ema": spec.train.ema.model_dump(mode="json"),
            "latents": spec.latents.model_dump() | {"weights": self.loader.shards.manifest.weights},
            "guidance_eta": self.progress.eta,
            "skipped_updates": self.progress.skipped,
            "flops_per_step": self.progress.flops,
            "self_test": self.progress.self_test,
        }
        save_model(self.given.out, weights, spec.backbone, card)


if __name__ == "__main__":
    run(main)
