"""Train one run: a network by a method, on latents, perhaps with a teacher.

    python -m fewstep.train --spec SPEC --latents manifest.json [--text manifest.json]
        [--teacher model.safetensors] --out model.safetensors --curve train.jsonl

Several processes are started by torchrun (see fewstep.launch). The global batch is the spec's; processes
and gradient accumulation divide it, and the result does not depend on them. SIGTERM or SIGUSR1 saves the
state and exits with status 75; the next start resumes from there.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch

from .common.cli import add_compiler, add_sampling, parser, run
from .common.device_time import FILE, Part, measured_time, processor
from .common.files import write_text
from .config import read_spec
from .config.specs import ScoreSpec, TrainSpec
from .core.dual import use_attention_kernel
from .data.loader import rows_at_once
from .methods import build as build_method
from .training.trainer import TRACKERS, Options, Trainer, Watch


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ConfigError: a bad spec.
        ValueError: latents, captions or teacher that do not fit it, a batch that the processes cannot
            divide, or a GPU whose memory does not suffice.
        FloatingPointError: too many non-finite updates in a row.
    """
    arguments = parser(__doc__)
    arguments.add_argument("--latents", type=Path, required=True, help="manifest.json of the shards")
    arguments.add_argument("--text", type=Path, nargs="*", default=[], help="manifest.json of the captions")
    live = "instead of a store, whose spec is then --text: "
    for option, meaning in (
        ("--captions", "record of the asset that has the captions, to be encoded here"),
        ("--encoder", "model file of their encoder, or the record of its weights, if it has any"),
    ):
        arguments.add_argument(option, type=Path, nargs="*", default=[], help=live + meaning)
    add_sampling(arguments)
    arguments.add_argument("--teacher", type=Path, nargs="*", default=[], help="model that teaches")
    arguments.add_argument(
        "--continued",
        type=Path,
        nargs="*",
        default=[],
        help="model of the training to go on with; its kept state lies beside it",
    )
    arguments.add_argument("--curve", type=Path, required=True, help="train.jsonl to write")
    arguments.add_argument("--device-batch", type=int, help="most rows a device holds at once")
    arguments.add_argument("--save-minutes", type=float, default=15, help="time between saved states")
    arguments.add_argument("--save-steps", type=int, default=0, help="steps between saved states, instead")
    arguments.add_argument(
        "--keep-every", type=int, default=0, metavar="N", help="keep the average of every N steps as a model"
    )
    arguments.add_argument(
        "--keep-state",
        action="store_true",
        help="keep the state of the finished training beside the model, for one that continues it",
    )
    arguments.add_argument(
        "--watch-every", type=int, default=0, metavar="N", help="sample every N steps, if --watch is given"
    )
    arguments.add_argument(
        "--watch", help="what is sampled and compared: spec of a score, a file or its text"
    )
    for option in ("tokenizer", "extractor", "reference"):
        meaning = f"its {option}, as for fewstep.sample and fewstep.score"
        arguments.add_argument(f"--watch-{option}", type=Path, nargs="*", default=[], help=meaning)
    arguments.add_argument(
        "--tracker", choices=TRACKERS, default="tensorboard", help="where the curve is shown meanwhile"
    )
    arguments.add_argument("--tangent", default="fused", help="formulation of the tangent (core/jvp.py)")
    arguments.add_argument(
        "--attention-kernel",
        action="store_true",
        help="tangents of long attention on a GPU by one Triton kernel (core/attention_kernel.py)",
    )
    arguments.add_argument(
        "--shard", choices=["none", "fsdp2"], default="none", help="how several processes hold the weights"
    )
    arguments.add_argument(
        "--checkpoint-blocks", action="store_true", help="recompute blocks in the backward: less memory"
    )
    add_compiler(arguments, "--compile-blocks", "torch.compile each block")
    arguments.add_argument(
        "--capture", action="store_true", help="replay steps as CUDA graphs: nothing waits for the host"
    )
    arguments.add_argument(
        "--no-self-test",
        dest="self_test",
        action="store_false",
        help="start even where gradients or tangents look wrong",
    )
    given = vars(arguments.parse_args(argv))
    use_attention_kernel(given.pop("attention_kernel"))
    path, teacher, text = given.pop("spec"), given.pop("teacher"), given.pop("text")
    spec = read_spec(TrainSpec, path)
    if spec.teacher and len(teacher) != 1:
        raise ValueError(f"{path}: this run needs --teacher with one model file")
    if len(text) != (spec.text is not None):
        wanted = "needs --text with one manifest" if spec.text else "has no captions: leave --text out"
        raise ValueError(f"{path}: this run {wanted}")
    if len(given["continued"]) != (spec.continues is not None):
        wanted = "needs --continued with one model" if spec.continues else "continues none: leave it out"
        raise ValueError(f"{path}: --continued: this run {wanted}")
    if given["encoder"] and not given["captions"]:
        raise ValueError(f"{path}: --encoder is for captions that are encoded here; give --captions too")
    given |= {"teacher": teacher[0] if spec.teacher else None, "text": text[0] if text else None}
    given |= {name: given[name][0] if given[name] else None for name in ("captions", "encoder", "continued")}
    given["watch"] = _watch(spec, given)
    train_in_memory(spec, Options(**given), path)


