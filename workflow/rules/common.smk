# Helpers of the rules. The logic is in the package (workflow/spat), where it is tested.

import os
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Import the package of this folder, which the jobs use, and not an installed one.
PACKAGE = os.path.join(workflow.basedir, "workflow")
sys.path.insert(0, PACKAGE)

import spat

if not os.path.samefile(Path(spat.__file__).parents[1], PACKAGE):
    raise WorkflowError(
        f"Snakemake has loaded the package of {Path(spat.__file__).parents[1]}, but the jobs would "
        f"run that of {PACKAGE}: remove the first from PYTHONPATH, or run Snakemake in its folder"
    )

from snakemake_logger_plugin_spat.display import Expected
from snakemake_logger_plugin_spat.handler import LogHandler
from spat.pipeline import datasets, digests, expected, runs
from spat.pipeline.resources import BASE_MB, gpus, group, memory_mb, prune_threads
from spat.pipeline.checks import checked_plan, require_state_folder
from spat.pipeline.failures import explain, failed_jobs
from spat.pipeline.config import ConfigError, load_files
from spat.pipeline.stages import trained
from spat.study.pages import registry
from spat.study.pages.page import WORDING

# Jobs use the `python` that runs Snakemake, even if its environment is not activated. With `--sdm conda`
# the environment of the rule comes first, and it finds the package in this folder.
os.environ.update(
    SPAT_JOB="1",
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.getenv("PATH", "")]),
    PYTHONPATH=os.pathsep.join([PACKAGE, os.getenv("PYTHONPATH", "")]).rstrip(
        os.pathsep
    ),
)

try:
    require_state_folder()
    # Snakemake lists config.yaml last, although the other files are merged over it.
    # Its reader accepts a duplicate key, and reads 1e-3 as text, so the files are read again.
    *overlays, base = workflow.configfiles
    CONFIG = load_files(
        Path(base), *map(Path, overlays), given=workflow.config_settings.config
    )
    PLAN = {planned.run.path: planned for planned in checked_plan(CONFIG)}
    STUDIED = [run.path for run in runs.studied(CONFIG)]
    RESOLVED = digests.write_resolved(CONFIG).as_posix()
except (ConfigError, OSError) as error:
    raise WorkflowError(explain(error)) from None

WORDS = WORDING[CONFIG.task]
FOLDER = CONFIG.folder.as_posix()
CACHE = CONFIG.data.cache.as_posix()
# The cores of this machine, or of one job on a cluster. None in some dry runs, in which
# `workflow.cores` raises an error.
CORES = workflow.resource_settings.cores
# The head node of a cluster may have no GPU although other nodes have one.
ON_CLUSTER = workflow.resource_settings.nodes is not None
if ON_CLUSTER and not workflow.is_main_process:
    # The jobs of a group take turns on one GPU (profiles: `gpu: 1`). Snakemake does not pass this limit
    # to the job of the group, which would then request one GPU for each job that can run at a time.
    workflow.register_resource("gpu", 1)
STARTED = time.time()
# The files of the summary. With `--until`, Snakemake may end before they are made again.
SUMMARISED = ("data/measurements.parquet", "tables/main.md")
# Networks are not output files of a rule. Forget damaged or missing ones, so that they are trained again.
if workflow.is_main_process and not workflow.dryrun:
    for planned in PLAN.values():
        if planned.prune and (
            problem := trained.forget_incomplete(CONFIG, planned.run)
        ):
            print(problem, file=sys.stderr)
PRUNED = [path for path, planned in PLAN.items() if planned.prune]
# The file of `prune` that the main table needs. Masks of single heads are trained after it.
TRAINED_SITES = f"{FOLDER}/{{run}}/prune/{trained.manifest_of_sites(CONFIG)}"
SITES_FIRST = trained.manifest_of_sites(CONFIG) != trained.MANIFEST
# Short runs share jobs. Each pack of runs has its own rule in pretrain.smk and in transfer.smk.
PACKS = expected.packs(CONFIG, PLAN)
PACK_OF_RULE = {
    f"{stage}_short{number}": (stage, pack)
    for stage in ("pretrain", "transfer")
    for number, pack in enumerate(PACKS, 1)
}
PACKED = [path for pack in PACKS for path in pack]
DATASET_OF_FILE = {
    row.file: name
    for name in datasets.names(CONFIG)
    for row in datasets.published(name)
}
RUN = r"[^/]+/[^/]+/[^/]+/seed\d+"
# The path of a run that is in no pack.
ALONE = "".join(rf"(?!{re.escape(path)}/)" for path in PACKED) + RUN


wildcard_constraints:
    file="|".join(map(re.escape, DATASET_OF_FILE)),
    dataset="[^/]+",
    run=RUN,
    target="[^/]+",


def planned_run(wildcards):
    if wildcards.run not in PLAN:
        raise WorkflowError(
            f"run {wildcards.run!r} is not in the grid of experiment {CONFIG.experiment!r}"
        )
    return PLAN[wildcards.run]


def resolved(wildcards, input):
    # A parameter derived from `input` never triggers a rerun. The path of the configuration must not
    # trigger one, because `digest` covers the settings that the job reads.
    return RESOLVED


def code(stage):
    return lambda wildcards: digests.sources(stage, planned_run(wildcards).run.model)


def digest(stage):
    return lambda wildcards: digests.settings_digest(
        CONFIG, stage, planned_run(wildcards).run
    )


