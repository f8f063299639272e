rule sample:
    input:
        spec="<results>/specs/sample/{run}/{cell}/{images}.json",
        model="<results>/{run}/{seed}/model.safetensors",
        latents=lambda wildcards: plan.normalisation_of(wildcards.run),
        tokenizer=lambda wildcards: plan.decoder_of(wildcards.run),
    output:
        temp("<results>/{run}/{seed}/{cell}/{images}.tar"),
    log:
        "<logs>/sample/{run}/{seed}/{cell}/{images}.log",
    conda:
        "../../envs/torch.yaml"
    resources:
        gpu=0,
        gres="",
    shell:
        "python -m fewstep.launch --gpus {resources.gpu} --gres '{resources.gres}' fewstep.sample --spec {input.spec}"
        " --model {input.model} --latents {input.latents} --tokenizer {input.tokenizer}"
        " --out {output} > {log} 2>&1"


rule reference:
    input:
        spec="<results>/specs/reference/{protocol}.json",
        latents=lambda wildcards: plan.reference_latents(wildcards.protocol),
        published=lambda wildcards: plan.published_reference(wildcards.protocol),
        extractor=lambda wildcards: plan.extractor(wildcards.protocol),
    output:
        "<results>/references/{protocol}.npz",
    log:
        "<logs>/reference/{protocol}.log",
    conda:
        "../../envs/metrics.yaml"
    resources:
        gpu=0,
        gres="",
    shell:
        "python -m fewstep.launch --gpus {resources.gpu} --gres '{resources.gres}' fewstep.reference --spec {input.spec}"
        " --latents {input.latents} --published {input.published} --extractor {input.extractor} --out {output} > {log} 2>&1"


rule score:
    input:
        spec="<results>/specs/score/{run}/{seed}/{cell}/{protocol}.json",
        images=lambda wildcards: plan.images_of(
            wildcards.run, wildcards.seed, wildcards.cell, wildcards.protocol
        ),
        extractor=lambda wildcards: plan.extractor(wildcards.protocol),
        reference=lambda wildcards: plan.reference(wildcards.protocol),
    output:
        "<results>/{run}/{seed}/{cell}/{protocol}.json",
    log:
        "<logs>/score/{run}/{seed}/{cell}/{protocol}.log",
    conda:
        "../../envs/metrics.yaml"
    resources:
        gpu=0,
        gres="",
    shell:
        "python -m fewstep.launch --gpus {resources.gpu} --gres '{resources.gres}' fewstep.score --spec {input.spec}"
        " --images {input.images} --extractor {input.extractor} --reference {input.reference} --out {output} > {log} 2>&1"
