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
        options="",
    shell:
        "exec python -m fewstep.launch --nodes {resources.nodes} --gpus {resources.gpu}"
        " --gres '{resources.gres}' --threads {threads} --lock {output.model}.lock"
        " fewstep.train --spec {input.spec} --latents {input.latents} --teacher {input.teacher}"
        " --out {output.model} --curve {output.curve} {resources.options} > {log} 2>&1"


# Nothing is trained: networks and latents are random, and of the sizes in the configuration.
rule bench:
    input:
        spec="<results>/specs/bench/bench.json",
    output:
        "<results>/bench.csv",
    log:
        "<logs>/bench.log",
    conda:
        "../../envs/torch.yaml"
    resources:
        gpu=0,
        gres="",
    shell:
        "python -m fewstep.launch --gpus {resources.gpu} --gres '{resources.gres}' fewstep.bench train-step"
        " --spec {input.spec} --out {output} > {log} 2>&1"
