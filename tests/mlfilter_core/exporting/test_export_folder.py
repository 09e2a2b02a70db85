"""Folders exported and read back with pyarrow and NumPy."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from mlfilter_core.config.annotation import Ensemble
from mlfilter_core.embedding_store.centroids import centroids_beside
from mlfilter_core.embedding_store.clusters_of_rows import Clusters, find_clusters
from mlfilter_core.embedding_store.int8 import quantize
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.errors import ConfigError
from mlfilter_core.exporting import export_file
from mlfilter_core.exporting.duplicates_of_rows import CorpusDuplicates, find_duplicates
from mlfilter_core.exporting.export_file import ExportReport
from mlfilter_core.files.identity import file_identity
from mlfilter_core.heads.head import Head
from mlfilter_core.heads.layers import mlp
from tests.conftest import TINY_DIM
from tests.deduplicated_folder import deduplicate
from tests.mlfilter_core.clustering.topics import cluster_job, run_steps, write_vectors
from tests.mlfilter_core.conftest import flip_a_bit
from tests.mlfilter_core.exporting.conftest import Export, Inputs
from tests.output_folders import make_outputs

LINE_KEYS = ["document_id", "score_quality", "score_topics_0", "score_topics_1"]


def lines(inputs: Inputs, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (inputs.annotated / f"{name}.jsonl").read_text().splitlines()]


def vectors_of(table: pa.Table) -> NDArray[Any]:
    return np.array(table["embedding"].to_pylist(), table["embedding"].type.value_type.to_pandas_dtype())


def reasons(run: Export, **changes: Any) -> dict[str, str]:
    """Exports and returns the reason of each file that failed."""
    reports: list[ExportReport] = []
    totals = run(reports.append, **changes)
    assert totals.files["failed"] == sum(report.status == "failed" for report in reports)
    return {report.file: report.reason for report in reports if report.status == "failed"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_ids_and_scores_are_those_of_the_files(
    inputs: Inputs, run: Export, tmp_path: Path, dtype: str
) -> None:
    expected = {name: inputs.embed(name, n, dtype) for name, n in (("de/x", 10), ("y", 7))}
    for name in expected:
        inputs.annotate(name)
    totals = run(annotated=inputs.annotated)
    assert dict(totals.files) == {"exported": 2}
    assert totals.documents == 17
    for name, vectors in expected.items():
        path = tmp_path / f"exported/{name}.parquet"
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        assert table.column_names == [*LINE_KEYS, "embedding"]
        assert table.schema.field("embedding").type == pa.list_(
            pa.field("element", pa.from_numpy_dtype(dtype), nullable=False), TINY_DIM
        )
        assert (vectors_of(table) == vectors.astype(dtype)).all()
        # The scores in the file have the digits of float32.
        wide = table.drop_columns(["embedding"]).to_pylist()
        assert [{k: v if k == "document_id" else np.float32(v) for k, v in row.items()} for row in wide] == [
            {k: v if k == "document_id" else np.float32(v) for k, v in line.items()} for line in lines(inputs, name)
        ]


def test_the_array_is_mapped_and_the_table_has_the_rest(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    vectors = inputs.embed("de/x", 10)
    inputs.annotate("de/x")
    run(annotated=inputs.annotated, format="npy")
    mapped = np.load(tmp_path / "exported/de/x.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == np.float32
    assert (mapped == vectors).all()
    table = pq.read_table(tmp_path / "exported/de/x.parquet")
    assert table.column_names == LINE_KEYS
    assert table["document_id"].to_pylist() == [f"de/x-ä{i}" for i in range(10)]


@pytest.mark.parametrize("format_", ["parquet", "npy"])
def test_int8_embeddings_keep_their_scales(inputs: Inputs, run: Export, tmp_path: Path, format_: str) -> None:
    whole, scales = quantize(inputs.embed("x", 9, "int8"))
    run(format=format_)
    table = pq.read_table(tmp_path / "exported/x.parquet")
    stored = np.load(tmp_path / "exported/x.npy") if format_ == "npy" else vectors_of(table)
    assert stored.dtype == np.int8
    assert (stored == whole).all()
    assert (table["embedding_scale"].to_numpy() == scales).all()


def test_documents_in_chunks_have_a_list_of_embeddings_and_of_scores(
    inputs: Inputs, run: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_file, "SLICE_BYTES", 4 * TINY_DIM * 4)  # slices of four embeddings
    n_chunks = [1, 3, 1, 5, 2]
    vectors = inputs.embed("x", 5, n_chunks=n_chunks)
    inputs.annotate("x", output_keys=("document_id", "score_quality_chunks"))
    run(annotated=inputs.annotated, columns=("document_id", "score_*", "embedding"))
    table = pq.read_table(tmp_path / "exported/x.parquet")
    assert [len(chunks) for chunks in table["embedding"].to_pylist()] == n_chunks
    assert (
        np.concatenate([np.array(chunks, np.float32) for chunks in table["embedding"].to_pylist()]) == vectors
    ).all()
    assert [len(scores) for scores in table["score_quality_chunks"].to_pylist()] == n_chunks
    run(format="npy", output_dir=tmp_path / "arrays")
    table = pq.read_table(tmp_path / "arrays/x.parquet")
    assert (np.load(tmp_path / "arrays/x.npy") == vectors).all()
    assert table["first_chunk"].to_pylist() == [0, 1, 4, 5, 10]


def test_columns_are_chosen_by_names_and_patterns_in_their_order(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    inputs.embed("x", 5)
    inputs.annotate("x")
    run(annotated=inputs.annotated, columns=("score_t*", "meta_lang", "labels", "n_tokens", "text_hash"))
    table = pq.read_table(tmp_path / "exported/x.parquet")
    assert table.column_names == ["score_topics_0", "score_topics_1", "meta_lang", "labels", "n_tokens", "text_hash"]
    assert table["labels"].to_pylist() == [[i, i + 0.5] for i in range(5)]
    assert table["meta_lang"].to_pylist() == ["lang-0", "lang-1"] * 2 + ["lang-0"]
    with h5py.File(inputs.embeddings / "x.h5") as file:
        assert table["text_hash"].to_pylist() == file["train/text_hash"][:].tolist()
        assert table["n_tokens"].to_pylist() == [1, 2, 3, 4, 5]
    run(columns=("*",), output_dir=tmp_path / "all")
    stored = ["document_id", "labels", "meta_lang", "n_tokens", "source_line", "source_offset", "text_hash"]
    assert sorted(pq.read_schema(tmp_path / "all/x.parquet").names) == sorted([*stored, "embedding"])
    with pytest.raises(ConfigError, match=r'x\.h5 has no column "score_\*"; it has: document_id, .*, embedding$'):
        run(columns=("score_*",), output_dir=tmp_path / "none")
    with pytest.raises(ConfigError, match='--columns leaves out "embedding", which is the array'):
        run(columns=("document_id",), format="npy", output_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_labels_whole_numbers_and_truth_values_have_their_types(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    """The first document has no label, so that its list is empty."""
    vectors = torch.from_numpy(inputs.embed("x", 40))
    weights = torch.randn(2, TINY_DIM, generator=torch.Generator().manual_seed(0))
    layers = mlp([weights], [-1 - weights @ vectors[0]], "relu")
    heads = [
        *inputs.heads,
        Head("tags", layers, {}, task="multilabel", labels=("news", "sport")),
        Head("kind", layers, {}, task="multiclass", labels=("a", "b")),
    ]
    agreed = Ensemble(heads=("quality", "topics_0"), combine="agreement", thresholds={"quality": 0, "topics_0": 0})
    replace(inputs, heads=heads).annotate("x", ensembles={"agreed": agreed}, integer_scales={"quality": (0, 5)})
    expected = lines(inputs, "x")
    assert expected[0]["label_tags"] == []
    assert {"news", "sport"} == {label for line in expected for label in line["label_tags"]}
    run(annotated=inputs.annotated)
    table = pq.read_table(tmp_path / "exported/x.parquet").drop_columns(["embedding"])
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert types["int_score_quality"] == "int64"
    assert types["label_agreed"] == "bool"
    assert types["label_kind"] == "string"
    assert types["label_tags"] == "list<element: string not null>"
    for name in ("int_score_quality", "label_agreed", "label_kind", "label_tags"):
        assert table[name].to_pylist() == [line[name] for line in expected], name


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_annotated_files_are_read(inputs: Inputs, run: Export, tmp_path: Path, compression: str) -> None:
    inputs.embed("x", 5)
    inputs.annotate("x")
    expected = [line["score_quality"] for line in lines(inputs, "x")]
    (inputs.annotated / "x.jsonl").unlink()
    inputs.annotate("x", compression=compression)
    run(annotated=inputs.annotated)
    found = pq.read_table(tmp_path / "exported/x.parquet")["score_quality"].to_numpy()
    assert (found == np.array(expected, np.float32)).all()


def test_the_file_says_how_it_was_made(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    inputs.embed("x", 5)
    inputs.annotate("x")
    run(annotated=inputs.annotated)
    made = json.loads(pq.read_schema(tmp_path / "exported/x.parquet").metadata[b"mlfilter"])
    assert made["embeddings"]["source_sha256"] == f"{5:064}"
    assert made["encoder"]["weights_sha256"] == "b" * 64
    assert made["annotated"]["heads"] == {"quality": "quality", "topics": "topics"}
    assert made["source"]["path"] == "x.jsonl"


def test_finished_files_are_skipped_and_changed_ones_are_refused(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    for name, n in (("x", 5), ("y", 7)):
        inputs.embed(name, n)
        inputs.annotate(name)
    run(annotated=inputs.annotated, format="npy")
    before = (tmp_path / "exported/x.npy").stat().st_mtime_ns
    (tmp_path / "exported/y.parquet").unlink()
    assert dict(run(annotated=inputs.annotated, format="npy").files) == {"skipped": 1, "exported": 1}
    os.truncate(tmp_path / "exported/y.npy", 200)
    assert dict(run(annotated=inputs.annotated, format="npy").files) == {"skipped": 1, "exported": 1}
    assert (tmp_path / "exported/x.npy").stat().st_mtime_ns == before

    inputs.embed("y", 8)
    inputs.annotate("y")
    inputs.annotate("x", score_prefix="score_", batch_size=1, output_keys=())  # the same columns in another file
    found = reasons(run, annotated=inputs.annotated, format="npy")
    assert "x.parquet was exported with scores from another version of the annotated file" in found["x.h5"]
    assert f"y.parquet was exported from another version of {inputs.embeddings}/y.h5; give --overwrite" in found["y.h5"]
    assert dict(run(annotated=inputs.annotated, format="npy", overwrite=True).files) == {"exported": 2}
    assert len(np.load(tmp_path / "exported/y.npy")) == 8
    assert dict(run(annotated=inputs.annotated, format="npy").files) == {"skipped": 2}


def test_other_settings_are_refused_without_overwrite(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    inputs.embed("x", 5)
    inputs.embed("y", 5)
    run()
    with pytest.raises(ConfigError, match=r"exported was exported with other settings: columns.n_tokens: None in the"):
        run(columns=("document_id", "n_tokens", "embedding"))
    with pytest.raises(ConfigError, match=r"y\.parquet would not be replaced: remove it, or give another folder"):
        run(columns=("document_id",), overwrite=True, glob_pattern="x*")
    assert dict(run(columns=("document_id",), overwrite=True).files) == {"exported": 2}
    assert pq.read_schema(tmp_path / "exported/x.parquet").names == ["document_id"]


def test_a_file_that_is_no_export_is_not_replaced(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    inputs.embed("x", 5)
    foreign = tmp_path / "exported/x.parquet"
    foreign.parent.mkdir()
    for content in (b"no parquet", b""):
        foreign.write_bytes(content)
        assert "x.parquet is no export of this release, or is broken; give" in reasons(run)["x.h5"]
        assert foreign.read_bytes() == content
    pq.write_table(pa.table({"a": [1]}), foreign)
    assert "is no export of this release" in reasons(run)["x.h5"]
    assert dict(run(overwrite=True).files) == {"exported": 1}


def test_two_encoders_are_refused_in_one_run_and_over_several(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    inputs.embed("x", 5)
    inputs.embed("y", 5, prompt="query: ")
    with pytest.raises(
        ConfigError, match=r"x\.h5 and .*y\.h5 were made by different encoders.*: they differ in prompt"
    ):
        run()
    assert not (tmp_path / "exported").exists()
    run(glob_pattern="x*")
    with pytest.raises(ConfigError, match=r"exported has other embeddings: .* were made by different encoders"):
        run(glob_pattern="y*")
    with pytest.raises(ConfigError, match=r"x\.parquet would not be replaced"):
        run(glob_pattern="y*", overwrite=True)
    assert [path.name for path in (tmp_path / "exported").glob("*.parquet")] == ["x.parquet"]


def test_outputs_among_the_inputs_are_refused(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    inputs.embed("x", 5)
    inputs.annotate("x")
    for output_dir in (
        inputs.embeddings,
        inputs.embeddings / "a/b",
        inputs.annotated / "a",
        tmp_path / "out/../out/embeddings",
    ):
        with pytest.raises(ConfigError, match=r"whose files are exported; give a folder outside of it"):
            run(annotated=inputs.annotated, output_dir=output_dir)
    with pytest.raises(ConfigError, match=r"--annotated: the folder .* does not exist"):
        run(annotated=tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"--output_directory: s3:/bucket/x is a URL, which is not taken here"):
        run(output_dir=Path("s3://bucket/x"))


def test_a_bad_file_is_a_reason_and_the_others_are_exported(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    for name in ("cut", "empty-file", "flipped", "good", "infinite", "nan", "no-group", "no-ids"):
        inputs.embed(name, 5)
    folder = inputs.embeddings
    os.truncate(folder / "cut.h5", 3000)
    os.truncate(folder / "empty-file.h5", 0)
    flip_a_bit(folder / "flipped.h5", "embeddings")
    for name, change in (("nan", np.nan), ("infinite", np.inf)):
        with h5py.File(folder / f"{name}.h5", "a") as file:
            file["train/embeddings"][3, 1] = change
    with h5py.File(folder / "no-group.h5", "a") as file:
        file.move("train", "other")
    with h5py.File(folder / "no-ids.h5", "w") as file:
        file["train/embeddings"] = np.ones((5, TINY_DIM), np.float32)
    found = reasons(run)
    assert "cut.h5 is not an HDF5 file, or is cut short" in found["cut.h5"]
    assert "empty-file.h5 is not an HDF5 file, or is cut short" in found["empty-file.h5"]
    assert "embeddings in rows 0 to 4 cannot be read" in found["flipped.h5"]
    for name in ("nan", "infinite"):
        assert f"{name}.h5: the embedding of row 3 is not finite; embed its source again" in found[f"{name}.h5"]
    assert 'no group "train" with a dataset "embeddings"; set params.hdf5_dataset_name to other' in found["no-group.h5"]
    assert "no-ids.h5: there is no document_id, which the first file has; leave it out with" in found["no-ids.h5"]
    assert len(found) == 7
    written = [path.name for path in (tmp_path / "exported").rglob("*") if path.is_file()]
    assert sorted(written) == ["export.json", "good.parquet"]


def test_a_file_of_another_tool_is_exported_by_its_rows(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    inputs.embeddings.mkdir(parents=True)
    vectors = np.arange(12, dtype=">f8").reshape(4, 3)
    with h5py.File(inputs.embeddings / "x.h5", "w") as file:
        file["train/embeddings"] = vectors
        file["train/name"] = np.array([b"a", b"bc", b"", b"d"])
        file["train/odd"] = np.ones(4, np.complex64)
    with pytest.raises(ConfigError, match=r'x\.h5 has no column "document_id"; it has: name, embedding$'):
        run()
    run(columns=("name", "embedding"))
    table = pq.read_table(tmp_path / "exported/x.parquet")
    assert (vectors_of(table) == vectors).all()
    assert table["name"].to_pylist() == ["a", "bc", "", "d"]
    assert dict(run(columns=("name", "embedding")).files) == {"skipped": 1}
    with h5py.File(inputs.embeddings / "x.h5", "a") as file:
        file["train/embeddings"][0, 0] = 5
        file["train/name"][0] = b"\xff"
    assert "was exported from another version of" in reasons(run, columns=("name", "embedding"))["x.h5"]
    assert "name in rows 0 to 3 cannot be read" in reasons(run, columns=("name",), output_dir=tmp_path / "o")["x.h5"]


def test_a_file_without_documents_has_the_columns_of_the_others(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    inputs.embed("a", 0)
    inputs.embed("b", 5)
    for name in "ab":
        inputs.annotate(name, integer_scales={"quality": (0, 5)})
    for format_ in ("parquet", "npy"):
        run(annotated=inputs.annotated, format=format_, output_dir=tmp_path / format_)
        empty, other = (pq.read_table(tmp_path / f"{format_}/{name}.parquet") for name in "ab")
        assert empty.schema.equals(other.schema)
        assert empty.num_rows == 0
    assert np.load(tmp_path / "npy/a.npy").shape == (0, TINY_DIM)


def test_scores_must_be_those_of_the_embeddings(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    for name, n in (("changed", 5), ("good", 5), ("missing", 5), ("other", 5), ("twice", 5), ("unknown", 5)):
        inputs.embed(name, n)
        inputs.annotate(name)
    inputs.embed("other", 6)
    inputs.annotate("twice", compression="gzip")
    (inputs.annotated / "missing.jsonl").unlink()
    (inputs.annotated / ".provenance/unknown.jsonl.json").unlink()
    changed = inputs.annotated / "changed.jsonl"
    changed.write_text("".join(reversed(changed.read_text().splitlines(keepends=True))))
    found = reasons(run, annotated=inputs.annotated)
    assert f"there is no {inputs.annotated}/missing.jsonl with its scores; annotate it, or" in found["missing.h5"]
    for name in ("changed", "unknown"):
        assert (
            f"{name}.jsonl does not state the embeddings that it was made from, or was changed" in found[f"{name}.h5"]
        )
    assert f"other.jsonl was made from another version of {inputs.embeddings}/other.h5; annotate" in found["other.h5"]
    assert "both twice.jsonl and twice.jsonl.gz" in found["twice.h5"]
    assert len(found) == 5
    assert [path.name for path in (tmp_path / "exported").glob("*.parquet")] == ["good.parquet"]


def test_broken_lines_name_their_place(inputs: Inputs, run: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that state that they are unchanged, with fewer lines, another type, no score."""
    changes = {
        "fewer": lambda lines: lines[:-1],
        "more": lambda lines: [*lines, lines[0]],
        "text": lambda lines: [*lines[:3], lines[3].replace(":", ':"', 3).replace("}", '"}')],
        "null": lambda lines: [*lines[:3], '{"score_topics_0":1.0,"score_topics_1":1.0}', lines[4]],
    }
    for name in ("a-good", *changes):
        inputs.embed(name, 5)
        inputs.annotate(name)
    for name, change in changes.items():
        path = inputs.annotated / f"{name}.jsonl"
        path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
        provenance = inputs.annotated / f".provenance/{name}.jsonl.json"
        provenance.write_text(json.dumps({**json.loads(provenance.read_text()), "output": file_identity(path)}))
    found = reasons(run, annotated=inputs.annotated)
    assert "fewer.jsonl has 4 lines, and its embeddings 5 rows; annotate it again" in found["fewer.h5"]
    assert "more.jsonl has 6 lines, and its embeddings 5 rows; annotate it again" in found["more.h5"]
    assert "text.jsonl: after line 0, a line is broken or longer than 67108864 bytes, or a" in found["text.h5"]
    assert "null.jsonl: score_quality is missing or null in line 4; annotate it again" in found["null.h5"]
    assert len(found) == 4


