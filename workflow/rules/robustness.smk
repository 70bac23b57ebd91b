rule robustness:
    input:
        data=prepared,
        dense=rules.pretrain.output,
        # The fine-tuned masks give the cost of leaving out a site.
        masks=rules.prune.output if CONFIG.robustness.finetune else [],
        code=code("robustness"),
    output:
        multiext(f"{FOLDER}/{{run}}/robustness/", "robustness.parquet", "metrics.json"),
    log:
        f"{FOLDER}/logs/robustness/{{run}}.log",
    priority: urgency("robustness")
    group:
        group_of_run
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        gpu=gpu,
        mem_mb=memory,
        runtime=1440,
    params:
        config=resolved,
        digest=digest("robustness"),
    message:
        "robustness: {wildcards.run}"
    shell:
        "python -m spat robustness --config {params.config:q} --run {wildcards.run:q} > {log:q} 2>&1"
