rule prune:
    input:
        data=prepared,
        dense=rules.pretrain.output,
        masks=rules.select.output,
        code=code("prune"),
    output:
        f"{FOLDER}/{{run}}/prune/manifest.json",
    log:
        f"{FOLDER}/logs/prune/{{run}}.log",
    group:
        group_of_run
    conda:
        "../../envs/environment.yaml"
    threads: prune_threads(CORES, len(PRUNED))
    resources:
        gpu=gpu,
        mem_mb=lambda wildcards, threads: threads * memory(wildcards),
        runtime=1440,
    params:
        config=resolved,
        digest=digest("prune"),
        orders=lambda wildcards: planned_run(wildcards).orders,
    message:
        "prune: {wildcards.run}"
    shell:
        "python -m spat prune --config {params.config:q} --run {wildcards.run:q} --workers {threads}"
        " > {log:q} 2>&1"
