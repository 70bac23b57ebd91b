"""Get verified copies of the published files: from the cache, a mirror folder or the network.

Files are identified by their SHA-256. A file gets its name in the cache only after its hash was
verified, and a file in the cache with a wrong hash is replaced and never used.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from spat.data.raw import READ_ERRORS, fingerprint, is_gzip, is_html, unpacked
from spat.data.registry import Dataset, File
from spat.files import replacing

# Timeouts in seconds: to connect, and between two pieces of data.
TIMEOUT: Final = (10, 60)
RETRIES: Final = 2
OFFLINE: Final = "snakemake --cores all --configfile workflow/experiments/offline.yaml"

_Getter = Callable[[str, Path], None]
_log = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """No source has the file; the message lists the attempts and the remedy."""


def fetch(dataset: Dataset | File, cache: Path, mirrors: Sequence[Path] = ()) -> Path:
    """Return the verified file `cache/<file>`; copy it from a mirror or download it if absent.

    Gzipped copies are unpacked. If several jobs need the same file, one of them fetches it and the
    others wait.

    Raises:
        DownloadError: if no source has the file; the message gives the reason for each source.
        ValueError: if the dataset is generated.
    """
    from filelock import FileLock

    if not dataset.file:
        raise ValueError(f"{dataset.name} is generated: there is no file to fetch")
    target = cache / dataset.file
    if _fault(target, dataset) is None:  # before the lock: the cache may be read-only
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{dataset.file}.lock"):
        if (fault := _fault(target, dataset)) is None:
            return target
        tried = [_noted(target, fault)]
        sources: list[tuple[str, _Getter]] = [(str(p), _copy) for p in _copies(dataset, mirrors)]
        sources += [(url, _download) for url in dataset.urls]
        for source, get in sources:
            try:
                _bring(source, get, target, dataset)
            except (*READ_ERRORS, ValueError) as error:  # exceptions of requests are OSErrors
                tried.append(_noted(source, _reason(error)))
            else:
                _log.info("%s: taken from %s", target, source)
                return target
    raise DownloadError(_report(dataset, cache, tried))


def available(dataset: Dataset | File, cache: Path, mirrors: Sequence[Path] = ()) -> bool:
    """Whether the cache or a mirror has a verified copy, or the dataset has no file; no network."""
    if not dataset.file:
        return True
    copies = (cache / dataset.file, *_copies(dataset, mirrors))
    return any(_fault(path, dataset) is None for path in copies)


def faults(dataset: Dataset | File, cache: Path, mirrors: Sequence[Path] = ()) -> list[str]:
    """The copies in the cache or a mirror that cannot be used, each with the reason."""
    copies = (cache / dataset.file, *_copies(dataset, mirrors))
    damaged = {path: _fault(path, dataset) for path in copies if path.exists()}
    return [f"{path}: {fault}" for path, fault in damaged.items() if fault]


def _copies(dataset: Dataset | File, mirrors: Sequence[Path]) -> list[Path]:
    # Paths that may hold a copy; a gzipped copy is listed only if it exists.
    plain = [mirror / dataset.file for mirror in mirrors]
    if isinstance(dataset, File) and dataset.module:
        source = importlib.util.find_spec(dataset.module)
        if source is not None and source.origin:
            plain.append(Path(source.origin))
    gzipped = (path.with_name(f"{path.name}.gz") for path in plain)
    return plain + [path for path in gzipped if path.exists()]


def _bring(source: str, get: _Getter, target: Path, dataset: Dataset | File) -> None:
    with replacing(target) as temporary:
        get(source, temporary)
        if is_gzip(temporary):
            with replacing(temporary) as whole, whole.open("wb") as file:
                file.writelines(unpacked(temporary))
        if fault := _fault(temporary, dataset):
            raise ValueError(fault)


def _fault(path: Path, dataset: Dataset | File) -> str | None:
    # The reason why the file cannot be used; None if its hash is a published one.
    try:
        digest = fingerprint(path)
        if digest in dataset.sha256:
            return None
        if is_html(next(unpacked(path), b"")):
            return "a web page (HTML) instead of the file"
    except READ_ERRORS as error:
        return _reason(error)
    published = " or ".join(dataset.sha256)
    return f"SHA-256 {digest} ({path.stat().st_size} bytes) is not the published {published}"


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _noted(source: str | Path, reason: str) -> str:
    # A missing file is not reported; a file that cannot be used is.
    _log.log(
        logging.INFO if reason == "no such file" else logging.WARNING, "%s: %s", source, reason
    )
    return f"{source}: {reason}"


def _copy(source: str, target: Path) -> None:
    shutil.copyfile(source, target)


def _download(url: str, target: Path) -> None:
    import pooch

    # pooch takes one hash per file, and here several are accepted.
    pooch.create(
        path=target.parent,
        base_url="",
        registry={target.name: None},
        urls={target.name: url},
        retry_if_failed=RETRIES,
    ).fetch(target.name, downloader=pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=1 << 20))


def _report(dataset: Dataset | File, cache: Path, tried: list[str]) -> str:
    addresses = "" if dataset.urls else ", and the registry has no URL for it"
    return "\n".join(
        (
            f"{dataset.name}: no source has {dataset.file}{addresses}. Tried:",
            *(f"  {line}" for line in tried),
            *([f"The dataset is described at {dataset.page}"] if dataset.page else []),
            f"Put a copy with SHA-256 {' or '.join(dataset.sha256)}",
            f"into {cache} or a folder of `data.mirrors`, or run the workflow on generated data:",
            f"  {OFFLINE}",
        )
    )
