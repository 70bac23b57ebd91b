rule pretrain:
    input:
        data=prepared,
        code=code("pretrain"),
    output:
        multiext(
            f"{FOLDER}/{{run}}/pretrain/",
            "model.safetensors",
            "architecture.json",
            "history.csv",
            "scores.parquet",
            "losses.npy",
            "forecasts.npz",
            "metrics.json",
        ),
    log:
        f"{FOLDER}/logs/pretrain/{{run}}.log",
    group:
        group_of_run
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        gpu=gpu,
        mem_mb=memory,
        runtime=480,
    params:
        config=resolved,
        digest=digest("pretrain"),
    message:
        "pretrain: {wildcards.run}"
    shell:
        "python -m spat pretrain --config {params.config:q} --run {wildcards.run:q} > {log:q} 2>&1"
