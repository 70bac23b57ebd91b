"""The sources of files; a wrong file never enters the cache."""

import gzip
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from spat.data import download
from spat.data.download import DownloadError, available, fetch
from spat.data.registry import DATASETS, Dataset

SHARED = Path(__file__).parents[3] / "shared" / "datasets"
CRLF = b"date,a\r\n2020-01-01 00:00:00,1\r\n"
LF = CRLF.replace(b"\r\n", b"\n")
HTML = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def dataset() -> Dataset:
    """A row with two accepted line-ending variants, and no URL."""
    hashes = (digest(CRLF), digest(LF))
    return replace(DATASETS["Weather"], file="toy.csv", sha256=hashes, urls=())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


class Server:
    """A web server on this machine (path -> content) that counts the requests."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                content = outer.pages.get(self.path)
                self.send_response(404 if content is None else 200)
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}{path}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "RETRIES", 0)
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def names(folder: Path) -> set[str]:
    """The files in a folder, except lock files."""
    present = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return {name for name in present if not name.endswith(".lock")}


@pytest.mark.parametrize("variant", [CRLF, LF], ids=["CRLF", "LF"])
def test_published_variants_are_accepted(
    dataset: Dataset, cache: Path, mirror: Path, variant: bytes
) -> None:
    (mirror / "toy.csv").write_bytes(variant)
    path = fetch(dataset, cache, [mirror])
    assert path == cache / "toy.csv"
    assert path.read_bytes() == variant
    assert names(cache) == {"toy.csv"}


def test_cache_comes_first(dataset: Dataset, cache: Path, mirror: Path, server: Server) -> None:
    cache.mkdir()
    (cache / "toy.csv").write_bytes(LF)
    (mirror / "toy.csv").write_bytes(CRLF)
    row = replace(dataset, urls=(server.url("/toy.csv"),))
    assert fetch(row, cache, [mirror]).read_bytes() == LF
    assert server.asked == []


def test_mirrors_come_before_the_network_in_their_order(
    dataset: Dataset, cache: Path, mirror: Path, server: Server
) -> None:
    (mirror / "toy.csv").write_bytes(CRLF)
    row = replace(dataset, urls=(server.url("/toy.csv"),))
    assert fetch(row, cache, [mirror / "nowhere", mirror]).read_bytes() == CRLF
    assert server.asked == []


def test_a_mirror_with_a_wrong_file_is_skipped(dataset: Dataset, cache: Path, mirror: Path) -> None:
    wrong = mirror / "wrong"
    wrong.mkdir()
    (wrong / "toy.csv").write_bytes(b"date,a\n")
    (mirror / "toy.csv").write_bytes(LF)
    assert fetch(dataset, cache, [wrong, mirror]).read_bytes() == LF


def test_urls_are_tried_in_order(dataset: Dataset, cache: Path, server: Server) -> None:
    server.pages = {"/b/toy.csv": HTML, "/c/toy.csv": CRLF, "/d/toy.csv": CRLF}
    row = replace(dataset, urls=tuple(server.url(f"/{part}/toy.csv") for part in "abcd"))
    assert fetch(row, cache).read_bytes() == CRLF
    assert server.asked == ["/a/toy.csv", "/b/toy.csv", "/c/toy.csv"]
    assert names(cache) == {"toy.csv"}


def test_a_failed_download_is_tried_again(
    dataset: Dataset, cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "RETRIES", 1)
    monkeypatch.setattr("time.sleep", lambda _: server.pages.update({"/toy.csv": LF}))
    assert fetch(replace(dataset, urls=(server.url("/toy.csv"),)), cache).read_bytes() == LF
    assert server.asked == ["/toy.csv", "/toy.csv"]


def test_gzipped_sources_are_unpacked(
    dataset: Dataset, cache: Path, mirror: Path, server: Server
) -> None:
    server.pages["/toy.csv.gz"] = gzip.compress(CRLF)
    row = replace(dataset, urls=(server.url("/toy.csv.gz"),))
    assert fetch(row, cache).read_bytes() == CRLF
    (mirror / "toy.csv.gz").write_bytes(gzip.compress(LF))
    assert fetch(dataset, cache / "other", [mirror]).read_bytes() == LF
    assert names(cache / "other") == {"toy.csv"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (HTML, "a web page (HTML) instead of the file"),
        (CRLF[:-3], "is not the published"),
        (gzip.compress(CRLF)[:-9], "Compressed file ended"),
        (None, "404"),
    ],
    ids=["html", "truncated", "truncated gzip", "not found"],
)
def test_a_wrong_answer_never_enters_the_cache(
    dataset: Dataset, cache: Path, server: Server, content: bytes | None, reason: str
) -> None:
    if content is not None:
        server.pages["/toy.csv"] = content
    url = server.url("/toy.csv")
    with pytest.raises(DownloadError) as caught:
        fetch(replace(dataset, urls=(url,)), cache)
    (line,) = [line for line in str(caught.value).splitlines() if url in line]
    assert reason in line
    assert names(cache) == set()


def test_the_error_lists_the_attempts_and_the_remedy(
    dataset: Dataset, cache: Path, mirror: Path, server: Server
) -> None:
    cache.mkdir()
    (cache / "toy.csv").write_bytes(b"old")
    (mirror / "toy.csv").write_bytes(HTML)
    closed = "http://127.0.0.1:1/toy.csv"
    row = replace(dataset, urls=(server.url("/toy.csv"), closed))
    with pytest.raises(DownloadError) as caught:
        fetch(row, cache, [mirror / "nowhere", mirror])
    message = str(caught.value)
    first, *tried = message.splitlines()
    assert first == "Weather: no source has toy.csv. Tried:"
    assert tried[0].startswith(f"  {cache / 'toy.csv'}: SHA-256 {digest(b'old')} (3 bytes) is not")
    assert tried[1] == f"  {mirror / 'nowhere' / 'toy.csv'}: no such file"
    assert tried[2] == f"  {mirror / 'toy.csv'}: a web page (HTML) instead of the file"
    assert "404" in tried[3]
    assert closed in tried[4]
    assert message.endswith(
        "\n  snakemake --cores all --configfile workflow/experiments/offline.yaml"
    )
    assert all(known in message for known in row.sha256)


def test_the_error_says_that_there_is_no_url(dataset: Dataset, cache: Path, mirror: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(dataset, cache, [mirror])
    first, *tried = str(caught.value).splitlines()
    assert first == ("Weather: no source has toy.csv, and the registry has no URL for it. Tried:")
    assert tried[:2] == [f"  {folder / 'toy.csv'}: no such file" for folder in (cache, mirror)]


def test_a_wrong_file_in_the_cache_is_reported_and_replaced(
    dataset: Dataset, cache: Path, mirror: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    (cache / "toy.csv").write_bytes(b"old")
    (mirror / "toy.csv").write_bytes(LF)
    assert fetch(dataset, cache, [mirror]).read_bytes() == LF
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(cache / "toy.csv") in warning
    assert digest(b"old") in warning


def test_a_wrong_file_is_kept_if_no_source_has_the_right_one(dataset: Dataset, cache: Path) -> None:
    cache.mkdir()
    (cache / "toy.csv").write_bytes(b"old")
    with pytest.raises(DownloadError):
        fetch(dataset, cache)
    assert (cache / "toy.csv").read_bytes() == b"old"
    assert not available(dataset, cache)


def test_parallel_jobs_fetch_once(dataset: Dataset, cache: Path, server: Server) -> None:
    server.pages["/toy.csv"] = LF
    row = replace(dataset, urls=(server.url("/toy.csv"),))
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(row, cache), range(8)))
    assert {path.read_bytes() for path in paths} == {LF}
    assert server.asked == ["/toy.csv"]


def test_a_verified_cache_needs_no_writing(dataset: Dataset, cache: Path) -> None:
    cache.mkdir()
    (cache / "toy.csv").write_bytes(LF)
    assert fetch(dataset, cache) == cache / "toy.csv"
    assert {path.name for path in cache.iterdir()} == {"toy.csv"}  # not even a lock


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (lambda cache, mirror: None, False),
        (lambda cache, mirror: cache / "toy.csv", True),
        (lambda cache, mirror: mirror / "toy.csv", True),
    ],
    ids=["nowhere", "cache", "mirror"],
)
def test_available_uses_no_network(
    dataset: Dataset,
    cache: Path,
    mirror: Path,
    server: Server,
    place: Callable[[Path, Path], Path | None],
    expected: bool,
) -> None:
    cache.mkdir()
    server.pages["/toy.csv"] = LF
    if (path := place(cache, mirror)) is not None:
        path.write_bytes(LF)
    row = replace(dataset, urls=(server.url("/toy.csv"),))
    assert available(row, cache, [mirror]) is expected
    assert server.asked == []


def test_generated_data_are_available_and_never_fetched(cache: Path) -> None:
    assert available(DATASETS["synthetic"], cache)
    with pytest.raises(ValueError, match="synthetic is generated"):
        fetch(DATASETS["synthetic"], cache)
    assert not cache.exists()


@pytest.mark.parametrize("name", ["ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather", "Exchange", "ILI"])
def test_local_copies_are_the_published_files(name: str, cache: Path) -> None:
    row = DATASETS[name]
    if not (SHARED / row.file).exists():
        pytest.skip(f"no copy of {row.file} in {SHARED}")
    assert available(row, cache, [SHARED])
    assert fetch(replace(row, urls=()), cache, [SHARED]) == cache / row.file
    assert fetch(replace(row, urls=()), cache) == cache / row.file  # now from the cache alone
