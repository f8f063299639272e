rule table:
    input:
        unpack(inputs("table")),
    output:
        csv=report(
            FILES["csv"],
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}", "form": "csv"},
        ),
        markdown=FILES["markdown"],
    log:
        "<logs>/table/{table}.log",
    wildcard_constraints:
        table=plan.tables_pattern(figures=False),
    retries: 0
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m fewstep.table --spec {input.spec:q} --metrics {input.metrics:q} --bounds {input.bounds:q}"
        " --out {output.csv:q} --markdown {output.markdown:q} > {log:q} 2>&1"


rule figure:
    input:
        unpack(inputs("figure")),
    output:
        png=report(
            FILES["png"],
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{table}", "form": "png"},
        ),
        csv=FILES["csv"],
    log:
        "<logs>/figure/{table}.log",
    wildcard_constraints:
        table=plan.tables_pattern(figures=True),
    retries: 0
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m fewstep.figure --spec {input.spec:q} --metrics {input.metrics:q}"
        " --curves {input.curves:q} --images {input.images:q} --reference {input.reference:q}"
        " --out {output.png:q} --csv {output.csv:q} > {log:q} 2>&1"


rule claims:
    input:
        unpack(inputs("claims")),
    output:
        csv=report(FILES["claims"], caption="../report/claims.rst", category="Claims"),
        markdown=FILES["claims_markdown"],
    log:
        "<logs>/{claims}.log",
    retries: 0
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m fewstep.claims --spec {input.spec:q} --metrics {input.metrics:q}"
        " --out {output.csv:q} --markdown {output.markdown:q} > {log:q} 2>&1"


rule report_page:
    input:
        unpack(inputs("report")),
    output:
        report(FILES["page"], caption="../report/page.rst", category="Report"),
    log:
        "<logs>/report.log",
    retries: 0
    localrule: True
    conda:
        "../../envs/workflow.yaml"
    shell:
        "python -m fewstep.report --spec {input.spec:q} --parts {input.parts:q}"
        " --curves {input.curves:q} --out {output:q} > {log:q} 2>&1"


# Needs nothing but the configuration; `-f` prints it again.
rule plan:
    input:
        unpack(inputs("costs")),
    output:
        "<results>/plan.csv",
    log:
        "<logs>/plan.log",
    retries: 0
    localrule: True
    conda:
        environment("costs")
    params:
        profiles=profiles,
    shell:
        "python -m fewstep.costs --spec {input.spec:q} --profile {params.profiles:q} --out {output:q} 2>&1 | tee {log:q}"
