"""The report as a person opens it: a real browser, desktop and phone, light and dark, few files and ten thousand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver.common.by import By

from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.run_report.write_report import write_report
from tests.browser import chromium, screenshot
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps, write_vectors
from tests.output_folders import STARTED, documents, head, make_outputs, write_run

SIZES = {"desktop": (1400, 900), "tablet": (800, 1100), "phone": (380, 844)}
N_FILES, N_WORKERS = 10_000, 200
FIRST_PAINT_MS = 2000

Browser = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(*SIZES["desktop"]) as browser:
        yield browser


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_files: ModelFiles, tiny_encoder: Encoder) -> Path:
    """The report of five files, with rejected lines, and one that failed."""
    files = {f"part-{i:05d}.jsonl": documents(f"d{i}", 20 + 9 * i) for i in range(5)}
    files["part-00001.jsonl"] += [b"no json <b>at all</b>", b'{"text": 5}', b""]
    heads = (head("education", 1), head("toxicity", 2), head("style", 3))
    output_dir = make_outputs(tmp_path_factory.mktemp("small"), tiny_files, tiny_encoder, files, heads)
    failed = {"file": "part-00005.jsonl", "status": "failed", "reason": "part-00005.jsonl:3: the line is broken off"}
    write_run(output_dir / "logs" / "embed-two", "embed", [failed], after_s=100)
    return write_report(output_dir).page


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, tiny_files: ModelFiles, tiny_encoder: Encoder) -> Path:
    """The report of a run of 10,000 files on 200 workers, and of 50 heads."""
    generator = np.random.default_rng(0)
    free_s = np.full(N_WORKERS, 0.0)
    rows = []
    for i in range(N_FILES):
        worker = int(free_s.argmin())
        seconds, n = float(generator.gamma(40, 5)), int(generator.integers(50_000, 150_000))
        about = {
            "file": f"CC-MAIN-2024-{i % 90:02d}/{i:05d}_00000.jsonl.zst",
            "output": f"{i}.h5",
            "encoder": "on cuda",
        }
        if i % 997 == 5:
            about |= {"status": "failed", "reason": "No space left on device"}
        else:
            about |= {"status": "embedded", "documents": n, "tokens": n * 640, "rejected": i % 7, "truncated": n // 9}
            about |= {
                "seconds": seconds,
                "documents/s": round(n / seconds, 1),
                "worker": f"worker-gpu{worker:03d}-4711",
            }
            about |= {"started": STARTED + free_s[worker]}
            about |= {
                "waited": dict(zip(STAGES, (0.9 * seconds, 0.7 * seconds, 0.01 * seconds, 0.8 * seconds), strict=True))
            }
        free_s[worker] += seconds + 1
        rows.append(about)
    heads = [head(f"head-{i}", i) for i in range(50)]
    folder = tmp_path_factory.mktemp("large")
    output_dir = make_outputs(folder, tiny_files, tiny_encoder, {"a.jsonl": documents("a", 60)}, heads)
    write_run(output_dir / "logs" / "embed-two", "embed", rows, after_s=100)
    return write_report(output_dir).page


STAGES = ("reading", "tokenizing", "encoding", "writing")


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a folder with 2,000 clusters, of documents with HTML in them."""
    folder = tmp_path_factory.mktemp("clusters")
    vectors = np.random.default_rng(0).standard_normal((4_000, 16)).astype(np.float32)
    texts = [f"<img src=x onerror='document.title=1'> {'long' * 200} number {i}" for i in range(len(vectors))]
    write_vectors(folder / "out" / "embeddings" / "x.h5", vectors, texts)
    run_steps(cluster_job(folder, n_clusters=2_000))
    return write_report(folder / "out").page


@pytest.fixture(params=["small", "large"])
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def show(browser: Browser, page: Path, size: str = "desktop", scheme: str = "light") -> None:
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser")  # messages about the previous page
    browser.get(page.as_uri())


def column(browser: Browser, i: int) -> list[str]:
    """Returns the values of a column in the visible rows of the table of files."""
    return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, f"#table tbody td:nth-child({i})")]


