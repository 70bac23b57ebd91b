"""The dependencies of a stage: the modules that compute it, and the settings that it reads.

The modules are inputs of the stage's rule, and a digest of the settings is one of its parameters,
so that a change reruns only stages that depend on it. `spat.pipeline.cache` uses both as keys.
Comments and docstrings do not count as code.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Final

from spat.files import write_text
from spat.models.registry import MODELS
from spat.pipeline import datasets, records, runs, tasks
from spat.pipeline.config import Config, dump
from spat.pipeline.runs import Run
from spat.scoring.names import CRITERIA

_PACKAGE: Final = Path(__file__).parents[1]

# Modules that compute no results and are not part of the code digest, nor are their imports. Their
# content enters the digests as resolved `settings`, or only determines how files are named, written
# and kept.
EXCLUDED: Final = frozenset(
    {
        "spat",
        "spat.pipeline.config",
        "spat.pipeline.yaml_reader",
        "spat.pipeline.checks",
        "spat.pipeline.failures",
        "spat.training.options",
        "spat.pipeline.runs",
        "spat.pipeline.tasks",
        "spat.pipeline.records",
        "spat.pipeline.cache",
        "spat.training.device.concurrency",
        "spat.pipeline.resources",
        "spat.pipeline.expected",
        "spat.training.device.streams",
        "spat.training.device.bf16",  # part of the settings of runs that train with it
        "spat.pipeline.digests",
        "spat.files",
        "spat.data.registry",
        "spat.pipeline.datasets",
        "spat.models.registry",
        "spat.models.settings",
        "spat.scoring.names",
        "spat.tasks.registry",
        "spat.tasks.setting",
    }
)

# The entry module of a stage without its own module: `stages/report.py` only loops over pages.
_ENTRIES: Final = dict.fromkeys(("tables", "figures"), "spat.study.pages.registry")

# The stages that run a network and depend on the implementation of its model.
_WITH_NETWORKS: Final = frozenset(
    {"pretrain", "score", "prune", "robustness", "measure", "transfer"}
)


def sources(stage: str, model: str | None = None) -> list[str]:
    """The files that compute a stage, relative to the working directory, sorted.

    They are the stage's module with its direct and indirect imports (at the top of a module or
    inside a function), and the modules that are imported by name: the implementation of `model`
    and, if the stage computes criteria, their implementations.
    """
    return list(_paths(stage, model, Path.cwd()))


def code_digest(stage: str, model: str | None = None) -> str:
    """SHA-256 (hex) of the code that computes a stage, without comments, docstrings and layout."""
    return records.digest({module: _code(module) for module in _modules(stage, model)})


def settings(
    config: Config, stage: str, run: Run | None = None, dataset: str | None = None
) -> dict[str, Any]:
    """The resolved settings that a stage reads, for a run or (`download`, `prepare`) a dataset.

    `finetune` is the part of `prune` that a single mask depends on. The number of data orders is in
    the plan (`spat.pipeline.runs.Planned`) and makes no mask stale.

    Raises:
        ValueError: if the stage has no settings; the message names the stages that have.
    """
    if stage == "collect":
        return {
            "runs": [[asdict(p), runs.targets(config, p.run)] for p in runs.plan(config)],
            "robustness": [asdict(run) for run in runs.studied(config)],
        }
    if stage in ("main", "tables", "figures"):
        return config.statistics.model_dump(mode="json")
    if stage in ("download", "prepare") and dataset is not None:
        return _data(config, stage, dataset)
    if stage in _OF_A_RUN and run is not None:
        return _OF_A_RUN[stage](config, run)
    valid = ", ".join(["download", "prepare", *_OF_A_RUN, "main", "collect", "tables", "figures"])
    raise ValueError(f"stage {stage!r} (run {run}, dataset {dataset}): expected one of {valid}")


def settings_digest(
    config: Config, stage: str, run: Run | None = None, dataset: str | None = None
) -> str:
    """SHA-256 (hex) of `settings`."""
    return records.digest(settings(config, stage, run, dataset))


def write_resolved(config: Config) -> Path:
    """Write the resolved configuration to a file named by its content, unless the file exists.

    Invocations with different settings use different files, so a job can be repeated by hand with
    the same settings.
    """
    text = dump(config)
    path = config.folder / "configs" / f"{records.digest(text)[:12]}.yaml"
    if not path.exists():
        write_text(path, text)
    return path


def _data(config: Config, stage: str, name: str) -> dict[str, Any]:
    if stage == "download":
        row, *others = datasets.published(name) or (datasets.find(config, name),)
        files = {"file": row.file, "sha256": row.sha256}
        return {**files, "others": [file.sha256 for file in others]} if others else files
    return tasks.RUNS[datasets.row_of(config, name).task].data(config, name)


def _pretrain(config: Config, run: Run) -> dict[str, Any]:
    sections = {
        "run": run.keys,
        "data": _data(config, "prepare", run.dataset),
        **_training(config, run),
    }
    if MODELS[run.model].role == "attention":
        sections["scoring"] = config.scoring.model_dump(mode="json")
    return sections


def _score(config: Config, run: Run) -> dict[str, Any]:
    pruning = config.pruning
    wanted = {"send", *pruning.site.criteria, *pruning.head.criteria}
    return {
        **_machine(config),
        "scoring": config.scoring.model_dump(mode="json"),
        "criteria": {name: _criterion(name) for name in sorted(wanted)},
        "loss_drops": "loss_drop_bound" in pruning.site.rules,
    }


def _select(config: Config, run: Run) -> dict[str, Any]:
    section = config.pruning.model_dump(mode="json", exclude={"scratch"})
    if "loss_drop_bound" in config.pruning.site.rules:
        section["bootstrap"] = config.statistics.bootstrap
        section["confidence"] = config.statistics.confidence
    return section


def _finetune(config: Config, run: Run) -> dict[str, Any]:
    training = _training(config, run)
    # A mask is trained for its own number of epochs, without early stopping.
    for name in ("epochs", "patience"):
        del training["recipe"][name]
    return {**training, "finetune": config.finetune.model_dump(mode="json")}


def _prune(config: Config, run: Run) -> dict[str, Any]:
    return {**_finetune(config, run), "scratch": config.pruning.scratch}


def _robustness(config: Config, run: Run) -> dict[str, Any]:
    section = config.robustness
    criteria = {"send", *config.pruning.site.criteria}
    return {
        "scores": {
            **_machine(config),
            "scoring": config.scoring.model_dump(mode="json"),
            "criteria": {name: _criterion(name) for name in sorted(criteria)},
        },
        "manipulations": section.manipulations,
        "finetune": _finetune(config, run) if section.finetune else None,
    }


def _decide(config: Config, run: Run) -> dict[str, Any]:
    rules = [rule for rule in ("one_se", "validation") if rule in config.pruning.site.rules]
    return {
        "rules": rules,
        "bootstrap": config.statistics.bootstrap if "one_se" in rules else None,
    }


def _measure(config: Config, run: Run) -> dict[str, Any]:
    return {
        **_machine(config),
        "measure": config.measure.model_dump(mode="json"),
        "scoring": config.scoring.model_dump(mode="json"),  # the cases of the attention maps
    }


def _transfer(config: Config, run: Run) -> dict[str, Any]:
    return _machine(config)


_OF_A_RUN: Final = {
    "pretrain": _pretrain,
    "score": _score,
    "select": _select,
    "finetune": _finetune,
    "prune": _prune,
    "robustness": _robustness,
    "decide": _decide,
    "measure": _measure,
    "transfer": _transfer,
}


def _machine(config: Config) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "device": config.training.device,
        "precision": config.training.precision,
    }
    if config.training.precision == "bf16":
        sections["code"] = records.digest(_code("spat.training.device.bf16"))
    return sections


def _training(config: Config, run: Run) -> dict[str, Any]:
    setup = runs.setup_of(config, run)
    return {
        **_machine(config),
        "settings": asdict(setup.settings),
        "recipe": asdict(setup.recipe),
        "learning_rates": runs.learning_rates(config, run),
    }


def _criterion(name: str) -> list[Any]:
    row = CRITERIA[name]
    return [row.origin, row.needs, row.heads, row.finish]


@cache
def _paths(stage: str, model: str | None, folder: Path) -> tuple[str, ...]:
    return tuple(os.path.relpath(_file(module), folder) for module in _modules(stage, model))


@cache
def _modules(stage: str, model: str | None) -> tuple[str, ...]:
    """The modules that compute a stage, sorted, without packages that have only a docstring."""
    modules: set[str] = set()
    waiting = [_ENTRIES.get(stage, f"spat.pipeline.stages.{stage}"), *_by_name(stage, model)]
    while waiting:
        module = waiting.pop()
        if module not in modules and module not in EXCLUDED:
            modules.add(module)
            waiting.extend(_read(module)[1])
    return tuple(sorted(module for module in modules if _read(module)[0]))


def _by_name(stage: str, model: str | None) -> Iterator[str]:
    """The implementations that registries name and that are imported by name."""
    if model is not None and stage in _WITH_NETWORKS:
        yield MODELS[model].module
        yield f"spat.tasks.{MODELS[model].task}"
        yield f"spat.pipeline.stages.{MODELS[model].task}"


@cache
def _read(module: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a module has code besides a docstring, and the modules of this package it imports.

    Imports for type checking are left out.
    """
    tree, names = _tree(module), set[str]()
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    packages = {name.rpartition(".")[0] for name in names}
    imported = tuple(name for name in names | packages if _exists(name))
    return len(tree.body) > _documented(tree), imported


def _executed(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements, also those inside of others, except what is for types only."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not typing_only:
            yield node
            for part in ("body", "orelse", "finalbody", "handlers", "cases"):
                waiting.extend(getattr(node, part, ()))


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the first statement of a body is a constant: a docstring."""
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)


@cache
def _code(module: str) -> str:
    tree = _tree(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[_documented(node) :]
    return ast.dump(tree)


def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _exists(module: str) -> bool:
    return module.split(".")[0] == "spat" and _file(module).exists()


def _file(module: str) -> Path:
    path = _PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
