"""The clusters of an output folder in its report."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mlfilter_core.run_report.cluster_totals import MAX_CLUSTERS
from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.facts import ClusteredFacts
from mlfilter_core.run_report.folder_comparison import compare
from mlfilter_core.run_report.page import render
from mlfilter_core.run_report.pictures import pictures_of, summary_of
from mlfilter_core.run_report.write_report import as_json, write_report
from mlfilter_core.wording import number
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps, vectors_of, write_topics, write_vectors
from tests.mlfilter_core.run_report.conftest import WriteOutputs
from tests.output_folders import documents

N_OF_TOPIC = (5, 10, 20)
MAX_PAGE_BYTES = 200_000
HOSTILE = "<script>alert(1)</script> | bread & flour"


def clustered(output_dir: Path) -> ClusteredFacts:
    found = collect(output_dir).clustered
    assert found is not None
    return found


def make_clusters(folder: Path, n_files: int = 2) -> Path:
    """Clusters files of the documents of `N_OF_TOPIC` each; returns the output folder."""
    for i in range(n_files):
        write_topics(folder / f"out/embeddings/{i}.h5", np.repeat(np.arange(3), N_OF_TOPIC), i)
    run_steps(cluster_job(folder))
    return folder / "out"


def page_text(output_dir: Path) -> str:
    return re.sub(r"\s+", " ", render(collect(output_dir)))


def test_the_largest_clusters_are_those_of_all_files(tmp_path: Path) -> None:
    vectors = np.vstack([vectors_of(np.repeat(np.arange(3), N_OF_TOPIC)), np.zeros((2, 16), np.float32)])
    write_vectors(tmp_path / "out/embeddings/z.h5", vectors)
    found = clustered(make_clusters(tmp_path))
    assert (found.files, found.clusters, found.in_clusters, found.no_direction) == (3, 3, 105, 2)
    clusters = [pq.read_table(path)["cluster"].to_numpy() for path in (tmp_path / "out/clusters").glob("*.parquet")]
    sizes = np.bincount(np.concatenate(clusters) + 1)[1:]  # without the cluster -1
    assert [cluster.documents for cluster in found.largest] == sorted(sizes.tolist(), reverse=True)
    assert [sizes[cluster.cluster] for cluster in found.largest] == [cluster.documents for cluster in found.largest]
    assert found.tokens == sum(cluster.tokens for cluster in found.largest) == 3 * 35 * 36 // 2
    listed = [json.loads(line) for line in (tmp_path / "out/clusters.jsonl").read_text().splitlines()]
    assert json.loads(as_json(found.largest)) == listed
    assert found.notices() == []
    said = page_text(tmp_path / "out")
    assert "105 documents in 3 clusters. 2 documents in no cluster: an embedding of zeros has no direction." in said
    assert "there are no annotated files yet" not in said


def test_markup_in_a_text_stays_text(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/x.h5", vectors_of(np.arange(30) % 3), [HOSTILE] * 30)
    run_steps(cluster_job(tmp_path))
    page, facts = page_text(tmp_path / "out"), collect(tmp_path / "out")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; | bread &amp; flour" in page
    assert "<script>alert" not in page + summary_of(facts, "cluster")


def test_the_page_of_many_clusters_has_the_largest_and_counts_the_others(tmp_path: Path) -> None:
    n, texts = 2_000, ["<word> " * 500] * 4_000
    vectors = np.random.default_rng(0).standard_normal((len(texts), 16)).astype(np.float32)
    write_vectors(tmp_path / "out/embeddings/x.h5", vectors, texts)
    run_steps(cluster_job(tmp_path, n_clusters=n))
    report = write_report(tmp_path / "out")
    found = report.facts.clustered
    assert found is not None and (found.clusters, len(found.largest)) == (n, MAX_CLUSTERS)
    assert found.in_others == len(texts) - sum(cluster.documents for cluster in found.largest)
    said = page_text(tmp_path / "out")
    assert f"4,000 documents in 2,000 clusters; {found.in_others:,} (" in said
    assert "The 50 largest; <code>clusters.jsonl</code>" in said
    for path in (report.page, report.page.with_name("report.json")):
        assert path.stat().st_size < MAX_PAGE_BYTES


def test_a_folder_without_clusters_has_no_section(write_outputs: WriteOutputs) -> None:
    facts = collect(write_outputs({"a.jsonl": documents("a", 3)}))
    assert facts.clustered is None
    assert ">Clusters<" not in render(facts)
    assert (summary_of(facts, "cluster"), pictures_of(facts, "cluster")) == ("", {})


@pytest.mark.parametrize("content", [None, b"{", b"[]\n", b'{"documents":1,"tokens":1}\n', b""])
def test_clusters_without_a_list_are_a_notice_and_no_section(tmp_path: Path, content: bytes | None) -> None:
    output_dir = make_clusters(tmp_path)
    (output_dir / "clusters.jsonl").unlink()
    if content is not None:
        (output_dir / "clusters.jsonl").write_bytes(content)
    facts = collect(output_dir)
    assert any(notice.startswith("the list of clusters is missing or broken") for notice in facts.notices)
    assert 'id="clusters"' not in render(facts)
    assert (summary_of(facts, "cluster"), pictures_of(facts, "cluster")) == ("", {})


def test_a_list_of_other_files_is_a_notice(tmp_path: Path) -> None:
    output_dir = make_clusters(tmp_path)
    (output_dir / "clusters" / "1.parquet").unlink()
    notices = collect(output_dir).notices
    assert any("it has 70 documents, and the files of clusters 35" in notice for notice in notices)


def test_folders_are_compared_by_the_centres_of_their_clusters(tmp_path: Path) -> None:
    one, other = make_clusters(tmp_path / "one"), make_clusters(tmp_path / "other", n_files=1)
    assert clustered(one).notices() == []
    assert compare(one, other).have_same_clusters is False
    same = cluster_job(
        tmp_path / "other", n_clusters="auto", centroids=one / "clusters.safetensors", output_dir=tmp_path / "same"
    )
    run_steps(same)
    assert compare(one, tmp_path / "same").have_same_clusters is True
    for path in (other / "clusters").glob("*.parquet"):
        path.rename(one / "clusters" / f"other-{path.name}")
    assert any("were made with 2 sets of centres" in notice for notice in clustered(one).notices())


def test_the_page_shows_the_languages_of_a_cluster(tmp_path: Path) -> None:
    languages = [*["de"] * 30, *["<en>"] * 10, *[""] * 20]
    write_topics(tmp_path / "out/embeddings/x.h5", np.repeat([0, 1], [40, 20]), languages=languages)
    run_steps(cluster_job(tmp_path, n_clusters=2))
    shown = re.sub(r"\s+", " ", render(collect(tmp_path / "out")))
    assert "language: de 75 %, &lt;en&gt; 25 %</span>" in shown
    assert "language: none 100 %</span>" in shown


def test_pictures_and_summary_show_the_sizes(tmp_path: Path) -> None:
    facts = collect(make_clusters(tmp_path))
    assert facts.clustered is not None
    distance = number(facts.clustered.largest[0].mean_distance)
    assert f"| bishop, chess, pawn | 40 | 57.1 % | {distance} |" in summary_of(facts, "cluster")
    assert f'<td class="number">{distance}</td>' in render(facts)
    assert list(pictures_of(facts, "cluster")) == ["Largest clusters"]
