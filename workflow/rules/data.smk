# Local: compute nodes often have no network.
rule fetch:
    input:
        spec="<results>/specs/fetch/{asset}.json",
    output:
        "<assets>/{asset}.json",
    log:
        "<logs>/fetch/{asset}.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m fewstep.fetch --spec {input.spec} --out {output} > {log} 2>&1"


# All that the targets need from outside, before anything is submitted.
rule assets:
    input:
        lambda wildcards: plan.asset_records(),
    localrule: True


rule encode:
    input:
        spec="<results>/specs/encode/{latents}.json",
        source=lambda wildcards: plan.source(wildcards.latents),
        tokenizer=lambda wildcards: plan.tokenizer_weights(wildcards.latents),
    output:
        "<latents>/{latents}/shard-{shard}.tar",
    log:
        "<logs>/encode/{latents}/{shard}.log",
    conda:
        "../../envs/torch.yaml"
    resources:
        gpu=0,
    shell:
        "python -m fewstep.encode --spec {input.spec} --source {input.source}"
        " --tokenizer {input.tokenizer} --shard {wildcards.shard} --out {output} > {log} 2>&1"


rule manifest:
    input:
        spec="<results>/specs/encode/{latents}.json",
        source=lambda wildcards: plan.source(wildcards.latents),
        tokenizer=lambda wildcards: plan.tokenizer_weights(wildcards.latents),
        shards=lambda wildcards: plan.shards(wildcards.latents),
    output:
        "<latents>/{latents}/manifest.json",
    log:
        "<logs>/encode/{latents}/manifest.log",
    conda:
        "../../envs/torch.yaml"
    shell:
        "python -m fewstep.encode --spec {input.spec} --source {input.source}"
        " --tokenizer {input.tokenizer} --merge {input.shards} --out {output} > {log} 2>&1"
