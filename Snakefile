# The benchmark: from data to paper-style tables and figures. One rules file per stage. Each rule calls
# `python -m spat STAGE`, so that every job can be run again by hand with the command in its log.

from snakemake.utils import min_version

min_version("9.19")


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/download.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/prune.smk"
include: "workflow/rules/robustness.smk"
include: "workflow/rules/decide.smk"
include: "workflow/rules/main.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/transfer.smk"
include: "workflow/rules/collect.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"


# These rules take seconds. On a cluster they run on the head node.
localrules:
    all,
    download,
    main,
    collect,
    tables,
    figures,


rule all:
    default_target: True
    input:
        rules.main.output,
        rules.collect.output,
        rules.tables.output,
        rules.figures.output,
    message:
        "all: frames, tables and figures are complete"


onstart:
    expect_jobs()


onsuccess:
    if all(Path(FOLDER, file).exists() for file in SUMMARISED):
        shell("python -m spat summary --config {RESOLVED:q}")


onerror:
    explain_failures()
