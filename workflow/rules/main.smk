# The main table, as soon as the dense networks and the masks of whole sites are trained. Single heads,
# latencies, other datasets and manipulated sites follow it: their jobs have lower priorities.
rule main:
    input:
        files=trained_files,
        code=digests.sources("main"),
    output:
        f"{FOLDER}/main.md",
    log:
        f"{FOLDER}/logs/main.log",
    priority: expected.MAIN
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=2 * BASE_MB,
        runtime=60,
    params:
        config=resolved,
        digest=digests.settings_digest(CONFIG, "main"),
    message:
        "main: the main table, {output}"
    shell:
        "python -m spat main --config {params.config:q} > {log:q} 2>&1"
