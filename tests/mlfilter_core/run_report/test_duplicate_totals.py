"""The duplicates of an output folder in its report."""

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.duplicate_totals import MAX_GROUPS, N_CHARACTERS
from mlfilter_core.run_report.facts import DeduplicatedFacts
from mlfilter_core.run_report.folder_comparison import compare
from mlfilter_core.run_report.page import render
from mlfilter_core.run_report.pictures import pictures_of, summary_of
from mlfilter_core.run_report.write_report import write_report
from tests.deduplicated_folder import deduplicate
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps, vectors_of, write_topics, write_vectors
from tests.mlfilter_core.run_report.conftest import WriteOutputs
from tests.output_folders import documents

MAX_PAGE_BYTES = 200_000
HOSTILE = "<script>alert(1)</script> | bread & flour"


def make_duplicates(folder: Path, n_files: int = 2, **params: object) -> Path:
    """Deduplicates files of 60 documents each; returns the output folder."""
    for i in range(n_files):
        write_topics(folder / f"out/embeddings/{i}.h5", np.arange(60) % 3, i)
    run_steps(cluster_job(folder))
    deduplicate(folder / "out", **{"threshold": 0.95, "write_documents": False, **params})
    return folder / "out"


def deduplicated(output_dir: Path) -> DeduplicatedFacts:
    found = collect(output_dir).deduplicated
    assert found is not None
    return found


def page_text(output_dir: Path) -> str:
    return re.sub(r"\s+", " ", render(collect(output_dir)))


def test_the_counts_are_those_of_all_files_and_the_groups_those_of_the_summary(tmp_path: Path) -> None:
    out = make_duplicates(tmp_path)
    found, summary = deduplicated(out), json.loads((out / "duplicates.json").read_bytes())
    assert (found.files, found.documents, found.duplicates) == (2, 120, summary["duplicates"])
    assert (found.tokens, found.threshold, found.groups) == (2 * 60 * 61 // 2, 0.95, summary["groups"])
    assert 0 < found.kept_tokens < found.tokens and found.kept + found.duplicates == 120
    assert found.recall == summary["recall"] and found.recall["found"] > 0
    assert found.largest == summary["largest"]
    assert found.notices() == []
    said = page_text(out)
    assert f"{found.kept} of 120 documents are kept, " in said
    assert f"duplicates in {found.groups} groups; the lowest cosine of duplicates is 0.95." in said
    assert f"The search found {found.pairs_found} of {found.recall['pairs']} similar pairs," in said
    for document in found.largest[0]["shown"]:
        assert f"{document['document_id']} <span" in said
    assert said.count("<strong>kept</strong>") == len(found.largest)
    assert "there are no annotated files yet" not in said


def test_the_summary_shows_texts_side_by_side(tmp_path: Path) -> None:
    out = make_duplicates(tmp_path)
    found = deduplicated(out)
    facts = collect(out)
    lines = summary_of(facts, "deduplicate").splitlines()
    assert lines[4].startswith(f"| 120 | {found.kept} | ") and lines[4].endswith(f" | 0.95 | {found.pairs_found} |")
    kept, least = found.largest[0]["shown"][:2]
    n = found.largest[0]["documents"]
    assert lines[10] == f"| {n} | {kept['text']} | {least['text']} | {least['cosine']:.4f} |"
    assert pictures_of(facts, "deduplicate") == {}


def test_markup_in_a_text_stays_text(tmp_path: Path) -> None:
    write_vectors(tmp_path / "out/embeddings/x.h5", vectors_of(np.arange(30) % 3, spread=0.01), [HOSTILE] * 30)
    run_steps(cluster_job(tmp_path))
    deduplicate(tmp_path / "out", write_documents=False)
    path = tmp_path / "out/duplicates.json"
    summary = json.loads(path.read_bytes())
    for document in summary["largest"][0]["shown"]:
        document |= {"text": HOSTILE * 20, "document_id": HOSTILE}
    path.write_text(json.dumps(summary))
    facts = collect(tmp_path / "out")
    page, said = page_text(tmp_path / "out"), summary_of(facts, "deduplicate")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; | bread &amp; flour" in page
    assert "<script>alert" not in page + said
    assert r"\<script\>alert(1)\</script\> \| bread & flour" in said
    (longest,) = {len(document["text"]) for document in deduplicated(tmp_path / "out").largest[0]["shown"]}
    assert longest == N_CHARACTERS


def test_the_page_of_many_groups_has_the_largest(tmp_path: Path) -> None:
    vectors = np.repeat(np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32), 6, axis=0)
    write_vectors(tmp_path / "out/embeddings/x.h5", vectors, ["<word> " * 500] * len(vectors))
    run_steps(cluster_job(tmp_path))
    deduplicate(tmp_path / "out", threshold=0.999, write_documents=False)
    report = write_report(tmp_path / "out")
    found = report.facts.deduplicated
    assert found is not None and (found.groups, len(found.largest)) == (300, MAX_GROUPS)
    assert "The 50 largest of 300; <code>duplicates/</code>" in page_text(tmp_path / "out")
    for path in (report.page, report.page.with_name("report.json")):
        assert path.stat().st_size < MAX_PAGE_BYTES


