rule collect:
    input:
        files=finished,
        code=digests.sources("collect"),
    output:
        multiext(
            f"{FOLDER}/data/",
            "measurements.parquet",
            "networks.parquet",
            "selections.parquet",
            "scores.parquet",
            "history.parquet",
            "losses.parquet",
            "robustness.parquet",
            "maps.parquet",
            "forecasts.parquet",
        ),
    log:
        f"{FOLDER}/logs/collect.log",
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2 * BASE_MB,
        runtime=60,
    params:
        config=resolved,
        digest=digests.settings_digest(CONFIG, "collect"),
    message:
        "collect: the frames of all runs"
    shell:
        "python -m spat collect --config {params.config:q} > {log:q} 2>&1"
