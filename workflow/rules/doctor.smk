# Whether the machine, the profile and the cluster fit, before anything is submitted.
rule doctor:
    log:
        "<logs>/doctor.log",
    retries: 0
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        profiles=profiles,
        repository=repository,
    shell:
        "python -m fewstep.doctor --profile {params.profiles:q} --repository {params.repository:q} 2>&1 | tee {log:q}"