def test_a_folder_without_duplicates_has_no_section(write_outputs: WriteOutputs) -> None:
    facts = collect(write_outputs({"a.jsonl": documents("a", 3)}))
    assert facts.deduplicated is None
    assert ">Duplicates<" not in render(facts)
    assert (summary_of(facts, "deduplicate"), pictures_of(facts, "deduplicate")) == ("", {})


@pytest.mark.parametrize(
    "content",
    [None, b"{", b"[]", b"{}", b'{"documents": 120, "recall": null, "groups": 1, "request": {"threshold": 1}}'],
)
def test_without_a_summary_the_counts_stay_and_a_notice_says_so(tmp_path: Path, content: bytes | None) -> None:
    out = make_duplicates(tmp_path)
    (out / "duplicates.json").unlink()
    if content is not None:
        (out / "duplicates.json").write_bytes(content)
    facts = collect(out)
    assert any("duplicates.json, is missing or broken" in notice for notice in facts.notices)
    assert "of 120 documents are kept" in page_text(out) and "<h3>Largest groups</h3>" not in render(facts)
    assert summary_of(facts, "deduplicate").endswith(" | - | - | - |")


def test_a_summary_of_other_files_is_a_notice(tmp_path: Path) -> None:
    out = make_duplicates(tmp_path)
    (out / "duplicates/1.parquet").unlink()
    assert any(
        "duplicates.json has 120 documents, and the files of duplicates 60" in each for each in collect(out).notices
    )


def test_equal_texts_have_no_cosine_and_no_share_of_pairs(tmp_path: Path) -> None:
    write_topics(tmp_path / "out/embeddings/x.h5", np.arange(60) % 3)
    with h5py.File(tmp_path / "out/embeddings/x.h5", "a") as file:
        file["train/text_hash"] = np.arange(60, dtype=np.uint64) % 20
    out = tmp_path / "out"
    deduplicate(out, threshold="exact", clusters_directory=None, write_documents=False)
    said = page_text(out)
    assert "40 duplicates in 20 groups; equal texts alone are duplicates.</p>" in said
    assert "<strong>same text</strong>" in said and "similar pair" not in said
    lines = summary_of(collect(out), "deduplicate").splitlines()
    assert lines[4].endswith(" | 40 | 20 | exact | - |") and lines[10].endswith(" | same text |")


def test_folders_are_compared_by_their_duplicates(tmp_path: Path) -> None:
    one, other = make_duplicates(tmp_path / "one"), make_duplicates(tmp_path / "other", threshold=0.97)
    assert compare(one, other).have_same_duplicates is False
    assert compare(one, Path(shutil.copytree(one, tmp_path / "same"))).have_same_duplicates is True
    shutil.rmtree(tmp_path / "same/duplicates")
    assert compare(one, tmp_path / "same").have_same_duplicates is None
    for path in (other / "duplicates").glob("*.parquet"):
        path.rename(one / "duplicates" / f"other-{path.name}")
    assert any("were made from 2 searches" in notice for notice in deduplicated(one).notices())
