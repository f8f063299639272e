# snakemake --profile profiles/slurm results/table1.csv      the paper's table, on a cluster
# snakemake --profile profiles/demo                          everything in miniature, on two cores
import sys

from snakemake.utils import min_version

min_version("9.14")


configfile: f"{workflow.basedir}/config/config.yaml"


sys.path.insert(0, workflow.basedir)


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/doctor.smk"


onstart:
    # A limit on the rate of jobs, which Snakemake 9 sets unasked (100 a second), costs a timer for every job
    # that ends. Each wakes the scheduler once a second for the rest of the run: hundreds of them keep a core busy.
    workflow.scheduler.job_rate_limiter = None


rule all:
    default_target: True
    input:
        plan.targets(),
    localrule: True