def train_in_memory(spec: TrainSpec, options: Options, path: Path) -> None:
    """Train; on one GPU, where ``options`` leave the rows open, with half as many where the memory is short.

    Rows at once are no part of a result but by rounding. A training goes on from its last saved state.

    Args:
        path: of the spec, for the message.

    Raises:
        ValueError: the memory does not suffice.
    """
    rows = min(rows_at_once(spec.latents.shape), spec.train.global_batch_size)
    given = options.device_batch is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1
    while True:
        try:
            _train(Trainer(spec, options))
            return
        except torch.cuda.OutOfMemoryError as error:
            told = str(error).splitlines()[0]
        if given or rows // 2 < build_method(spec.loss).group:
            raise ValueError(
                f"{path}: the GPU's memory does not suffice ({told}); give a smaller --device-batch, "
                "--checkpoint-blocks, or --shard fsdp2 on several GPUs"
            )
        rows //= 2
        options = dataclasses.replace(options, device_batch=rows)
        print(f"{path}: {rows} rows at a time, as more do not fit into the GPU's memory", flush=True)
        # Only here, past the handler, are the failed training's own tensors gone.
        gc.collect()
        torch.cuda.empty_cache()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


def _train(trainer: Trainer) -> None:
    """Run a training; its first process records the time on the devices beside the model."""
    if not trainer.accelerator.is_main_process:
        trainer.run()
        return
    device, count = trainer.device, trainer.accelerator.num_processes
    gpu = device.type == "cuda"
    part = Part(
        device=torch.cuda.get_device_name(device) if gpu else processor(),
        gpu=gpu,
        count=count if gpu else count * torch.get_num_threads(),
        seconds=time.monotonic() - trainer.began,
        memory=0.0,
    )

    fits = True

    def memory() -> float:
        if not fits:  # what it asked for is not what the training needs
            return 0.0
        if gpu:
            return float(torch.cuda.max_memory_allocated(device)) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    with measured_time(trainer.options.out.with_name(FILE), trainer.state.folder.name, part, memory):
        try:
            trainer.run()
        except torch.cuda.OutOfMemoryError:
            fits = False
            raise


def _watch(spec: TrainSpec, given: dict[str, Any]) -> Watch | None:
    """What samples the training while it runs, from the options, which are taken out.

    Raises:
        ConfigError: a bad spec.
        ValueError: a spec of another network, or of captions.
    """
    text, folder = given.pop("watch"), given["out"].parent / "samples"
    files = {name: given.pop(f"watch_{name}") for name in ("tokenizer", "extractor", "reference")}
    if not text or not given["watch_every"]:
        return None
    from .evaluation.watching import Watching  # takes seconds to import

    path = Path(text)
    if text.startswith("{"):
        path = folder / "spec.json"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    score = read_spec(ScoreSpec, path)
    if score.sample.backbone != spec.backbone or score.sample.text is not None:
        raise ValueError(f"{path}: --watch takes a score of the network that is trained, without captions")
    found = {name: paths[0] if paths else None for name, paths in files.items()}
    for needed in (found["extractor"], found["reference"]):
        if needed is not None and not needed.exists():
            print(f"{needed}: not there yet; samples are shown without a Frechet distance")
            found["reference"] = None
    return Watching(score, folder, given["latents"], **found)


if __name__ == "__main__":
    run(main)
