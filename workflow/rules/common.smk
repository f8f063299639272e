# The plan answers every question about names, paths and specs; rules only ask it.
from fewstep.config import ConfigError
from fewstep.config.base import complete
from fewstep.plan import Plan

try:
    config = complete(config, repository)
    workflow.register_pathvars(**config["pathvars"])
    config["pathvars"] = {
        name: workflow.pathvars.get(name) for name in config["pathvars"]
    }
    plan = Plan(config, repository)
except ConfigError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    run=plan.pattern("runs"),
    seed=r"\d+",
    shard=r"\d{5}",
    asset=plan.pattern("assets"),
    latents=plan.pattern("latents"),
    protocol=plan.pattern("protocols"),
    images=plan.pattern("image_sets"),
    cell=plan.pattern("cells"),
    table=plan.pattern("tables"),
    figure=plan.pattern("figures"),


rule spec:
    output:
        "<results>/specs/{stage}/{name}.json",
    log:
        "<logs>/spec/{stage}/{name}.log",
    wildcard_constraints:
        name=".+",
        stage="[a-z]+",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        text=lambda wildcards: plan.spec_text(wildcards.stage, wildcards.name),
    shell:
        "printf '%s\\n' {params.text:q} > {output} 2> {log}"
