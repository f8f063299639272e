"""snakemake with the remote executors' status polling fixed at one second.

snakemake-executor-plugin-slurm adds 10 s to its polling interval after every
check in which no job *succeeded* (up to 180 s), so that a test pays 12 s and
more for each level of the DAG and over 20 s for each failure.  Tests only: a
real cluster wants the slow polling.
"""

import asyncio
import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


async def _sleep(self):
    await asyncio.sleep(1)


RemoteExecutor.sleep = _sleep

if __name__ == "__main__":
    sys.argv[0] = "snakemake"
    main()
