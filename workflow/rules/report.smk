rule table:
    input:
        spec="<results>/specs/table/{table}.json",
        metrics=lambda wildcards: plan.table_metrics(wildcards.table),
    output:
        csv=report(
            "<results>/{table}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}", "form": "csv"},
        ),
        markdown="<results>/{table}.md",
    log:
        "<logs>/table/{table}.log",
    wildcard_constraints:
        table=plan.pattern("tables"),
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m fewstep.table --spec {input.spec} --metrics {input.metrics}"
        " --out {output.csv} --markdown {output.markdown} > {log} 2>&1"


rule figure:
    input:
        spec="<results>/specs/table/{figure}.json",
        metrics=lambda wildcards: plan.table_metrics(wildcards.figure),
        curves=lambda wildcards: plan.table_curves(wildcards.figure),
        images=lambda wildcards: plan.table_images(wildcards.figure),
        reference=lambda wildcards: plan.table_reference(wildcards.figure),
    output:
        png=report(
            "<results>/{figure}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}", "form": "png"},
        ),
        csv="<results>/{figure}.csv",
    log:
        "<logs>/figure/{figure}.log",
    wildcard_constraints:
        figure=plan.pattern("figures"),
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m fewstep.figure --spec {input.spec} --metrics {input.metrics}"
        " --curves {input.curves} --images {input.images} --reference {input.reference}"
        " --out {output.png} --csv {output.csv} > {log} 2>&1"


rule claims:
    input:
        spec="<results>/specs/claims/claims.json",
        metrics=[plan.metrics(key) for key in plan.claim_cells()],
    output:
        csv=report(
            "<results>/claims.csv", caption="../report/claims.rst", category="Claims"
        ),
        markdown="<results>/claims.md",
    log:
        "<logs>/claims.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m fewstep.claims --spec {input.spec} --metrics {input.metrics}"
        " --out {output.csv} --markdown {output.markdown} > {log} 2>&1"


rule report_page:
    input:
        spec="<results>/specs/report/report.json",
        parts=plan.report_parts(),
    output:
        report("<results>/report.html", caption="../report/page.rst", category="Report"),
    log:
        "<logs>/report.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m fewstep.report --spec {input.spec} --parts {input.parts} --out {output} > {log} 2>&1"


# Needs nothing but the configuration; `-f` prints it again.
rule plan:
    output:
        "<results>/plan.csv",
    log:
        "<logs>/plan.log",
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    params:
        csv=lambda wildcards: plan.cost_csv(),
        table=lambda wildcards: plan.cost_table(),
    shell:
        "printf '%s\\n' {params.csv:q} > {output}; printf '%s\\n' {params.table:q} | tee {log}"
