rule tables:
    input:
        frames=rules.collect.output,
        code=digests.sources("tables"),
    output:
        expand(
            f"{FOLDER}/tables/{{name}}.{{format}}", name=TABLES, format=["md", "tex"]
        ),
        *(
            report(
                f"{FOLDER}/tables/{name}.csv",
                caption=f"../report/tables/{name}.rst",
                category="Tables",
                labels={"table": name},
            )
            for name in TABLES
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
        digest=digests.settings_digest(CONFIG, "tables"),
    message:
        "tables: all"
    shell:
        "python -m spat tables --config {params.config:q} > {log:q} 2>&1"
