# Runs after the tables, so that `snakemake figures` makes both.
rule figures:
    input:
        frames=rules.collect.output,
        tables=rules.tables.output,
        code=digests.sources("figures"),
    output:
        report(
            directory(f"{FOLDER}/figures"),
            patterns=["{name}.png"],
            caption="../report/figures.rst",
            category=lambda wildcards: registry.group(wildcards.name),
            labels=lambda wildcards: {
                "title": WORDS.text(registry.figures()[wildcards.name].title),
                "kind": "figure",
            },
        ),
        # The tables and figures that were not made, with the reasons.
        f"{FOLDER}/not_made.md",
    log:
        f"{FOLDER}/logs/figures.log",
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=BASE_MB,
        runtime=30,
    params:
        config=resolved,
        task=CONFIG.task,  # selects the words of the captions
        digest=digests.settings_digest(CONFIG, "figures"),
    message:
        "figures: all"
    shell:
        "python -m spat figures --config {params.config:q} > {log:q} 2>&1"
