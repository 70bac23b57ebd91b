rule download:
    output:
        f"{CACHE}/{{file}}",
    log:
        f"{FOLDER}/logs/download/{{file}}.log",
    priority: expected.DATA
    retries: 2
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=60,
    params:
        config=resolved,
        dataset=lambda wildcards: DATASET_OF_FILE[wildcards.file],
        digest=lambda wildcards: digests.settings_digest(
            CONFIG, "download", dataset=DATASET_OF_FILE[wildcards.file]
        ),
    message:
        "download: {wildcards.file}"
    shell:
        "python -m spat download --config {params.config:q} --dataset {params.dataset:q}"
        " --file {wildcards.file:q} > {log:q} 2>&1"
