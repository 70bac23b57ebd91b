# The main table, as soon as all networks are trained. It needs neither latencies nor other datasets:
# `measure`, `transfer` and `robustness` have a lower priority.
rule main:
    input:
        files=trained_files,
        code=digests.sources("main"),
    output:
        f"{FOLDER}/main.md",
    log:
        f"{FOLDER}/logs/main.log",
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