def sort_by(browser: Browser, name: str) -> None:
    browser.find_element(By.XPATH, f"//table[@id='table']//button[.='{name}']").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_overflows_and_no_script_fails(browser: Browser, page: Path, size: str, scheme: str) -> None:
    show(browser, page, size, scheme)
    width, shown = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= shown
    assert browser.get_log("browser") == []
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    # Letters of the plots are those of the page.
    text = browser.execute_script("return getComputedStyle(document.querySelector('figure svg text')).fill")
    assert text == browser.execute_script("return getComputedStyle(document.body).color")
    height = browser.execute_script("return document.documentElement.scrollHeight")
    metrics = {"width": SIZES[size][0], "height": min(height, 9000), "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    screenshot(browser, f"report-{page.parents[2].name.rstrip('0123456789')}-{size}-{scheme}")


def test_a_page_of_ten_thousand_files_is_there_at_once(browser: Browser, large: Path) -> None:
    show(browser, large)
    paints = browser.execute_async_script(
        "const done = arguments[0];"
        "new PerformanceObserver((list) => done(list.getEntries().map((entry) => entry.startTime)))"
        ".observe({type: 'paint', buffered: true});"
    )
    assert max(paints) < FIRST_PAINT_MS
    assert len(column(browser, 1)) == 50
    assert f"1 to 50 of {N_FILES + 2:,} rows" in browser.find_element(By.ID, "found").text


@pytest.mark.parametrize("size", SIZES)
def test_html_in_a_document_of_a_cluster_is_shown_as_text(browser: Browser, clusters: Path, size: str) -> None:
    show(browser, clusters, size)
    section = browser.find_element(By.ID, "clusters")
    assert len(section.find_elements(By.CSS_SELECTOR, "tbody tr")) == 50
    browser.execute_script("arguments[0].click()", section.find_element(By.CSS_SELECTOR, "summary"))
    assert "<img src=x onerror='document.title=1'>" in section.find_element(By.CSS_SELECTOR, ".example .text").text
    assert browser.find_elements(By.TAG_NAME, "img") == []
    assert browser.title == "out: run report" and browser.get_log("browser") == []
    width, shown = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= shown
    screenshot(browser, f"report-clusters-{size}")


def test_the_table_sorts_by_every_column(browser: Browser, page: Path) -> None:
    show(browser, page)
    names = column(browser, 1)
    assert names == sorted(names, key=str.lower)
    sort_by(browser, "documents")
    counts = [int(cell.replace(",", "")) for cell in column(browser, 4)]
    assert counts == sorted(counts, reverse=True)
    sort_by(browser, "documents")
    counts = [int(cell.replace(",", "")) for cell in column(browser, 4)]
    assert counts == sorted(counts)
    head_cell = browser.find_element(By.CSS_SELECTOR, "#table th[aria-sort=ascending]")
    assert head_cell.text.startswith("documents")


def test_the_table_is_searched_by_words(browser: Browser, large: Path) -> None:
    show(browser, large)
    search, found = browser.find_element(By.ID, "search"), browser.find_element(By.ID, "found")
    search.send_keys("FAILED cc-main")
    assert set(column(browser, 3)) == {"failed"}
    assert found.text == f"1 to 11 of 11 rows, {N_FILES + 2:,} in all"
    search.send_keys(" nowhere")
    assert column(browser, 1) == []
    assert found.text.startswith("0 rows")


def test_every_row_can_be_reached(browser: Browser, large: Path) -> None:
    show(browser, large)
    previous, following = (browser.find_element(By.ID, name) for name in ("previous", "next"))
    assert not previous.is_enabled()
    first = column(browser, 1)
    browser.execute_script("arguments[0].click()", following)
    assert not set(first) & set(column(browser, 1))
    for _ in range(N_FILES // 50):
        browser.execute_script("arguments[0].click()", following)
    assert not following.is_enabled()
    assert f"{N_FILES + 2:,} of {N_FILES + 2:,} rows" in browser.find_element(By.ID, "found").text


def test_failed_files_stand_above_with_their_reasons(browser: Browser, small: Path) -> None:
    show(browser, small)
    said = browser.find_element(By.ID, "files").text
    assert "part-00005.jsonl:3: the line is broken off" in said.partition("Search")[0]
    rejected = browser.find_element(By.XPATH, "//summary[.='not json: examples']")
    rejected.click()
    assert "no json <b>at all</b>" in browser.find_element(By.ID, "documents").text
