"""The training of a student, and of the players beside it, from the first step to the model file."""

from __future__ import annotations

import copy
import glob
import importlib.util
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from ..backbones import build, use_text
from ..backbones.lora import AdaptersOff
from ..backbones.model_file import (
    check_text,
    check_tokenizer,
    load_base,
    load_compatible,
    load_network,
    sampling_card,
    save_model,
    versions,
)
from ..common.files import sha256, write_lines, write_text
from ..common.provenance import training_digest
from ..config import digest, read_spec
from ..config.backbones import FlowNetwork, Sd3
from ..config.objectives import WithPlayers
from ..config.settings import ConstantEma
from ..config.specs import TextSpec, TrainSpec
from ..core.capture import WARM_UP, WARM_UP_DDP, CapturedSteps
from ..core.compilation import check_compiler
from ..core.guidance import ClassifierFreeGuidance
from ..core.jvp import value_and_tangent
from ..core.method import Batch, Context, Update, at_rest, kind_of_step, loss_parts, player_of, second_order
from ..core.operations import per_step
from ..core.precision import cast_blocks
from ..core.rng import Draw, Streams, fold_in
from ..core.wrappers import gathered, resting
from ..data.loader import Loader, rows_at_once, split_batch
from ..data.shards import LatentShards
from ..data.text_store import TextStore, open_text
from ..methods import build as build_method
from . import parallel
from .calibration import calibrated
from .ema import Approach, Ema
from .feed import Feed, Given
from .players import Measured, Player, Skips
from .self_test import SelfTest
from .state import (
    RECORD,
    STOPPED,
    Curve,
    Progress,
    StopRequest,
    TrainingState,
    codes_behind,
    finished_state,
)

Watch = Callable[[int, dict[str, Tensor], torch.device], dict[str, float]]
"""What is done with the average of a step, on the main process; returns numbers to show."""
Slices = list[tuple[Batch, Context]]
TRACKERS = ("tensorboard", "wandb", "none")
"""Where a training can be watched, by the name of the package."""


@dataclass(frozen=True)
class Options:
    """What a training is given beside its spec; see the help of fewstep.train."""

    latents: Path
    teacher: Path | None
    out: Path
    curve: Path
    text: Path | None = None
    captions: Path | None = None
    encoder: Path | None = None
    sampling: Path | None = None
    device_batch: int | None = None
    save_minutes: float = 15
    save_steps: int = 0
    tangent: str = "fused"
    shard: str = "none"
    checkpoint_blocks: bool = False
    compile_blocks: str = ""
    capture: bool = False
    self_test: bool = True
    tracker: str = "tensorboard"
    keep_every: int = 0
    keep_state: bool = False
    continued: Path | None = None
    watch: Watch | None = None
    watch_every: int = 0


