rule transfer:
    input:
        data=f"{FOLDER}/prepared/{{target}}.npz",
        networks=networks,
        code=code("transfer"),
    output:
        f"{FOLDER}/{{run}}/transfer/{{target}}/metrics.json",
    log:
        f"{FOLDER}/logs/transfer/{{run}}/{{target}}.log",
    priority: -1
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
        digest=digest("transfer"),
    message:
        "transfer: {wildcards.run} -> {wildcards.target}"
    shell:
        "python -m spat transfer --config {params.config:q} --run {wildcards.run:q}"
        " --target {wildcards.target:q} > {log:q} 2>&1"
