rule select:
    input:
        scores=rules.score.output,
        code=code("select"),
    output:
        multiext(f"{FOLDER}/{{run}}/select/", "selections.csv", "metrics.json"),
    log:
        f"{FOLDER}/logs/select/{{run}}.log",
    priority: urgency("select")
    group:
        group_of_run
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=BASE_MB,
        runtime=15,
    params:
        config=resolved,
        digest=digest("select"),
    message:
        "select: {wildcards.run}"
    shell:
        "python -m spat select --config {params.config:q} --run {wildcards.run:q} > {log:q} 2>&1"
