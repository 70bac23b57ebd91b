rule tables:
    input:
        frames=rules.collect.output,
        code=digests.sources("tables"),
    output:
        # A table without data is not written.
        report(
            directory(f"{FOLDER}/tables"),
            patterns=["html/{name}.html"],
            caption="../report/tables.rst",
            category=lambda wildcards: registry.group(wildcards.name),
            labels=lambda wildcards: {
                "title": WORDS.text(registry.tables()[wildcards.name].title),
                "kind": "table",
            },
        ),
    log:
        f"{FOLDER}/logs/tables.log",
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=BASE_MB,
        runtime=30,
    params:
        config=resolved,
        task=CONFIG.task,  # selects the words of the captions
        digest=digests.settings_digest(CONFIG, "tables"),
    message:
        "tables: all"
    shell:
        "python -m spat tables --config {params.config:q} > {log:q} 2>&1"
