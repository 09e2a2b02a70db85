"""A folder of a store: a web server here; S3 in `tests/mlfilter_core/work/test_staged_work.py`."""

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlfilter_core.errors import SourceError
from mlfilter_core.files import stores
from mlfilter_core.files.stores import StoredFile, StoreFolder, folder_here
from tests.s3_servers import Faults, moto_server, store


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def faults() -> Iterator[Faults]:
    with moto_server(os.environ) as server:
        store().mkdir("bucket")
        yield server


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server that lists its folders as pages."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    stores._opened.cache_clear()


def test_a_web_server_is_listed_and_read(web: str, tmp_path: Path) -> None:
    (tmp_path / "web/corpus/a").mkdir(parents=True)
    (tmp_path / "web/corpus/a/x.jsonl").write_bytes(b"{}\n" * 1000)
    folder = StoreFolder(f"{web}/corpus", tmp_path / "mirror")
    listed = folder.listing().files
    assert list(listed) == ["a/x.jsonl"]
    folder.stage("a/x.jsonl", listed["a/x.jsonl"])
    assert (tmp_path / "mirror/a/x.jsonl").read_bytes() == (tmp_path / "web/corpus/a/x.jsonl").read_bytes()
    assert (tmp_path / "mirror/a/x.jsonl").stat().st_mtime_ns == listed["a/x.jsonl"].mtime_ns


def test_a_staged_file_is_not_fetched_again(faults: Faults, tmp_path: Path) -> None:
    store().pipe_file("bucket/x", b"content")
    folder = StoreFolder("s3://bucket", tmp_path)
    listed = folder.listing().files["x"]
    assert folder.stage("x", listed) == folder.stage("x", listed) == listed
    assert faults.count("GET /bucket/x") == 1
    store().pipe_file("bucket/x", b"CONTENT")  # of the same size, within the same second
    assert folder.stage("x", folder.find("x")) != listed
    assert (tmp_path / "x").read_bytes() == b"CONTENT"


def test_content_that_is_not_that_of_its_checksum_is_fetched_again(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store().pipe_file("bucket/x", b"content")
    folder, broken = StoreFolder("s3://bucket", tmp_path), iter(range(1))
    get = folder.store.get_file

    def get_broken(remote: str, local: str) -> None:
        get(remote, local)
        if next(broken, None) is not None:
            Path(local).write_bytes(b"cOntent")

    monkeypatch.setattr(folder.store, "get_file", get_broken)
    folder.stage("x")
    assert (tmp_path / "x").read_bytes() == b"content"
    assert faults.count("GET /bucket/x") == 2


def test_etags_that_are_no_checksums_are_found_out(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_without_md5", set())
    monkeypatch.setattr(stores, "_checksum", lambda info, version: f"etag:{'0' * 32}")  # as with encryption by KMS
    folder = StoreFolder("s3://bucket", tmp_path)
    for name, n_fetched in (("x", 2), ("y", 1)):
        store().pipe_file(f"bucket/{name}", b"content")
        folder.stage(name)
        assert faults.count(f"GET /bucket/{name}") == n_fetched


def test_a_file_that_is_gone_is_named(faults: Faults, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="s3://bucket/x was listed, and is not there"):
        StoreFolder("s3://bucket", tmp_path).stage("x", StoredFile(1, None, ""))


def test_of_two_that_create_a_file_one_succeeds(faults: Faults, tmp_path: Path) -> None:
    folder = StoreFolder("s3://bucket", tmp_path)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda n=n: results.append(folder.create("claim", b"%d" % n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(True) == 1


def test_large_files_are_put_and_staged_in_parts(faults: Faults, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 110
    (tmp_path / "x").write_bytes(content)
    folder = StoreFolder("s3://bucket", tmp_path)
    assert "-" in folder.put("x").version, "a multipart upload, whose ETag is no MD5"
    (tmp_path / "x").unlink()
    folder.stage("x")
    assert (tmp_path / "x").read_bytes() == content


def test_a_folder_of_this_machine_is_its_own_mirror(tmp_path: Path) -> None:
    folder = folder_here(tmp_path)
    folder.write("a/b.json", b"{}")
    assert (tmp_path / "a/b.json").read_bytes() == folder.read("a/b.json") == b"{}"
    found = folder.find("a/b.json")
    assert folder.is_here and found is not None and found.bytes == 2
    assert folder.read("none") is None and folder.find("none") is None
