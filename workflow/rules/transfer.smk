rule transfer:
    input:
        data=f"{FOLDER}/prepared/{{target}}.npz",
        networks=networks,
        code=code("transfer"),
    output:
        f"{FOLDER}/{{run}}/transfer/{{target}}/metrics.json",
    log:
        f"{FOLDER}/logs/transfer/{{run}}/{{target}}.log",
    wildcard_constraints:
        run=ALONE,
    priority: urgency("transfer")
    group:
        group_of_run
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        gpu=gpu,
        mem_mb=memory,
        runtime=60,
    params:
        config=resolved,
        digest=digest("transfer"),
    message:
        "transfer: {wildcards.run} -> {wildcards.target}"
    shell:
        "python -m spat transfer --config {params.config:q} --run {wildcards.run:q}"
        " --target {wildcards.target:q} > {log:q} 2>&1"


for number, pack in enumerate(PACKS, 1):
    if not pack_targets(pack):
        continue

    rule:
        name:
            f"transfer_short{number}"
        input:
            data=sorted(
                {f"{FOLDER}/prepared/{target}.npz" for _, target in pack_targets(pack)}
            ),
            networks=[f"{FOLDER}/{path}/pretrain/metrics.json" for path in pack],
            code=pack_code("transfer", pack),
        output:
            [
                f"{FOLDER}/{path}/transfer/{target}/metrics.json"
                for path, target in pack_targets(pack)
            ],
        log:
            f"{FOLDER}/logs/transfer/short{number}.log",
        priority: pack_urgency("transfer", pack)
        group:
            "light"
        conda:
            "../../envs/environment.yaml"
        threads: 1
        resources:
            gpu=pack_gpu(pack),
            mem_mb=pack_memory(pack, lambda run: runs.targets(CONFIG, run)),
            runtime=60,
        params:
            config=resolved,
            digest=pack_digest("transfer", pack),
            runs=pack,
            logs=f"{FOLDER}/logs/transfer",
        message:
            f"transfer: {len(pack)} short runs"
        shell:
            "python -m spat transfer --config {params.config:q} --run {params.runs:q}"
            " --logs {params.logs:q} > {log:q} 2>&1"
