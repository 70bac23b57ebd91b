# The masks of single heads follow those of whole sites, since the main table needs only the latter.
if SITES_FIRST:

    rule prune_sites:
        input:
            data=prepared,
            dense=rules.pretrain.output,
            masks=rules.select.output,
            code=code("prune"),
        output:
            TRAINED_SITES,
        log:
            f"{FOLDER}/logs/prune_sites/{{run}}.log",
        priority: urgency("prune_sites")
        group:
            group_of_run
        conda:
            "../../envs/environment.yaml"
        threads: masks_at_once("prune_sites")
        resources:
            gpu=gpu,
            mem_mb=lambda wildcards, threads: threads * memory(wildcards),
            runtime=1440,
        params:
            config=resolved,
            digest=digest("prune"),
            orders=lambda wildcards: planned_run(wildcards).orders,
        message:
            "prune sites: {wildcards.run}"
        shell:
            "python -m spat prune --config {params.config:q} --run {wildcards.run:q}"
            " --workers {threads} --only-sites > {log:q} 2>&1"


rule prune:
    input:
        data=prepared,
        dense=rules.pretrain.output,
        masks=rules.select.output,
        sites=TRAINED_SITES if SITES_FIRST else [],
        code=code("prune"),
    output:
        f"{FOLDER}/{{run}}/prune/manifest.json",
    log:
        f"{FOLDER}/logs/prune/{{run}}.log",
    priority: urgency("prune")
    group:
        group_of_run
    conda:
        "../../envs/environment.yaml"
    threads: masks_at_once("prune")
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
