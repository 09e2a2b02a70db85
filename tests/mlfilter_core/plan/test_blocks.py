import gzip
import random
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlfilter_core.corpus.documents import RecordKeys
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.files.zstd import zstd
from mlfilter_core.plan import blocks as blocks_module
from mlfilter_core.plan.blocks import BLOCK_BYTES, BlockSample, draw_blocks
from mlfilter_core.plan.findings import Findings
from tests.conftest import COMPRESS
from tests.mlfilter_core.plan.corpora import corpus_of

MAX_LINE_BYTES = 1 << 20


def draw(files: list[TaskFile], seed: int = 0) -> BlockSample:
    findings = Findings()
    sample = draw_blocks(files, MAX_LINE_BYTES, seed, findings)
    assert findings.problems == []
    return sample


def lines_of(seed: int, n: int, longest: int = 9000) -> list[bytes]:
    chosen = random.Random(seed)
    return [b"%d " % i + b"x" * chosen.randrange(longest) for i in range(n)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ends_with_line_feed", [True, False])
def test_all_pieces_together_hold_each_line_once(tmp_path: Path, suffix: str, ends_with_line_feed: bool) -> None:
    lines = [*lines_of(1, 20), b"y" * (3 * BLOCK_BYTES), b"", *lines_of(2, 20), b"z" * BLOCK_BYTES]
    content = b"\n".join(lines) + b"\n" * ends_with_line_feed
    sample = draw(corpus_of(tmp_path, {f"a.jsonl{suffix}": COMPRESS[suffix](content), "empty.jsonl": b""}))
    assert sample.is_everything
    assert [line for block in sample.all_blocks for line in block.lines] == lines
    n_bytes = (tmp_path / f"a.jsonl{suffix}").stat().st_size
    assert sum(block.n_bytes for block in sample.all_blocks) == pytest.approx(n_bytes)


def test_lines_that_end_where_a_piece_ends_are_neither_lost_nor_twice(tmp_path: Path) -> None:
    lines = [b"a" * (BLOCK_BYTES - 1), b"b" * (BLOCK_BYTES - 2), b"", b"c"]
    sample = draw(corpus_of(tmp_path, {"a.jsonl": b"\n".join(lines) + b"\n"}))
    assert [line for block in sample.blocks for line in block.lines] == lines


def test_a_line_above_the_limit_is_cut_and_those_after_it_are_whole(tmp_path: Path) -> None:
    (file,) = corpus_of(tmp_path, {"a.jsonl": b"x" * 5000 + b"\nshort\n"})
    sample = draw_blocks([file], 100, 0, Findings())
    assert [list(block.lines) for block in sample.blocks] == [[b"x" * 101, b"short"]]


def test_the_same_seed_draws_the_same_and_another_draws_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "MAX_BLOCKS", 5)
    files = corpus_of(tmp_path, {f"{i}.jsonl": b"\n".join(lines_of(i, 100)) for i in range(4)})

    def drawn(seed: int) -> list[Any]:
        return [block.lines[:1] for block in draw(files, seed).blocks]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert len(drawn(3)) == 5


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_of_a_large_compressed_file_only_the_beginning_is_read(tmp_path: Path, compress: Any) -> None:
    noise = random.Random(0)
    lines = [noise.randbytes(300).hex().encode() for _ in range(3000)]
    (file,) = corpus_of(tmp_path, {"a.jsonl": compress(b"\n".join(lines) + b"\n")})
    (prefix,) = draw([file]).prefixes
    read = [line for block in prefix.blocks for line in block.lines]
    assert not prefix.is_whole
    assert read == lines[: len(read)]
    assert 0.02 < len(read) / len(lines) < 0.5
    share = sum(block.n_bytes for block in prefix.blocks) / prefix.n_bytes
    assert share == pytest.approx(len(read) / len(lines), rel=0.2)


def test_a_compressed_file_with_a_plain_name_is_told_by_its_content(tmp_path: Path) -> None:
    sample = draw(corpus_of(tmp_path, {"a.jsonl": gzip.compress(b"one\ntwo\n"), "b.jsonl": b"three\n"}))
    assert (sample.n_compressed, sample.n_blocks) == (1, 1)


def test_each_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    files = corpus_of(
        tmp_path, {"cut.jsonl.gz": gzip.compress(b"x\n" * 9999)[:-30], "fine.jsonl": b"{}\n", "gone.jsonl": b""}
    )
    (tmp_path / "gone.jsonl").unlink()
    findings = Findings()
    sample = draw_blocks(files, MAX_LINE_BYTES, 0, findings)
    assert sorted(sample.bytes_by_file) == ["cut.jsonl.gz", "fine.jsonl"]
    assert len(findings.problems) == 2
    assert any("gone.jsonl cannot be read (No such file" in problem for problem in findings.problems)
    assert any("cut.jsonl.gz: the compressed stream is broken" in problem for problem in findings.problems)


def test_the_first_rows_of_a_parquet_file_stand_for_all(tmp_path: Path) -> None:
    noise = random.Random(0)
    texts = [noise.randbytes(300).hex() for _ in range(3000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=700)
    pq.write_table(pa.table({"text": texts[:9], "n": range(9)}), tmp_path / "b.parquet", row_group_size=2)
    files = [TaskFile(f"{name}.parquet", name, tmp_path) for name in "ab"]
    large, small = sorted(draw(files).prefixes, key=lambda prefix: -prefix.n_bytes)
    assert small.is_whole
    rows = [orjson.loads(line) for block in small.blocks for line in block.lines]
    assert rows == [{"text": text, "n": n} for n, text in enumerate(texts[:9])]
    assert sum(block.n_bytes for block in small.blocks) == pytest.approx(small.n_bytes)
    n_read = sum(len(block.lines) for block in large.blocks)
    assert not large.is_whole
    assert sum(block.n_bytes for block in large.blocks) / large.n_bytes == pytest.approx(n_read / 3000, rel=0.01)


def test_columns_that_a_job_leaves_out_need_not_be_readable(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["text", "n", "n"])
    pq.write_table(table, tmp_path / "a.parquet")
    files = [TaskFile("a.parquet", "a", tmp_path)]
    findings = Findings()
    draw_blocks(files, MAX_LINE_BYTES, 0, findings)
    assert len(findings.problems) == 1
    (block,) = draw_blocks(files, MAX_LINE_BYTES, 0, Findings(), RecordKeys(("text",))).all_blocks
    assert block.lines == [b'{"text":"a"}']


def test_a_parquet_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (file,) = corpus_of(tmp_path, {"a.parquet": b"PAR1 and no more"})
    findings = Findings()
    draw_blocks([file], MAX_LINE_BYTES, 0, findings)
    assert [problem.partition("a.parquet ")[2][:40] for problem in findings.problems] == [
        "is a Parquet file that is cut short: it "
    ]