def test_slices_and_row_groups_make_the_same_file(
    inputs: Inputs, run: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = inputs.embed("x", 50)
    inputs.annotate("x")
    run(annotated=inputs.annotated, output_dir=tmp_path / "whole")
    monkeypatch.setattr(export_file, "SLICE_ROWS", 7)
    run(annotated=inputs.annotated)
    run(format="npy", output_dir=tmp_path / "arrays")
    file = pq.ParquetFile(tmp_path / "exported/x.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [7] * 7 + [1]
    assert file.read().equals(pq.read_table(tmp_path / "whole/x.parquet"))
    assert (np.load(tmp_path / "arrays/x.npy") == vectors).all()


def test_nothing_heavy_is_imported_by_worker_processes() -> None:
    code = (
        "import sys, mlfilter_core.exporting.export_folder\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'prefect', 'dask', 'distributed', 'safetensors', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def cluster_all(inputs: Inputs, **params: Any) -> Clusters:
    """Clusters the embeddings of the folder."""
    run_steps(cluster_job(inputs.folder.parent, **{"n_clusters": 2, **params}))
    return find_clusters(inputs.folder / "clusters", centroids_beside(inputs.folder / "clusters"))


def test_clusters_are_columns(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    inputs.embed("a/x", 7)
    inputs.annotate("a/x")
    clusters = cluster_all(inputs)
    run(annotated=inputs.annotated, clusters=clusters)
    exported = pq.read_table(tmp_path / "exported/a/x.parquet")
    names = exported.column_names
    assert names[0] == "document_id"
    assert names[-4:] == ["cluster", "cluster_distance", "cluster_name", "embedding"]
    expected = pq.read_table(inputs.folder / "clusters/a/x.parquet")
    for name in ("document_id", "cluster", "cluster_distance"):
        assert exported[name].to_pylist() == expected[name].to_pylist()
    assert set(exported["cluster_name"].to_pylist()) == {"cluster 0", "cluster 1"}
    assert run(annotated=inputs.annotated, clusters=clusters).files == {"skipped": 1}


def test_clusters_of_other_embeddings_are_not_exported(inputs: Inputs, run: Export) -> None:
    inputs.embed("x", 7)
    clusters = cluster_all(inputs)
    inputs.embed("x", 7, prompt="query: ")
    reasons: list[str] = []
    run(lambda report: reasons.append(report.reason), clusters=clusters)
    assert "x.parquet was made from another version of " in reasons[0]
    assert reasons[0].endswith("; cluster again")


def test_an_export_of_other_clusters_is_refused(inputs: Inputs, run: Export) -> None:
    inputs.embed("x", 7)
    run(clusters=cluster_all(inputs))
    with pytest.raises(ConfigError, match=r"was exported with other settings: clusters.centroids_sha256: "):
        run(clusters=cluster_all(inputs, n_clusters=3, overwrite=True))


def exported_texts(folder: Path) -> list[str]:
    texts: list[str] = pq.read_table(folder / "exported/a.parquet")["text_beginning"].to_pylist()
    return texts


def test_beginnings_of_texts_are_read_from_the_source_only_when_asked_for(
    run: Export, tmp_path: Path, tiny_files: ModelFiles, tiny_encoder: Encoder
) -> None:
    written = ["Ein Satz mit ä.", "w " * 300, "short"]
    records = [json.dumps({"id": f"a{i}", "text": text}).encode() for i, text in enumerate(written)]
    out = make_outputs(tmp_path, tiny_files, tiny_encoder, {"a.jsonl": [records[0], b"broken", *records[1:]]}, ())
    settings = {"embeddings": out / "embeddings", "columns": ("document_id", "text_beginning")}
    run(**settings)
    assert exported_texts(tmp_path) == [text[:200] for text in written]
    assert dict(run(**settings).files) == {"skipped": 1}
    run(embeddings=out / "embeddings", columns=("*",), output_dir=tmp_path / "all")
    assert "text_beginning" not in pq.read_schema(tmp_path / "all/a.parquet").names

    corpus = tmp_path / "out-corpus"
    moved = corpus.rename(tmp_path / "moved")
    reason = reasons(run, overwrite=True, output_dir=tmp_path / "again", **settings)["a.h5"]
    assert (
        f'--columns text_beginning: "text" is not in {out}/embeddings/a.h5, and the source {corpus}/a.jsonl' in reason
    )
    assert reason.endswith("does not exist; set --source-dir to the folder of the sources")
    run(output_dir=tmp_path / "again", source_dir=moved, **settings)
    assert pq.read_table(tmp_path / "again/a.parquet").equals(pq.read_table(tmp_path / "exported/a.parquet"))


@pytest.mark.parametrize(
    ("old", "new"), [(b"short", b"Short"), (b'"text": "short', b'"texx": "short'), (b"}\n", b"} \n")]
)
def test_texts_of_a_changed_source_are_not_exported(
    run: Export, tmp_path: Path, tiny_files: ModelFiles, tiny_encoder: Encoder, old: bytes, new: bytes
) -> None:
    """Another text, a missing key, another size."""
    lines = [b'{"id": "a0", "text": "one"}', b'{"id": "a1", "text": "short"}']
    out = make_outputs(tmp_path, tiny_files, tiny_encoder, {"a.jsonl": lines}, ())
    source = tmp_path / "out-corpus/a.jsonl"
    source.write_bytes(source.read_bytes().replace(old, new))
    found = reasons(run, embeddings=out / "embeddings", columns=("text_beginning",))
    assert (
        f"{source} changed since {out}/embeddings/a.h5 was made from it; embed it again, or set --source-dir"
        in found["a.h5"]
    )
    assert not list((tmp_path / "exported").glob("*.parquet"))


def test_beginnings_of_stored_texts_are_exported(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    write_vectors(inputs.embeddings / "a.h5", np.eye(3, dtype=np.float32), ["x" * 201, "", "two\nlines"])
    run(columns=("text_beginning",))
    assert exported_texts(tmp_path) == ["x" * 200, "", "two\nlines"]
    write_vectors(inputs.embeddings / "a.h5", np.eye(3, dtype=np.float32))
    with pytest.raises(ConfigError, match=r'has no column "text_beginning"; it has: document_id, n_tokens, embedding$'):
        run(columns=("text_beginning",), output_dir=tmp_path / "none")


def write_duplicated(inputs: Inputs, **params: Any) -> CorpusDuplicates:
    """Writes embeddings of which some are duplicates, and finds them."""
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 0, 2]]
    vectors[2, 3] = 0.1
    write_vectors(inputs.embeddings / "a/x.h5", vectors)
    write_vectors(inputs.embeddings / "y.h5", vectors[3:])
    cluster_all(inputs, overwrite=True)
    deduplicate(inputs.folder, **{"prefer": "first", "write_documents": False, "overwrite": True, **params})
    return find_duplicates(inputs.folder / "duplicates")


def test_duplicates_are_columns(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    duplicates = write_duplicated(inputs)
    run(duplicates=duplicates)
    table = pq.read_table(tmp_path / "exported/a/x.parquet")
    assert table.column_names == ["document_id", "duplicate_of", "duplicate_cosine", "embedding"]
    assert table["duplicate_of"].to_pylist() == ["", "", "x-0", ""]
    assert table["duplicate_cosine"].to_pylist() == pytest.approx([0, 0, 1 / np.sqrt(1.01), 0], abs=1e-3)
    assert pq.read_table(tmp_path / "exported/y.parquet")["duplicate_of"].to_pylist() == ["x-3"]
    assert dict(run(duplicates=duplicates).files) == {"skipped": 2}
    with pytest.raises(ConfigError, match=r"was exported with other settings: duplicates.groups_sha256: "):
        run(duplicates=write_duplicated(inputs, threshold=0.999))


def test_duplicates_of_others_are_not_exported(inputs: Inputs, run: Export, tmp_path: Path) -> None:
    folder = inputs.folder / "duplicates"
    duplicates = write_duplicated(inputs)
    marks = (folder / "y.parquet").read_bytes()
    write_duplicated(inputs, threshold=0.999)
    assert (
        f"y.parquet is of other duplicates than {inputs.folder}/duplicates.json; deduplicate again"
        in reasons(run, duplicates=duplicates)["y.h5"]
    )
    (folder / "y.parquet").write_bytes(marks)
    os.truncate(folder / "a/x.parquet", 100)
    found = reasons(run, duplicates=duplicates)
    assert set(found) == {"a/x.h5"}
    assert "x.parquet is no file of duplicates, or is broken (" in found["a/x.h5"]
    write_vectors(inputs.embeddings / "y.h5", np.eye(4, dtype=np.float32))
    (folder / "a/x.parquet").unlink()
    found = reasons(run, duplicates=duplicates, output_dir=tmp_path / "again")
    assert f"there is no {folder}/a/x.parquet, the duplicates of {inputs.embeddings}/a/x.h5" in found["a/x.h5"]
    assert f"y.parquet was made from another version of {inputs.embeddings}/y.h5; deduplicate again" in found["y.h5"]


def test_a_folder_without_the_summary_of_its_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--duplicates: there is no .*duplicates\.json; give the folder duplicates"):
        find_duplicates(tmp_path / "duplicates")
    (tmp_path / "duplicates.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"duplicates\.json is broken; deduplicate again"):
        find_duplicates(tmp_path / "duplicates")
