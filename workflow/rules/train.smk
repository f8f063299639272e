# Published weights and our own end under the same name; which of the two rules makes a run's
# model is decided by its `weights` in config/methods/.
rule adopt:
    input:
        spec="<results>/specs/adopt/{run}.json",
        asset=lambda wildcards: plan.adopted_from(wildcards.run),
    output:
        model="<results>/{run}/0/model.safetensors",
    log:
        "<logs>/adopt/{run}.log",
    wildcard_constraints:
        run=plan.pattern("adopted"),
    conda:
        "../../envs/torch.yaml"
    shell:
        "python -m fewstep.adopt --spec {input.spec} --asset {input.asset} --out {output} > {log} 2>&1"


# Training state lives in an undeclared folder beside the model: Snakemake removes the declared
# outputs of a failed job, and a retry resumes from the state.
# exec: without it the shell dies of a signal at once, and the job ends before the state is saved.
rule train:
    input:
        spec="<results>/specs/train/{run}/{seed}.json",
        latents=lambda wildcards: plan.latents_of(wildcards.run),
        teacher=lambda wildcards: plan.teacher_of(wildcards.run),
    output:
        model="<results>/{run}/{seed}/model.safetensors",
        curve=report(
            "<results>/{run}/{seed}/train.jsonl",
            caption="../report/train.rst",
            category="Training curves",
            labels={"run": "{run}", "seed": "{seed}"},
        ),
    log:
        "<logs>/train/{run}/{seed}.log",
    benchmark:
        "<results>/{run}/{seed}/benchmark.tsv"
    wildcard_constraints:
        run=plan.pattern("trained"),
    conda:
        "../../envs/torch.yaml"
    resources:
        nodes=1,
        gpu=0,
        gres="",
    shell:
        "exec python -m fewstep.launch --nodes {resources.nodes} --gpus {resources.gpu}"
        " --gres '{resources.gres}' --threads {threads} --lock {output.model}.lock"
        " fewstep.train --spec {input.spec} --latents {input.latents} --teacher {input.teacher}"
        " --out {output.model} --curve {output.curve} > {log} 2>&1"
