"""Start a stage with as many processes as there are GPUs.

    python -m fewstep.launch --gpus 8 fewstep.train --spec ...

None or one: a plain Python process. More: `accelerate launch` on this machine.
"""

from __future__ import annotations

import argparse
import os
import sys


def command(gpus: int, module: str, arguments: list[str]) -> list[str]:
    """The command line that runs ``module`` on ``gpus`` GPUs."""
    python = [sys.executable, "-m"]
    if gpus <= 1:
        return [*python, module, *arguments]
    accelerate = [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_machines",
        "1",
        "--num_processes",
        str(gpus),
    ]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [*python, *accelerate, *plain, "-m", module, *arguments]


def main() -> None:
    arguments = argparse.ArgumentParser(description="Start a stage with as many processes as there are GPUs.")
    arguments.add_argument("--gpus", type=int, default=0)
    arguments.add_argument("module")
    arguments.add_argument("rest", nargs=argparse.REMAINDER)
    given = arguments.parse_args()
    words = command(given.gpus, given.module, given.rest)
    # exec: a signal to the job must reach the stage itself.
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
