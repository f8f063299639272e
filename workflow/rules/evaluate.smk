rule sample:
    input:
        unpack(inputs("sample")),
    output:
        temp(FILES["images"]),
    log:
        LOGS["sample"],
    benchmark:
        "<logs>/sample/{run}/{seed}/{sampler}-{steps}/{images}.tsv"
    conda:
        environment("sample")
    resources:
        gpu=0,
        gres="",
        options="",
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --gpus {resources.gpu} --gres={resources.gres:q}"
        " --attempt {resources.attempt} fewstep.sample"
        " --spec {input.spec:q} --model {input.model:q} --base {input.base:q}"
        " --text {input.text:q} --latents {input.latents:q}"
        " --tokenizer {input.tokenizer:q} --pipeline {input.pipeline:q} --prompts {input.prompts:q}"
        " --out {output:q} {resources.options} > {log:q} 2>&1"


# Samples that are kept, for other evaluators: asked for by name.
rule images:
    input:
        unpack(inputs("images")),
    output:
        FILES["npz"],
    log:
        "<logs>/images/{run}/{seed}/{sampler}-{steps}/{images}.log",
    benchmark:
        "<logs>/images/{run}/{seed}/{sampler}-{steps}/{images}.tsv"
    retries: FEW_RETRIES
    conda:
        "../../envs/workflow.yaml"
    resources:
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --attempt {resources.attempt} fewstep.images"
        " --spec {input.spec:q} --images {input.images:q} --out {output:q} > {log:q} 2>&1"


use rule images as pictures with:
    input:
        unpack(inputs("pictures")),
    output:
        directory(FILES["pngs"]),
    log:
        "<logs>/pictures/{run}/{seed}/{sampler}-{steps}/{images}.log",
    benchmark:
        "<logs>/pictures/{run}/{seed}/{sampler}-{steps}/{images}.tsv"


rule reference:
    input:
        unpack(inputs("reference")),
    output:
        FILES["statistics"],
    log:
        "<logs>/reference/{protocol}.log",
    benchmark:
        "<logs>/reference/{protocol}.tsv"
    retries: FEW_RETRIES
    conda:
        environment("reference")
    resources:
        gpu=0,
        gres="",
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --gpus {resources.gpu} --gres={resources.gres:q}"
        " --attempt {resources.attempt} fewstep.reference"
        " --spec {input.spec:q} --latents {input.latents:q} --published {input.published:q}"
        " --extractor {input.extractor:q} --out {output:q} > {log:q} 2>&1"


# Scores of real images: what a network could reach at best, and at worst.
rule bounds:
    input:
        unpack(inputs("bounds")),
    output:
        FILES["bounds"],
    log:
        LOGS["bounds"],
    benchmark:
        "<logs>/bounds/{table}.tsv"
    retries: FEW_RETRIES
    conda:
        "../../envs/t2i.yaml"
    resources:
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --attempt {resources.attempt} fewstep.bounds"
        " --spec {input.spec:q} --prompts {input.prompts:q} --scorers {input.scorers:q}"
        " --tokenizer {input.tokenizer:q} --out {output:q} > {log:q} 2>&1"


# Real images of a few classes, to stand beside sampled ones.
rule examples:
    input:
        unpack(inputs("examples")),
    output:
        FILES["examples"],
    log:
        "<logs>/examples/{table}.log",
    benchmark:
        "<logs>/examples/{table}.tsv"
    retries: FEW_RETRIES
    conda:
        "../../envs/metrics.yaml"
    resources:
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --attempt {resources.attempt} fewstep.examples"
        " --spec {input.spec:q} --source {input.source:q} --prompts {input.prompts:q}"
        " --out {output:q} > {log:q} 2>&1"


rule score:
    input:
        unpack(inputs("score")),
    output:
        FILES["metrics"],
    log:
        LOGS["score"],
    benchmark:
        "<logs>/score/{run}/{seed}/{sampler}-{steps}/{protocol}.tsv"
    retries: FEW_RETRIES
    conda:
        environment("score")
    resources:
        gpu=0,
        gres="",
        options="",
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --gpus {resources.gpu} --gres={resources.gres:q}"
        " --attempt {resources.attempt} fewstep.score"
        " --spec {input.spec:q} --images {input.images:q} --extractor {input.extractor:q}"
        " --model {input.model:q} --latents {input.latents:q}"
        " --reference {input.reference:q} --scorers {input.scorers:q} --prompts {input.prompts:q}"
        " --out {output:q} {resources.options} > {log:q} 2>&1"
