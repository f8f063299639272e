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


rule all:
    default_target: True
    input:
        plan.targets(),
    localrule: True