class Trainer:
    """One training, from its spec to the model file.

    Raises:
        ValueError: latents, captions or teacher that do not fit the spec, options that do not fit each
            other, or a batch that the processes cannot divide.
    """

    def __init__(self, spec: TrainSpec, options: Options) -> None:
        self.spec, self.options, self.began = spec, options, time.monotonic()
        self.accelerator = accelerator = start_accelerator(
            spec.train.precision, options.out.parent, options.tracker
        )
        self.device = accelerator.device
        layout = {"none": "ddp", "fsdp2": "fsdp2"}[options.shard]
        self.layout = layout if accelerator.num_processes > 1 else "none"
        time_scale: float = getattr(spec.backbone, "time_scale", 1.0)
        parallel.check_supported(
            options.tangent,
            self.layout,
            options.checkpoint_blocks,
            bool(options.compile_blocks),
            spec.train.precision,
            self.device.type,
            time_scale,
        )
        if options.compile_blocks:
            check_compiler("--compile-blocks", options.compile_blocks, self.device.type)
            parallel.keep_compiled_code(options.out.parent / "inductor")
        self.captured: CapturedSteps | None = None
        if options.capture:
            parallel.check_capture(self.layout, spec.train.precision, self.device.type)
            self.captured = CapturedSteps(self.device, WARM_UP_DDP if self.layout == "ddp" else WARM_UP)

        shards = LatentShards(options.latents)
        shards.check(spec.latents)
        self.text = self._open_text()
        self.sampling = sampling_card(options.sampling)
        load = self.text.load if self.text else None
        self.loader = Loader(shards, spec.seed, spec.train.global_batch_size)
        self.method = build_method(spec.loss)
        self.rows = split_batch(
            spec.train.global_batch_size,
            accelerator.num_processes,
            accelerator.process_index,
            options.device_batch or rows_at_once(spec.latents.shape),
            group=self.method.group,
        )

        self.draws: dict[tuple[str, ...], tuple[Draw, ...]] = {}
        self.feed = Feed(
            self.loader,
            spec.seed,
            spec.train.global_batch_size,
            self.rows,
            self.device,
            lambda step: self.draws.get(kind_of_step(self.method.updates(step)), ()),
            spec.train.steps,
            load,
        )
        self.step_number = torch.zeros((), dtype=torch.float64, device=self.device)

        torch.manual_seed(fold_in(spec.seed, "initial weights"))
        net = build(spec.backbone)
        extra = self.method.extra()
        if self.text is not None:
            use_text(net, self.text)
        adapted = isinstance(spec.backbone, Sd3) and spec.backbone.lora is not None
        self.teacher_net: nn.Module | None = None
        if adapted:
            self._load_base(options.teacher, net)
        elif options.teacher:
            self.teacher_net = self._load_teacher(options.teacher, net)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold_in(spec.seed, "players"))
            players = self.method.players(net)

        self.progress = Progress()
        owner: dict[str, str | list[str] | None] = {
            "spec": digest(spec),
            "teacher": sha256(options.teacher) if options.teacher else None,
            "latents": sha256(options.latents),
            "training code": training_digest(spec.loss.name, spec.backbone.kind),
        }
        if self.text is not None:
            owner["captions"] = self.text.digest
        before: Path | None = None
        if spec.continues is not None and options.continued is not None:
            before = finished_state(options.continued, spec.continues.run)
            owner |= {"continued state": sha256(before / RECORD), "continued codes": codes_behind(before)}
        self.state = TrainingState(accelerator, options.out.parent, owner, self.progress)
        self.saved = self.state.newest()
        self.anew = self.saved is None
        """Whether no earlier process has begun this training."""
        if self.anew and before is not None and spec.continues is not None:
            self.state.take_over(before, spec.continues)
            self.saved = before
        self.self_test: SelfTest | None = None
        if options.self_test and self.saved is None:
            bare = net.to(self.device)
            kind = "pyramid" if spec.loss.pyramid else spec.loss.kind  # of several times no tangent is taken
            self.self_test = SelfTest(bare, kind, self.loader, self.device, time_scale, load)
        if adapted and spec.train.precision != "no" and self.layout != "fsdp2":
            cast_blocks(net, parallel.HALF[spec.train.precision])

        target = _copied(net) if self.method.target_decay is not None else None
        parallel.apply_compile_and_checkpointing(net, options.checkpoint_blocks, options.compile_blocks)
        self.net = parallel.prepare(accelerator, net, self.layout)
        self.extra = parallel.prepare(accelerator, extra, self.layout) if extra is not None else None
        if adapted:
            self.teacher_net = AdaptersOff(self.net)
        own = {"net": self.net} | ({"extra": self.extra} if self.extra is not None else {})
        self.student = Player(accelerator, spec.train.optimizer, own)
        self.players = {"": self.student}
        settings = spec.loss.optimizers if isinstance(spec.loss, WithPlayers) else {}
        # torch.compile has no second derivatives.
        plain = {player_of(update) for update in self.method.updates(0) if second_order(update)}
        for name, player in players.items():
            compiler = "" if name in plain else options.compile_blocks
            parallel.apply_compile_and_checkpointing(player, options.checkpoint_blocks, compiler)
            prepared = {f"players.{name}": parallel.prepare(accelerator, player, self.layout)}
            self.players[name] = Player(accelerator, settings[name], prepared)
        self.skips = Skips(len(self.players), self.device)
        self.measured = Measured(self.method.averages, self.device)
        self.ema = Ema(self.net, spec.train.ema)
        self.averages = {"ema": self.ema}
        self.target: nn.Module | None = None
        if target is not None:
            self.target = self._follow(target)
        modules: dict[str, nn.Module] = {"measured": self.measured}
        optimizers: dict[str, torch.optim.Optimizer] = {}
        for each in self.players.values():
            modules |= each.modules
            optimizers |= dict.fromkeys(each.modules, each.optimizer.optimizer)
        self.state.attach(modules, optimizers, self.averages)

    def _load_teacher(self, path: Path, net: nn.Module) -> nn.Module:
        """The frozen teacher; ``net`` starts with those of its weights that both have.

        A network that is not told the times has other layers than its teacher, and keeps its random weights.
        An SD3 of another time_scale starts with the teacher's embedding of t fitted to its own sinusoids.
        """
        teacher, card = load_network(path)
        if getattr(self.spec.backbone, "timed", True):
            load_compatible(net, teacher.state_dict(), str(path))
        self._check_teacher(card, path)
        if isinstance(self.spec.backbone, Sd3) and teacher.spec.time_scale != self.spec.backbone.time_scale:
            net.fit_time(teacher)
        if self.text is not None:
            use_text(teacher, self.text)
        parallel.apply_compile_and_checkpointing(teacher, compile=self.options.compile_blocks)
        return parallel.freeze(self.accelerator, teacher, constant=True)

    def _open_text(self) -> TextStore | None:
        """The captions that condition the network, stored or encoded here; None where it knows none."""
        text, captions, encoder = self.options.text, self.options.captions, self.options.encoder
        if text is None or self.spec.text is None:
            return None
        if captions is None:
            return open_text(text, self.spec.text, self.device)
        from ..data.text_encoding import open_live_text  # loads the encoders

        spec = read_spec(TextSpec, text)
        if spec.text != self.spec.text:
            asked, found = self.spec.text.model_dump(), spec.text.model_dump()
            others = ", ".join(f"text.{key}" for key in asked if found[key] != asked[key])
            raise ValueError(
                f"{text}: {others}: not those of the captions {self.spec.text.name} that this run is to "
                "learn; give --text their spec"
            )
        return open_live_text(spec, captions, encoder, self.device)

    def _load_base(self, path: Path | None, net: nn.Module) -> None:
        """Load what lies below the adapters of ``net``, which without them is the teacher."""
        if path is None:
            raise ValueError("backbone.lora: adapters are trained on a teacher's network; give --teacher")
        self._check_teacher(load_base(net, self.spec.backbone, path), path)

    def _check_teacher(self, card: dict[str, Any], path: Path) -> None:
        """Refuse a teacher of other latents, or of other embeddings of captions, than this run's."""
        check_tokenizer(card, self.spec.latents.tokenizer, path)
        if self.text is not None:
            check_text(card, self.text.card, path)

    def _follow(self, target: nn.Module) -> nn.Module:
        """The target network that the losses see: a moving average, from a copy of the network."""
        decay = self.method.target_decay
        assert decay is not None
        parallel.apply_compile_and_checkpointing(target, compile=self.options.compile_blocks)
        target = parallel.freeze(self.accelerator, target, self.layout)
        law = Approach(decay) if self.method.target_warmup else ConstantEma(kind="constant", decay=decay)
        self.averages["target"] = Ema(self.net, law, into=target)
        return target

    def run(self) -> None:
        """Train to the last step, resuming from a saved state if there is one; write model and curve."""
        spec, options, accelerator, progress = self.spec, self.options, self.accelerator, self.progress
        main = accelerator.is_main_process
        stop = StopRequest(accelerator.process_index, accelerator.num_processes)
        if self.saved is not None:
            self.state.restore(self.saved)
            self.skips.restore(progress.skipped, progress.skipped_in_a_row)
            done = "resumed" if not self.anew else f"{self.saved}: continued"
            accelerator.print(f"{done} at step {progress.step} of {spec.train.steps}")
        self._measure()
        curve = Curve(self.state.curve, progress.curve_bytes) if main else None
        self._init_tracker()
        if main and self.anew:
            self._remove_kept()
            self.state.forget_finished()
        bar = tqdm(
            total=spec.train.steps,
            initial=progress.step,
            desc=f"{spec.method}/{spec.variant}/{spec.seed}",
            disable=not main,
            mininterval=1 if sys.stderr.isatty() else 10,
        )
        saved_at, first = time.monotonic(), progress.step
        updates: list[dict[str, Tensor]] = [{}]
        if options.watch and self.anew:
            self._watch(options.watch)  # tells at once if it cannot

        step = progress.step - 1  # the last one done, also where none is left
        while progress.step < spec.train.steps:
            step = progress.step
            rates = {name: player.set_rate(step, spec.train.steps) for name, player in self.players.items()}
            updates = self._step(step)
            if step % spec.train.log_every == 0:
                turns = [player_of(update) for update in self.method.updates(step)]
                for update, values in enumerate(updates):
                    logged = {"loss": 0.0, "grad_norm": 0.0, "lr": rates[turns[update]]} | self._mean(values)
                    accelerator.log(
                        {f"update{update}/{name}": value for name, value in logged.items()}, step=step
                    )
                    if curve:
                        curve.write(step=step, update=update, **logged)
                    shown = {"loss": f"{logged['loss']:.3f}", "grad": f"{logged['grad_norm']:.2f}"}
                    bar.set_postfix(shown, refresh=False)
                self._check_skips(step, updates)
            if step == first:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                accelerator.print(f"first step done after {time.monotonic() - self.began:.1f} s")
            progress.step += 1
            bar.update()
            kept_now = bool(options.keep_every) and progress.step % options.keep_every == 0
            if kept_now and progress.step < spec.train.steps:
                self._keep(step, updates)
            if options.watch and progress.step % options.watch_every == 0:
                self._watch(options.watch)

            by_steps = bool(options.save_steps) and progress.step % options.save_steps == 0
            # Clocks differ between processes; the main one's decides.
            late = main and not options.save_steps and time.monotonic() - saved_at > 60 * options.save_minutes
            stopping, late = parallel.agreed(accelerator, progress.step, stop.asked, late)
            if stopping or late or by_steps:
                if curve:
                    curve.flush()
                self._check_skips(step, updates)
                self.state.save()
                saved_at = time.monotonic()
            if stopping:
                accelerator.print(f"asked to stop: state saved at step {progress.step}")
                accelerator.end_training()
                raise SystemExit(STOPPED)

        self._check_skips(step, updates)
        bar.close()
        weights = parallel.gather(self.ema.tensors())
        if curve:
            curve.flush()
        if options.keep_state:
            self.state.save()
        if curve:
            write_lines(options.curve, curve.path.read_text(encoding="utf-8"))
            save_model(options.out, weights, spec.backbone, self._card())
        accelerator.wait_for_everyone()
        self.state.end(options.keep_state)
        if progress.skipped:
            accelerator.print(f"warning: {progress.skipped} updates were not finite and were skipped")
        if self.feed.waited > 1:
            accelerator.print(f"steps waited {self.feed.waited:.0f} s for their batches")
        peaks = " ".join(f"{peak:.0f}" for peak in parallel.peak_memory(accelerator))
        accelerator.print(f"peak memory of each process: {peaks} MiB")
        # Last: it also takes the process group down.
        accelerator.end_training()

    def _measure(self) -> None:
        """What is measured once, before the first step: guidance norm, self-test, counted operations."""
        progress = self.progress
        if progress.guidance_eta is None:
            load = self.text.load if self.text else None
            progress.guidance_eta = calibrated(
                self.spec, self.teacher_net, self.loader.shards, self.device, load
            )
        if self.self_test is not None:
            # One backward of each player's first update over the first rows; nothing is kept of it.
            firsts = {player_of(update): update for update in reversed(self.method.updates(0))}
            slices = self._slices(0)[:1]
            losses = [self._backward(update, slices, Tensor.backward)["loss"] for update in firsts.values()]
            weights = [weight for name in firsts for weight in self.players[name].weights]
            # FSDP2 expects a backward after every forward that records a graph.
            compiled = self.options.compile_blocks and self.layout != "fsdp2"
            rows = self.rows[0].stop - self.rows[0].start if compiled else None
            progress.self_test = self.self_test.result(
                self.accelerator, self.net, weights, torch.stack(losses).sum(), self.options.tangent, rows
            )
            self._drop_gradients()
            self.self_test = None
        if progress.flops_per_step is None:
            own = per_step(self.method, self.net, self._slices, self.spec.train.steps, self._drop_gradients)
            total = torch.tensor(own, dtype=torch.float64, device=self.device)
            progress.flops_per_step = float(self.accelerator.reduce(total, reduction="sum"))

    def _init_tracker(self) -> None:
        """Events of a training that starts anew, or that come after a resumed step, are dropped.

        A training is one run of wandb, however often it is resumed: the run's name lies beside the state.
        """
        name, folder, step = self.options.tracker, self.options.out.parent, self.progress.step
        options: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": step}}
        if self.accelerator.is_main_process:
            if self.anew:
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
            if name == "wandb":
                run = self.state.folder / "wandb-run"
                if self.anew or not run.exists():
                    write_text(run, uuid.uuid4().hex)
                title = f"{self.spec.method}/{self.spec.variant}/{self.spec.seed}"
                options["wandb"] = {"id": run.read_text(encoding="utf-8"), "name": title, "resume": "allow"}
                options["wandb"] |= {"dir": str(folder)}
        self.accelerator.init_trackers("fewstep" if name == "wandb" else "tensorboard", init_kwargs=options)

    def _keep(self, step: int, updates: list[dict[str, Tensor]]) -> None:
        """Write the average beside the model as a model of its own, unless it was before a resume."""
        out = self.options.out
        path = out.with_stem(f"{out.stem}-{self.progress.step}")
        self._check_skips(step, updates)
        weights = parallel.gather(self.ema.tensors())
        if self.accelerator.is_main_process and not path.exists():
            save_model(path, weights, self.spec.backbone, self._card() | {"step": self.progress.step})

    def _watch(self, watch: Watch) -> None:
        """Show the average as it is now."""
        weights, step = parallel.gather(self.ema.tensors()), self.progress.step
        if self.accelerator.is_main_process:
            values = watch(step, weights, self.device)
            self.accelerator.log({f"watch/{name}": value for name, value in values.items()}, step=step)
            shown = [f"{name} {value:.4g}" for name, value in values.items()]
            tqdm.write(", ".join([f"step {step}: samples written", *shown]))

    def _remove_kept(self) -> None:
        """Remove the checkpoints that an earlier training has kept."""
        out = self.options.out
        for path in out.parent.glob(f"{glob.escape(out.stem)}-*{glob.escape(out.suffix)}"):
            if path.stem.removeprefix(f"{out.stem}-").isdecimal():
                path.unlink()

    def _slices(self, step: int) -> Slices:
        """This process's rows of one step, as all its updates share them."""
        return self._with_contexts(step, self._given(step))

    def _given(self, step: int) -> list[Given]:
        """Batch and draws of each slice of one step."""
        self.step_number.fill_(step)
        return self.feed.take(step)

    def _with_contexts(self, step: int, given: list[Given]) -> Slices:
        return [
            (batch, self._context(step, rows, made))
            for rows, (batch, made) in zip(self.rows, given, strict=True)
        ]

    def _context(self, step: int, rows: slice, made: dict[Draw, Tensor]) -> Context:
        spec = self.spec
        null = spec.backbone.null if isinstance(spec.backbone, FlowNetwork) else 0
        teacher = None
        if self.teacher_net is not None:
            eta = self.progress.guidance_eta
            teacher = ClassifierFreeGuidance(self.teacher_net, spec.guidance, null, eta)
        return Context(
            step=self.step_number,
            steps=spec.train.steps,
            rng=Streams(
                spec.seed,
                step,
                spec.train.global_batch_size,
                rows,
                self.device,
                made,
                sharded=self.layout == "fsdp2",
            ),
            null=null,
            jvp=lambda net, inputs, tangents, y: value_and_tangent(
                net, inputs, tangents, y, self.options.tangent
            ),
            teacher=teacher,
            teacher_net=self.teacher_net,
            target=self.target,
            label_dropout=spec.label_dropout,
            extra=self.extra,
            averages=self.measured.values(),
            players={name: self.players[name].modules[f"players.{name}"] for name in self.players if name},
        )

    def _drop_gradients(self) -> None:
        for player in self.players.values():
            player.optimizer.zero_grad()

    def _step(self, step: int) -> list[dict[str, Tensor]]:
        """All updates of a step; what each has to log, on the device."""
        turns, given = self.method.updates(step), self._given(step)
        kind = kind_of_step(turns)

        def updates() -> list[dict[str, Tensor]]:
            self._drop_gradients()  # a capture that failed has left some, and its contexts are void
            slices = self._with_contexts(step, given)
            logged = [self._update(update, slices) for update in turns]
            self.draws.setdefault(kind, tuple(slices[0][1].rng.made))
            return logged

        return self.captured.run(kind, updates) if self.captured else updates()

    def _update(self, update: Update, slices: Slices) -> dict[str, Tensor]:
        """One update of a player, if its gradients are finite; with the student its averages."""
        with parallel.casts_kept(self.accelerator, self.layout):
            values = self._backward(update, slices, self.accelerator.backward)
        player = self.players[player_of(update)]
        norm = player.clip()
        finite = norm.isfinite()
        player.update(finite)
        for name in [name for name in self.method.averages if name in values]:  # in the same order everywhere
            value = self.accelerator.reduce(values[name], reduction="mean")
            self.measured.update(name, value, finite)
        if player is self.student:
            for average in self.averages.values():
                average.update(self.net, finite)
        self.skips.count(list(self.players).index(player_of(update)), finite)
        return values | {"grad_norm": norm}

    def _backward(
        self, update: Update, slices: Slices, backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]:
        """Gradients of the loss over the slices, one graph at a time; its value ("loss") and its logs."""
        share = 1 / len(slices)
        total = {"loss": torch.zeros((), device=self.device)}
        work = [(part, *each) for each in slices for part in loss_parts(update)]
        learning = self.players[player_of(update)].modules.values()
        second = second_order(update)
        with resting(at_rest(update, self.net, slices[0][1])), gathered(learning if second else ()):
            for number, (part, batch, context) in enumerate(work):
                last = number + 1 == len(work)
                with parallel.ddp_sync(self.accelerator, learning, now=last):
                    output = part(self.net, batch, context)
                    backward(output.loss * share)
                for name, value in {"loss": output.loss, **output.logs, **output.measured}.items():
                    total[name] = total.get(name, 0) + value.detach() * share
        return total

    def _mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Means over the processes, as numbers."""
        means = torch.stack([value.float() for value in values.values()])
        if self.accelerator.num_processes > 1:
            means = self.accelerator.reduce(means, reduction="mean")
        return dict(zip(values, means.tolist(), strict=True))

    def _check_skips(self, step: int, updates: list[dict[str, Tensor]]) -> None:
        """Take the counts of skipped updates from the device.

        Args:
            updates: what those of the last step have to log.

        Raises:
            FloatingPointError: too many of one player in a row so far.
        """
        progress = self.progress
        progress.skipped, progress.skipped_in_a_row, rows = self.skips.read()
        most = max(rows)
        if most >= self.spec.train.max_skipped_updates:
            saved, who = self.state.saved(), list(self.players)[rows.index(most)]
            turns = map(player_of, self.method.updates(step))
            values = [values for player, values in zip(turns, updates, strict=False) if player == who]
            shown = ", ".join(f"{name} {float(value):.4g}" for name, value in (values or updates)[-1].items())
            raise FloatingPointError(
                f"step {progress.step}: {most} non-finite updates in a row{who and f' of {who}'} ({shown}); "
                f"last good state: {saved[-1] if saved else 'none'}"
            )

    def _card(self) -> dict[str, object]:
        """What the model file says of its weights."""
        spec, progress = self.spec, self.progress
        more: dict[str, object] = {}
        if self.text is not None:
            more["text"] = self.text.card
        if isinstance(self.teacher_net, AdaptersOff):
            more["base"] = self.state.owner["teacher"]
        if spec.continues is not None:
            told = {"state": "continued state", "codes": "continued codes"}
            own = {key: self.state.owner[name] for key, name in told.items()}
            more["continues"] = spec.continues.model_dump() | own
        latents = self.loader.shards.manifest
        return (
            more
            | self.sampling
            | {
                "status": "trained",
                "spec": digest(spec),
                "code": self.state.owner["training code"],
                "loss": spec.loss.name,
                "method": spec.method,
                "variant": spec.variant,
                "seed": spec.seed,
                "steps": spec.train.steps,
                "batch": spec.train.global_batch_size,
                "ema": spec.train.ema.model_dump(mode="json"),
                "latents": spec.latents.model_dump()
                | {"weights": latents.weights, "normalisation": latents.normalisation.model_dump()},
                "teacher": self.state.owner["teacher"],
                "versions": versions(),
                "guidance_eta": progress.guidance_eta,
                "skipped_updates": progress.skipped,
                "flops_per_step": progress.flops_per_step,
                "self_test": progress.self_test,
            }
        )


def _copied(net: nn.Module) -> nn.Module:
    """A copy of a bare network, which shares what adapters leave frozen."""
    if getattr(net, "trained", None) is None:
        return copy.deepcopy(net)
    frozen = [tensor for tensor in (*net.parameters(), *net.buffers()) if not tensor.requires_grad]
    return copy.deepcopy(net, {id(tensor): tensor for tensor in frozen})


def start_accelerator(precision: str, folder: Path, tracker: str = "none") -> Accelerator:
    """Accelerate with nothing but these settings: its environment variables would change the result.

    Args:
        tracker: one of TRACKERS.

    Raises:
        ValueError: several processes were started, and accelerate does not see them; the tracker is not
            installed.
    """
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise ValueError(
            f"--tracker {tracker}: the package is not installed; pip install {tracker}, or give another one"
        )
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        # Buffers are constants, which DistributedDataParallel would write anew before every forward.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        mixed_precision=precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=str(folder),
    )
    # Under torchrun without GPUs a misconfigured Accelerator is N lone processes, silently.
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ValueError(f"{started} processes started, but accelerate sees {accelerator.num_processes}")
    return accelerator
