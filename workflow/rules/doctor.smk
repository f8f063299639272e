# Whether the machine, the profile and the cluster fit, before anything is submitted.
import sys

from fewstep.environment import profiles_of


rule doctor:
    log:
        "<logs>/doctor.log",
    retries: 0
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        profiles=lambda wildcards: profiles_of(
            sys.argv, [Path(os.environ.get("PWD", "")), repository]
        )
        or [repository / "profiles/slurm"],
        repository=repository,
    shell:
        "python -m fewstep.doctor --profile {params.profiles:q} --repository {params.repository:q} 2>&1 | tee {log:q}"
