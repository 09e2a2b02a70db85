"""The same records as Parquet and as JSON lines give equal results through the whole pipeline."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from mlfilter_core.corpus.hive_tables import partition_values
from mlfilter_core.corpus.lines import Line
from mlfilter_core.corpus.sources import open_source
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.verify import verify
from tests.pipeline_folder import annotate, document, filter_corpus, run_pipeline

Records = list[dict[str, Any]]
Corpus = Mapping[str, Records]  # by the path of a file without its suffix

ENCODINGS: Sequence[dict[str, Any]] = (
    {"compression": "snappy", "version": "1.0", "row_group_size": 7},
    {"compression": "zstd", "data_page_version": "2.0", "data_page_size": 64, "write_page_checksum": True},
    {
        "compression": "gzip",
        "use_dictionary": False,
        "column_encoding": {"text": "DELTA_BYTE_ARRAY", "id": "DELTA_LENGTH_BYTE_ARRAY", "label": "BYTE_STREAM_SPLIT"},
        "row_group_size": 11,
    },
)


def records(name: str) -> Records:
    found = [{**document(name, i), "more": {"tags": ["ä", None], "share": i / 7, "big": 2**60 + i}} for i in range(40)]
    found[3]["text"] = None
    found[20]["text"] = " \n"
    return found


def corpus() -> Corpus:
    """Two files, and a table in folders: the key of its folders comes last in a record."""
    found = {"a/x": records("a"), "y": records("y")}
    for language in ("de", "en"):
        part = [record for record in records("z") if record["language"] == language]
        found[f"z.parquet/language={language}/part 0"] = [
            {**{key: value for key, value in record.items() if key != "language"}, "language": language}
            for record in part
        ]
    return found


def write_rows(folder: Path, written: Corpus) -> None:
    for i, (name, rows) in enumerate(written.items()):
        path = folder / "corpus" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(rows).drop_columns(list(partition_values(name)))
        pq.write_table(table, path, **ENCODINGS[i % len(ENCODINGS)])


def write_lines(folder: Path, written: Corpus) -> None:
    for name, rows in written.items():
        path = folder / "corpus" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
        path.write_text("\n".join(lines) + "\n")


def test_parquet_and_lines_give_equal_results(tmp_path: Path, tiny_model: Path) -> None:
    write_rows(tmp_path / "rows", corpus())
    write_lines(tmp_path / "lines", corpus())
    copied = {"output_keys": ["document_id", "*"]}
    of_rows = run_pipeline(tmp_path / "rows", tiny_model, {"glob_pattern": "**/*.parquet"}, copied)
    of_lines = run_pipeline(tmp_path / "lines", tiny_model, {}, copied)
    check_twins(of_rows, of_lines, ["document_id", "more.share", "text", "language"])
    assert sum(len(path.read_text().splitlines()) for path in (of_rows / "annotated_data").rglob("*.jsonl")) == 114


def check_twins(of_rows: Path, of_lines: Path, output_keys: Sequence[str]) -> None:
    """Compares the outputs of all jobs and verifies both folders; again with other output keys and filtered Parquet."""
    equal: Sequence[tuple[str, Callable[[Path], Any]]] = (
        ("embeddings/**/*.h5", stored_embeddings),
        ("heads/*.safetensors", weights),
        *((f"{folder}/**/*.jsonl", Path.read_bytes) for folder in ("annotated_data", "filtered", "dropped")),
    )
    for pattern, read in equal:
        assert all_of(of_rows, pattern, read) == all_of(of_lines, pattern, read)
    for out in (of_rows, of_lines):
        check_verified(out)
    filtered = all_of(of_rows, "filtered/**/*.jsonl", rows_of)
    for out in (of_rows, of_lines):
        annotate(out, output_keys=output_keys, overwrite=True)
        filter_corpus(out, output_format="parquet", overwrite=True)
        check_verified(out)
    annotated = "annotated_data/**/*.jsonl"
    assert all_of(of_rows, annotated, Path.read_bytes) == all_of(of_lines, annotated, Path.read_bytes)
    assert all_of(of_rows, "filtered/**/*.parquet", rows_of) == filtered
    scores = [pa.field(name, pa.float64()) for name in ("score_good", "score_fine")]
    for name, schema in all_of(of_rows, "filtered/**/*.parquet", pq.read_schema).items():
        source = of_rows.parent / "corpus" / f"{name.removeprefix('filtered/')}.parquet"
        assert schema.equals(pa.schema([*pq.read_schema(source), *scores]))


def all_of(out: Path, pattern: str, read: Callable[[Path], Any]) -> dict[str, Any]:
    paths = (path for path in sorted(out.glob(pattern)) if path.is_file())
    found = {str(path.relative_to(out).with_suffix("")): read(path) for path in paths}
    assert found, f"{out} has no {pattern}"
    return found


def stored_embeddings(path: Path) -> dict[str, Any]:
    """Returns all that a file of embeddings has, to the bit, except what says where it came from."""
    with h5py.File(path) as file:
        found: dict[str, Any] = {}
        file.visititems(lambda name, node: found.update({name: node}) if isinstance(node, h5py.Dataset) else None)
        content = {name: (node.dtype, node.shape, node[()].tobytes() if node.dtype != object else node[()].tolist())
                   for name, node in found.items() if name != "train/source_offset"}  # fmt: skip
        made = {name: json.loads(file["train"].attrs[name]) for name in ("request", "encoder", "counts")}
    return {**content, **made}


def weights(path: Path) -> dict[str, list[Any]]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118


def rows_of(path: Path) -> Records:
    """Returns the records of a filtered file as a job would read them, which took it for a source."""
    relative = str(path.relative_to(next(folder for folder in path.parents if folder.name == "filtered")))
    with open_source(path, None, relative) as source:
        found = [json.loads(line.content) for line in source.lines(1 << 24) if isinstance(line, Line)]
    return [dict(sorted(row.items())) for row in found]


def check_verified(out: Path) -> None:
    found = verify(VerifyRequest(out), 1)
    assert found.is_right, found.summary()
    assert found.not_checked == {}
