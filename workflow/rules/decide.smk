rule decide:
    input:
        masks=rules.select.output,
        trained=TRAINED_SITES,
        code=code("decide"),
    output:
        multiext(f"{FOLDER}/{{run}}/decide/", "selections.csv", "metrics.json"),
    log:
        f"{FOLDER}/logs/decide/{{run}}.log",
    priority: urgency("decide")
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
        digest=digest("decide"),
    message:
        "decide: {wildcards.run}"
    shell:
        "python -m spat decide --config {params.config:q} --run {wildcards.run:q} > {log:q} 2>&1"