def raw_files(wildcards):
    return [path.as_posix() for path in datasets.raw_files(CONFIG, wildcards.dataset)]


def prepared(wildcards):
    return f"{FOLDER}/prepared/{planned_run(wildcards).run.dataset}.npz"


def memory(wildcards):
    run = planned_run(wildcards).run
    return memory_of(run.dataset, run.model)


def memory_of(dataset, model=None):
    return memory_mb(datasets.row_of(CONFIG, dataset).channels, model)


def masks_at_once(rule):
    # The number of threads of a rule that prunes.
    work = {
        path: expected.seconds(CONFIG, PLAN, rule, {"run": path}) for path in PRUNED
    }
    total = sum(work.values()) or 1
    return lambda wildcards: prune_threads(
        CORES, len(PRUNED), work.get(wildcards.run, 0) / total
    )


def urgency(rule):
    return lambda wildcards: expected.priority(CONFIG, PLAN, rule, dict(wildcards))


def pack_urgency(stage, pack):
    seconds = expected.pack_seconds(CONFIG, PLAN, stage, pack)
    return expected.rank(CONFIG, stage, seconds)


def gpu(wildcards):
    model = planned_run(wildcards).run.model
    return gpus(CONFIG.training.device, model, on_cluster=ON_CLUSTER)


def group_of_run(wildcards):
    # Jobs with the same group are submitted to a cluster as one job.
    return group(planned_run(wildcards).run.model)


def pack_code(stage, pack):
    return sorted(
        {file for path in pack for file in digests.sources(stage, PLAN[path].run.model)}
    )


def pack_digest(stage, pack):
    return [digests.settings_digest(CONFIG, stage, PLAN[path].run) for path in pack]


def pack_memory(pack, datasets_of):
    return max(
        memory_of(dataset, PLAN[path].run.model)
        for path in pack
        for dataset in datasets_of(PLAN[path].run)
    )


def pack_gpu(pack):
    device = CONFIG.training.device
    return max(
        gpus(device, PLAN[path].run.model, on_cluster=ON_CLUSTER) for path in pack
    )


def pack_targets(pack):
    return [
        (path, target)
        for path in pack
        for target in runs.targets(CONFIG, PLAN[path].run)
    ]


def networks(wildcards):
    # The networks that a transfer evaluates: the dense network and the pruned networks.
    stages = ["pretrain/metrics.json"]
    if planned_run(wildcards).prune:
        stages += [
            "select/selections.csv",
            "prune/manifest.json",
            "decide/selections.csv",
        ]
    return [f"{FOLDER}/{wildcards.run}/{stage}" for stage in stages]


def trained_files(wildcards):
    # One file of each job whose results are in the main table.
    for path, planned in PLAN.items():
        yield f"{FOLDER}/{path}/pretrain/metrics.json"
        if planned.prune:
            for stage in ("select", "decide"):
                yield f"{FOLDER}/{path}/{stage}/metrics.json"
            yield TRAINED_SITES.format(run=path)


def finished(wildcards):
    # One file of each job of the grid. A job that runs again writes all of its files again.
    yield from trained_files(wildcards)
    for path, planned in PLAN.items():
        if planned.prune:
            for stage in ("score", "measure"):
                yield f"{FOLDER}/{path}/{stage}/metrics.json"
            if SITES_FIRST:
                yield f"{FOLDER}/{path}/prune/{trained.MANIFEST}"
        if path in STUDIED:
            yield f"{FOLDER}/{path}/robustness/metrics.json"
        for target in runs.targets(CONFIG, planned.run):
            yield f"{FOLDER}/{path}/transfer/{target}/metrics.json"


def expect_jobs():
    # Tells the display (profiles: `logger: spat`) which jobs will run. An error here must not stop a run.
    (display,) = [
        handler
        for handler in workflow.logger_manager.get_log_handlers()
        if isinstance(handler, LogHandler)
    ] or [None]
    if display is None or workflow.touch:
        return
    try:
        jobs = [expected_job(job) for job in workflow.dag.needrun_jobs()]
        display.expect(jobs, CORES or 1, f"{CONFIG.experiment}", f"{FOLDER}/logs")
    except Exception as error:
        print(f"Progress cannot be displayed: {error!r}", file=sys.stderr)


def expected_job(job):
    logs = tuple(map(Path, job.log))
    if job.rule.name in PACK_OF_RULE:
        stage, pack = PACK_OF_RULE[job.rule.name]
        seconds = expected.pack_seconds(CONFIG, PLAN, stage, pack)
        logs += tuple(Path(FOLDER, "logs", stage, f"{path}.log") for path in pack)
        networks = len(pack)
    else:
        of = (CONFIG, PLAN, job.rule.name, job.wildcards_dict)
        seconds = expected.wall(*of, job.threads)
        networks = expected.networks_of_job(*of)
    name = job.message or job.rule.name
    return Expected(workflow.dag.jobid(job), name, logs, seconds, job.threads, networks)


def explain_failures():
    # On a cluster Snakemake lists all jobs of a group when one of them fails.
    if ON_CLUSTER:
        dag = workflow.dag
        jobs = [
            (
                job.wildcards_dict.get("run", job.name),
                job.message or job.name,
                Path(log),
            )
            for job in dag.needrun_jobs()
            if not dag.finished(job)
            for log in job.log
        ]
        print(failed_jobs(jobs, STARTED), file=sys.stderr)
