PRETRAINED = (
    "model.safetensors",
    "architecture.json",
    "history.csv",
    "scores.parquet",
    "losses.npy",
    "forecasts.npz",
    "metrics.json",
)


rule pretrain:
    input:
        data=prepared,
        code=code("pretrain"),
    output:
        multiext(f"{FOLDER}/{{run}}/pretrain/", *PRETRAINED),
    log:
        f"{FOLDER}/logs/pretrain/{{run}}.log",
    wildcard_constraints:
        run=ALONE,
    priority: urgency("pretrain")
    group:
        group_of_run
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        gpu=gpu,
        mem_mb=memory,
        runtime=480,
    params:
        config=resolved,
        digest=digest("pretrain"),
    message:
        "pretrain: {wildcards.run}"
    shell:
        "python -m spat pretrain --config {params.config:q} --run {wildcards.run:q} > {log:q} 2>&1"


# Runs that train for seconds share a process, since a process takes longer to start. Each run has its
# own log.
for number, pack in enumerate(PACKS, 1):

    rule:
        name:
            f"pretrain_short{number}"
        input:
            data=sorted(
                {f"{FOLDER}/prepared/{PLAN[path].run.dataset}.npz" for path in pack}
            ),
            code=pack_code("pretrain", pack),
        output:
            [f"{FOLDER}/{path}/pretrain/{file}" for path in pack for file in PRETRAINED],
        log:
            f"{FOLDER}/logs/pretrain/short{number}.log",
        priority: pack_urgency("pretrain", pack)
        group:
            "light"
        conda:
            "../../envs/environment.yaml"
        threads: 1
        resources:
            gpu=pack_gpu(pack),
            mem_mb=pack_memory(pack, lambda run: [run.dataset]),
            runtime=60,
        params:
            config=resolved,
            digest=pack_digest("pretrain", pack),
            runs=pack,
            logs=f"{FOLDER}/logs/pretrain",
        message:
            f"pretrain: {len(pack)} short runs"
        shell:
            "python -m spat pretrain --config {params.config:q} --run {params.runs:q}"
            " --logs {params.logs:q} > {log:q} 2>&1"
