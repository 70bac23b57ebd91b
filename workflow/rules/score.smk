rule score:
    input:
        data=prepared,
        dense=rules.pretrain.output,
        code=code("score"),
    output:
        multiext(
            f"{FOLDER}/{{run}}/score/", "scores.parquet", "maps.npz", "metrics.json"
        ),
    log:
        f"{FOLDER}/logs/score/{{run}}.log",
    priority: urgency("score")
    group:
        group_of_run
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        gpu=gpu,
        mem_mb=memory,
        runtime=60,
    params:
        config=resolved,
        digest=digest("score"),
    message:
        "score: {wildcards.run}"
    shell:
        "python -m spat score --config {params.config:q} --run {wildcards.run:q} > {log:q} 2>&1"
