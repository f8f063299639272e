# Whether the machine, the profile and the cluster fit, before anything is submitted.
import sys

from fewstep.doctor import profiles_of


rule doctor:
    log:
        "<logs>/doctor.log",
    retries: 0
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        profiles=lambda wildcards: profiles_of(sys.argv) or ["profiles/slurm"],
    shell:
        "python -m fewstep.doctor --profile {params.profiles:q} 2>&1 | tee {log:q}"
