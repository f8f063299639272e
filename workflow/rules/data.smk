rule spec:
    output:
        "<results>/specs/{stage}/{name}.json",
    log:
        "<logs>/spec/{stage}/{name}.log",
    wildcard_constraints:
        name=".+",
        stage="[a-z]+",
    retries: 0
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        text=lambda wildcards: plan.spec_text(wildcards.stage, wildcards.name),
    shell:
        "{{ printf '%s\\n' {params.text:q} > {output:q}.tmp && mv {output:q}.tmp {output:q}; }} 2> {log:q}"


# Local: compute nodes often have no network.
rule fetch:
    input:
        unpack(inputs("fetch")),
    output:
        FILES["record"],
    log:
        "<logs>/fetch/{asset}.log",
    retries: FEW_RETRIES
    localrule: True
    conda:
        environment("fetch")
    shell:
        "python -m fewstep.fetch --spec {input.spec:q} --out {output:q} > {log:q} 2>&1"


# All that the targets need from outside, before anything is submitted.
rule assets:
    input:
        lambda wildcards: [plan.file("record", asset=name) for name in plan.assets()],
    localrule: True


rule encode:
    input:
        unpack(inputs("encode")),
    output:
        FILES["shard"],
    log:
        "<logs>/encode/{latents}/{shard}.log",
    benchmark:
        "<logs>/encode/{latents}/{shard}.tsv"
    retries: FEW_RETRIES
    conda:
        "../../envs/torch.yaml"
    resources:
        gpu=0,
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --attempt {resources.attempt} fewstep.encode"
        " --spec {input.spec:q} --source {input.source:q}"
        " --tokenizer {input.tokenizer:q} --shard {wildcards.shard:q} --out {output:q} > {log:q} 2>&1"


rule manifest:
    input:
        unpack(inputs("manifest")),
    output:
        FILES["manifest"],
    log:
        "<logs>/encode/{latents}/manifest.log",
    benchmark:
        "<logs>/encode/{latents}/manifest.tsv"
    retries: FEW_RETRIES
    conda:
        "../../envs/torch.yaml"
    resources:
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --attempt {resources.attempt} fewstep.encode"
        " --spec {input.spec:q} --source {input.source:q}"
        " --tokenizer {input.tokenizer:q} --merge {input.shards:q} --out {output:q} > {log:q} 2>&1"


# Embeddings of captions; a stopped job goes on where it was.
rule text:
    input:
        unpack(inputs("text")),
    output:
        FILES["text"],
    log:
        "<logs>/text/{encoder}/{captions}.log",
    benchmark:
        "<logs>/text/{encoder}/{captions}.tsv"
    conda:
        "../../envs/t2i.yaml"
    resources:
        gpu=0,
        gres="",
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --gpus {resources.gpu} --gres={resources.gres:q}"
        " --attempt {resources.attempt} fewstep.text --spec {input.spec:q}"
        " --captions {input.captions:q} --encoder {input.encoder:q} --out {output:q} > {log:q} 2>&1"
