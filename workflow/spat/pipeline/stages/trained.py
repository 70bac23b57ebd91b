"""The trained networks of a run, from its manifests, and their files. Does not import torch.

`manifest.json` lists all networks of a run. If single heads are pruned, too, `sites.json` lists the
networks of whole sites. They are trained first, since the main table needs no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spat.attention.mask import Mask
from spat.pipeline import runs
from spat.pipeline.cache import MANIFEST, SITES, DamagedError, Finished
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


def manifest_of_sites(config: Config) -> str:
    """The name of the manifest that is complete when all masks of whole sites are trained."""
    return SITES if config.pruning.has_heads else MANIFEST


def trained(config: Config, run: Run, manifest: str = MANIFEST) -> list[tuple[Job, Finished]]:
    """The networks that a manifest lists, each with its files.

    Raises:
        FileNotFoundError: naming the manifest, if it is missing.
        DamagedError: naming the manifest, if it is damaged or lists a network that does not fit the
            run.
    """
    folder = runs.folder(config, run, "prune")
    heads = Finished(runs.folder(config, run, "pretrain")).metrics["heads"]
    files = Finished(folder, folder / manifest)
    try:
        jobs = [Job.parse(entry, heads) for entry in files.record(manifest)["masks"]]
    except DamagedError:
        raise
    except ValueError as error:
        raise files.damaged(f"{folder / manifest}: {error}", manifest) from None
    return [(job, files_of(config, run, job)) for job in jobs]


def forget_incomplete(config: Config, run: Run) -> str | None:
    """Remove the manifests and a frame if a file of a network is incomplete; return a message.

    Snakemake does not know these files. Without a manifest it runs `prune` again, which trains only
    the incomplete networks. Hashes are checked when a file is read, not here, since thousands of
    runs may be planned.
    """
    folder = runs.folder(config, run, "prune")
    # The larger manifest first: it lists the networks of the other one, too.
    for name in dict.fromkeys((MANIFEST, manifest_of_sites(config))):
        try:
            networks = trained(config, run, name)
            entries = Finished(folder, folder / name).record(name)["masks"]
            for (_, files), entry in zip(networks, entries, strict=True):
                if path := _incomplete(files.folder, entry["sizes"]):
                    for manifest in (MANIFEST, SITES):
                        (folder / manifest).unlink(missing_ok=True)
                    # A missing file is created again only if a job has to run.
                    (config.folder / "data" / "measurements.parquet").unlink(missing_ok=True)
                    return f"{path}: missing or cut short; its network is trained again"
            return None
        except FileNotFoundError:  # not finished: Snakemake runs the job anyway
            continue
        except DamagedError as error:
            return str(error)
    return None


def _incomplete(folder: Path, sizes: Mapping[str, int]) -> Path | None:
    """The first file of a network that is missing or has another size, or None."""
    for name, size in sizes.items():
        path = folder / Path(name).name
        if not path.is_file() or path.stat().st_size != size:
            return path
    return None


def files_of(config: Config, run: Run, job: Job) -> Finished:
    """The files of a trained network."""
    folder = runs.folder(config, run, "prune")
    return Finished(folder / job.folder, folder / MANIFEST, folder / SITES)


def finetuned(config: Config, run: Run, mask: str) -> Finished:
    """The files of a fine-tuned mask (first data order)."""
    return files_of(config, run, Job(mask, 0, "finetuned"))
