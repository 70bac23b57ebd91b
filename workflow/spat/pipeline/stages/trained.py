"""The trained networks of a run, from its manifest, and their files. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spat.attention.mask import Mask
from spat.pipeline import runs
from spat.pipeline.cache import MANIFEST, DamagedError, Finished
from spat.pipeline.config import Config
from spat.pipeline.runs import Run

PHASES = ("finetuned", "scratch")


@dataclass(frozen=True)
class Job:
    """One network to train: a mask, a data order, and whether it starts from the dense weights."""

    mask: str
    order: int
    phase: str  # a value of PHASES

    @classmethod
    def parse(cls, entry: Mapping[str, Any], heads: Sequence[int]) -> Job:
        """The job of an entry of `manifest.json`, for a dense model with `heads` heads per site.

        Raises:
            ValueError: naming the entry, if it does not describe a network of the dense model.
        """
        try:
            order, phase = entry["order"], entry["phase"]
            mask = Mask.parse(entry["mask"], heads).name
            if type(order) is int and order >= 0 and phase in PHASES:
                return cls(mask, order, phase)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{entry}: {error}") from None
        raise ValueError(f"{entry}: expected an `order` of at least 0 and a `phase` of {PHASES}")

    @property
    def folder(self) -> str:
        """The folder below `prune/`."""
        kind = "order" if self.phase == "finetuned" else "scratch"
        return f"masks/{self.mask}/{kind}{self.order}"


def trained(config: Config, run: Run) -> list[tuple[Job, Finished]]:
    """The networks that the manifest lists, each with its files.

    Raises:
        FileNotFoundError: naming the manifest, if it is missing.
        DamagedError: naming the manifest, if it is damaged or lists a network that does not fit the
            run.
    """
    folder = runs.folder(config, run, "prune")
    heads = Finished(runs.folder(config, run, "pretrain")).metrics["heads"]
    files = Finished(folder, folder / MANIFEST)
    try:
        jobs = [Job.parse(entry, heads) for entry in files.record(MANIFEST)["masks"]]
    except DamagedError:
        raise
    except ValueError as error:
        raise files.damaged(f"{folder / MANIFEST}: {error}", MANIFEST) from None
    return [(job, files_of(config, run, job)) for job in jobs]


def forget_incomplete(config: Config, run: Run) -> str | None:
    """Remove the manifest and a frame if a file of a network is incomplete; return a message.

    Snakemake does not know these files. Without the manifest it runs `prune` again, which trains
    only the incomplete networks. Hashes are checked when a file is read, not here, since thousands
    of runs may be planned.
    """
    manifest = runs.folder(config, run, "prune") / MANIFEST
    try:
        networks = trained(config, run)
        entries = Finished(manifest.parent, manifest).record(MANIFEST)["masks"]
        for (_, files), entry in zip(networks, entries, strict=True):
            for name, size in entry["sizes"].items():
                path = files.folder / Path(name).name
                if not path.is_file() or path.stat().st_size != size:
                    manifest.unlink()
                    # A missing file is created again only if a job has to run.
                    (config.folder / "data" / "measurements.parquet").unlink(missing_ok=True)
                    return f"{path}: missing or cut short; its network is trained again"
    except FileNotFoundError:  # not finished: Snakemake runs the job anyway
        return None
    except DamagedError as error:
        return str(error)
    return None


def files_of(config: Config, run: Run, job: Job) -> Finished:
    """The files of a trained network."""
    folder = runs.folder(config, run, "prune")
    return Finished(folder / job.folder, folder / MANIFEST)


def finetuned(config: Config, run: Run, mask: str) -> Finished:
    """The files of a fine-tuned mask (first data order)."""
    return files_of(config, run, Job(mask, 0, "finetuned"))
