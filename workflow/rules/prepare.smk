rule prepare:
    input:
        files=raw_files,
        code=digests.sources("prepare"),
    output:
        f"{FOLDER}/prepared/{{dataset}}.npz",
    log:
        f"{FOLDER}/logs/prepare/{{dataset}}.log",
    priority: expected.DATA
    group:
        "prepare"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards: memory_of(wildcards.dataset),
        runtime=30,
    params:
        config=resolved,
        digest=lambda wildcards: digests.settings_digest(
            CONFIG, "prepare", dataset=wildcards.dataset
        ),
    message:
        "prepare: {wildcards.dataset}"
    shell:
        "python -m spat prepare --config {params.config:q} --dataset {wildcards.dataset:q}"
        " > {log:q} 2>&1"
