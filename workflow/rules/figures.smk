# Runs after the tables, so that `snakemake figures` makes both.
rule figures:
    input:
        frames=rules.collect.output,
        tables=f"{FOLDER}/tables/{TABLES[0]}.csv",
        code=digests.sources("figures"),
    output:
        expand(
            f"{FOLDER}/figures/{{name}}.{{format}}",
            name=FIGURES,
            format=["pdf", "svg"],
        ),
        *(
            report(
                f"{FOLDER}/figures/{name}.png",
                caption=f"../report/figures/{name}.rst",
                category="Figures",
                labels={"figure": name},
            )
            for name in FIGURES
        ),
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
        digest=digests.settings_digest(CONFIG, "figures"),
    message:
        "figures: all"
    shell:
        "python -m spat figures --config {params.config:q} > {log:q} 2>&1"
