# The rule reserves all cores but computes on one, since another job would disturb the latencies.
rule measure:
    input:
        data=prepared,
        masks=rules.select.output,
        trained=rules.prune.output,
        code=code("measure"),
    output:
        multiext(f"{FOLDER}/{{run}}/measure/", "maps.npz", "metrics.json"),
    log:
        f"{FOLDER}/logs/measure/{{run}}.log",
    priority: urgency("measure")
    group:
        "measure"
    conda:
        "../../envs/environment.yaml"
    threads: CORES or 1
    resources:
        gpu=gpu,
        mem_mb=memory,
        runtime=60,
    params:
        config=resolved,
        digest=digest("measure"),
    message:
        "measure: {wildcards.run}"
    shell:
        "python -m spat measure --config {params.config:q} --run {wildcards.run:q} > {log:q} 2>&1"
