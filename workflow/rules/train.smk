# Published weights and our own end under the same name; which rule makes a run's model is decided by its
# `weights` and `reembed` in config/methods/.
rule adopt:
    input:
        unpack(inputs("adopt")),
    output:
        FILES["model"],
    log:
        "<logs>/adopt/{run}/{seed}.log",
    benchmark:
        "<logs>/adopt/{run}/{seed}.tsv"
    wildcard_constraints:
        run=plan.runs_pattern("adopt"),
        seed="0",
    retries: FEW_RETRIES
    conda:
        "../../envs/torch.yaml"
    resources:
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --attempt {resources.attempt} fewstep.adopt"
        " --spec {input.spec:q} --asset {input.asset:q} --sampling {input.sampling:q}"
        " --out {output:q} > {log:q} 2>&1"


rule reembed:
    input:
        unpack(inputs("reembed")),
    output:
        FILES["model"],
    log:
        "<logs>/reembed/{run}/{seed}.log",
    benchmark:
        "<logs>/reembed/{run}/{seed}.tsv"
    wildcard_constraints:
        run=plan.runs_pattern("reembed"),
        seed="0",
    retries: FEW_RETRIES
    conda:
        "../../envs/t2i.yaml"
    resources:
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --attempt {resources.attempt} fewstep.reembed"
        " --spec {input.spec:q} --model {input.model:q} --out {output:q} > {log:q} 2>&1"


# Training state lives in an undeclared folder beside the model: Snakemake removes the declared
# outputs of a failed job, and a retry resumes from the state.
# exec: without it the shell dies of a signal at once, and the job ends before the state is saved.
rule train:
    input:
        unpack(inputs("train")),
    output:
        model=FILES["model"],
        curve=report(
            FILES["curve"],
            caption="../report/train.rst",
            category="Training curves",
            labels={"run": "{run}", "seed": "{seed}"},
        ),
    log:
        LOGS["train"],
    benchmark:
        "<results>/{run}/{seed}/benchmark.tsv"
    wildcard_constraints:
        run=plan.runs_pattern("train"),
    conda:
        environment("train")
    resources:
        nodes=1,
        gpu=0,
        gres="",
        options="",
        watch=watch,
        keep_state=keep_state,
        attempt=which_attempt,
    shell:
        "exec python -m fewstep.launch --nodes {resources.nodes} --gpus {resources.gpu}"
        " --gres={resources.gres:q} --threads {threads} --lock {output.model:q}.lock"
        " --attempt {resources.attempt} fewstep.train"
        " --spec {input.spec:q} --latents {input.latents:q} --text {input.text:q}"
        " --captions {input.captions:q} --encoder {input.encoder:q}"
        " --sampling {input.sampling:q}"
        " --teacher {input.teacher:q} --continued {input.continued:q}"
        " --out {output.model:q} --curve {output.curve:q}"
        " {resources.options}{resources.watch}{resources.keep_state} > {log:q} 2>&1"


# A student that is adapters, as files of diffusers and peft.
rule export:
    input:
        unpack(inputs("export")),
    output:
        lora=FILES["lora"],
        target_embedder=FILES["target_embedder"],
        one_file=FILES["one_file"],
    log:
        "<logs>/export/{run}/{seed}.log",
    benchmark:
        "<logs>/export/{run}/{seed}.tsv"
    wildcard_constraints:
        run=plan.runs_pattern("train"),
    retries: FEW_RETRIES
    conda:
        "../../envs/t2i.yaml"
    resources:
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --attempt {resources.attempt} fewstep.export"
        " --spec {input.spec:q} --model {input.model:q} --base {input.base:q} --origin {input.origin:q}"
        " --target-embedder {output.target_embedder:q} --one-file {output.one_file:q}"
        " --out {output.lora:q} > {log:q} 2>&1"


# A model as a folder of diffusers.
rule pipeline:
    input:
        unpack(inputs("pipeline")),
    output:
        FILES["pipeline"],
    log:
        "<logs>/pipeline/{run}/{seed}.log",
    benchmark:
        "<logs>/pipeline/{run}/{seed}.tsv"
    retries: FEW_RETRIES
    conda:
        environment("pipeline")
    resources:
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --attempt {resources.attempt} fewstep.pipeline"
        " --spec {input.spec:q} --model {input.model:q} --tokenizer {input.tokenizer:q}"
        " --latents {input.latents:q} --encoder {input.encoder:q} --out {output:q} > {log:q} 2>&1"


# Nothing is trained: networks and latents are random, and of the sizes in the configuration.
rule bench:
    input:
        unpack(inputs("bench")),
    output:
        "<results>/bench.csv",
    log:
        "<logs>/bench.log",
    benchmark:
        "<logs>/bench.tsv"
    retries: FEW_RETRIES
    conda:
        "../../envs/torch.yaml"
    resources:
        gpu=0,
        gres="",
        attempt=which_attempt,
    shell:
        "python -m fewstep.launch --gpus {resources.gpu} --gres={resources.gres:q}"
        " --attempt {resources.attempt} fewstep.bench train-step"
        " --spec {input.spec:q} --out {output:q} > {log:q} 2>&1"
