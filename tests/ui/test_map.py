"""An exported corpus as a map in embedding-atlas, in a real browser.

The viewer is in an environment of its own: see docs/guides/map.md. It draws points with WebGPU and 16-bit floats, which
Chromium does not have without a GPU: their number, the table and the columns are checked, and not their picture.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.by import By

from mlfilter_core.embedding_store.centroids import centroids_beside
from mlfilter_core.embedding_store.clusters_of_rows import find_clusters
from mlfilter_core.exporting.duplicates_of_rows import find_duplicates
from mlfilter_core.exporting.export_folder import export
from mlfilter_core.exporting.export_request import ExportRequest
from tests.browser import chromium, screenshot
from tests.conftest import within
from tests.deduplicated_folder import deduplicate
from tests.mlfilter_core.clustering.topics import TOPICS, cluster_job, run_steps, write_topics

N_FILES, N_DOCUMENTS, N_SHOWN = 2, 150, 200
COLUMNS = ("document_id", "text_beginning", "cluster*", "duplicate*", "embedding")
# Of any host but this machine, the browser finds no address.
ONLY_LOCAL = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"


@pytest.fixture(scope="module")
def viewer() -> str:
    """The command of embedding-atlas."""
    command = shutil.which(os.environ.get("MLFILTER_VIEWER", ""))
    if command is None:
        pytest.skip("no viewer: set MLFILTER_VIEWER to embedding-atlas, as docs/guides/map.md says")
    return command


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of exported files: documents about three topics, with texts, clusters and duplicates."""
    folder = tmp_path_factory.mktemp("map")
    out = folder / "out"
    for i in range(N_FILES):
        topics = np.random.default_rng(i).integers(0, len(TOPICS), N_DOCUMENTS)
        write_topics(out / f"embeddings/x{i}.h5", topics, seed=i)
    run_steps(cluster_job(folder))
    deduplicate(out, threshold=0.98, prefer="first", write_documents=False)
    clusters = find_clusters(out / "clusters", centroids_beside(out / "clusters"))
    duplicates = find_duplicates(out / "duplicates")
    request = ExportRequest(
        out / "embeddings", folder / "exported", columns=COLUMNS, clusters=clusters, duplicates=duplicates
    )
    assert export(request, 1).files == {"exported": N_FILES}
    return folder / "exported"


@pytest.fixture(scope="module")
def address(viewer: str, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address where the viewer shows a sample of them."""
    folder = tmp_path_factory.mktemp("viewer")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    line = [viewer, *map(str, sorted(exported.glob("*.parquet"))), "--vector", "embedding", "--text", "text_beginning"]
    line += ["--sample", str(N_SHOWN), "--port", str(port), "--no-auto-port"]
    offline = {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    output = folder / "output.txt"
    with open(output, "wb") as sink:
        process = subprocess.Popen(
            line, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **offline}, start_new_session=True
        )
    try:
        within(300, lambda: process.poll() is not None or is_served(port))
        assert process.poll() is None, output.read_text()
        yield f"http://localhost:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_served(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_map_has_the_points_the_texts_and_the_columns_of_an_export(address: str) -> None:
    with chromium(1400, 900, ONLY_LOCAL) as browser:
        browser.get(address)

        def shown() -> str:
            text: str = browser.find_element(By.TAG_NAME, "body").text
            return text

        within(120, lambda: f"{N_SHOWN} points" in shown() and "anchor harbour" in shown())
        colours = [option.text.partition(" ")[0] for option in browser.find_elements(By.TAG_NAME, "option")]
        screenshot(browser, "map")
        of_documents = ["document_id", "text_beginning", "cluster", "cluster_distance", "cluster_name"]
        of_documents += ["duplicate_of", "duplicate_cosine"]
        assert [name for name in colours if name in of_documents] == of_documents
        assert {"projection_x", "projection_y"} <= set(colours)
        assert "The sailing and the mast anchor harbour." in shown()
