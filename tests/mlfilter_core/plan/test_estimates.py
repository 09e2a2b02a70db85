import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.plan import blocks as blocks_module
from mlfilter_core.plan.blocks import Block, BlockSample, draw_blocks
from mlfilter_core.plan.estimates import Estimate, estimate_quotient, estimate_total
from mlfilter_core.plan.findings import Findings
from tests.mlfilter_core.plan.corpora import corpus_of

REPOSITORY = Path(__file__).parents[3]
N_SEEDS = 60


def n_lines(block: Block) -> float:
    return len(block.lines)


def n_words(block: Block) -> float:
    return sum(len(line.split()) for line in block.lines)


def pages(seed: int, n: int, mean_words: float) -> bytes:
    """Lines, a few of them very long, as in web pages."""
    chosen = random.Random(seed)
    return b"".join(b"word " * int(chosen.lognormvariate(0, 1) * mean_words + 1) + b"\n" for _ in range(n))


def draws(files: list[TaskFile]) -> list[BlockSample]:
    return [draw_blocks(files, 1 << 20, seed, Findings()) for seed in range(N_SEEDS)]


def share_covered(estimates: list[Estimate], truth: float) -> float:
    return sum(estimate.low <= truth <= estimate.high for estimate in estimates) / len(estimates)


@pytest.mark.parametrize("count", [n_lines, n_words])
def test_intervals_hold_the_truth_about_as_often_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: Callable[[Block], float]
) -> None:
    monkeypatch.setattr(blocks_module, "MAX_BLOCKS", 40)
    # A large file of long pages, and small ones of short pages: means over files would be far off.
    contents = {"long.jsonl": pages(0, 5000, 300)}
    contents |= {f"short{i}.jsonl": pages(i, 400, 20) for i in range(1, 25)}
    files = corpus_of(tmp_path, contents)
    everything = b"".join(contents.values())
    truth = everything.count(b"\n") if count is n_lines else len(everything.split())
    estimates = [estimate_total(sample, count) for sample in draws(files)]
    mean = sum(estimate.value for estimate in estimates) / N_SEEDS
    # With 60 draws, 95 % are 57; fewer than 51 come once in 200 times, and the seeds are fixed.
    assert share_covered(estimates, truth) >= 0.85
    assert mean == pytest.approx(truth, rel=0.1)
    assert not any(estimate.is_exact for estimate in estimates)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_intervals_of_a_mean_hold_the_truth_about_as_often_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(blocks_module, "MAX_BLOCKS", 40)
    monkeypatch.setattr(blocks_module, "MAX_PREFIXES", 10)
    monkeypatch.setattr(blocks_module, "PREFIX_BYTES", 4 << 10)
    contents = {f"{i}.jsonl": pages(i, 400, 20 + 10 * i) for i in range(25)}
    everything = b"".join(contents.values())
    truth = len(everything.split()) / everything.count(b"\n")
    pack = gzip.compress if suffix else bytes
    samples = draws(corpus_of(tmp_path, {f"{name}{suffix}": pack(content) for name, content in contents.items()}))
    estimates = [estimate_quotient(sample, n_words, n_lines) for sample in samples]
    assert share_covered(estimates, truth) >= 0.85
    assert not any(estimate.is_exact for estimate in estimates)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_mean_of_a_single_part_of_a_file_is_not_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    for name in ("MAX_BLOCKS", "MAX_PREFIXES"):
        monkeypatch.setattr(blocks_module, name, 1)
    monkeypatch.setattr(blocks_module, "PREFIX_BYTES", 4 << 10)
    monkeypatch.setattr(blocks_module, "BLOCK_BYTES", 64 << 10)
    pack = gzip.compress if suffix else bytes
    content = b"".join(random.Random(i).randbytes(250).hex().encode() + b"\n" for i in range(400))
    sample = draw_blocks(corpus_of(tmp_path, {f"x.jsonl{suffix}": pack(content)}), 1 << 20, 0, Findings())
    assert len(sample.all_blocks) == 1
    assert not estimate_quotient(sample, n_words, n_lines).is_exact


def test_intervals_over_some_beginnings_of_compressed_files_hold_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "MAX_PREFIXES", 10)
    monkeypatch.setattr(blocks_module, "PREFIX_BYTES", 4 << 10)
    chosen = random.Random(5)

    def noise(n: int) -> bytes:
        return b"".join(chosen.randbytes(chosen.randrange(20, 900)).hex().encode() + b"\n" for _ in range(n))

    contents = {f"{i}.jsonl": noise(chosen.randrange(20, 500)) for i in range(30)}
    truth = sum(content.count(b"\n") for content in contents.values())
    compressed = {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}
    estimates = [estimate_total(sample, n_lines) for sample in draws(corpus_of(tmp_path, compressed))]
    assert share_covered(estimates, truth) >= 0.85
    assert sum(estimate.value for estimate in estimates) / N_SEEDS == pytest.approx(truth, rel=0.1)


def test_of_the_whole_example_corpus_the_total_is_exact() -> None:
    files = find_files(REPOSITORY / "examples" / "corpus", "**/*", (".jsonl", ".jsonl.gz"))
    estimate = estimate_total(draw_blocks(files, 1 << 20, 0, Findings()), n_lines)
    opened = [gzip.open(file.path) if file.path.suffix == ".gz" else open(file.path, "rb") for file in files]
    truth = 0
    for stream in opened:
        with stream:
            truth += sum(1 for _ in stream)
    assert (estimate.value, estimate.low, estimate.high) == (truth, truth, truth)
    assert truth == 60


def test_of_a_sample_of_real_pages_the_interval_holds_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "BLOCK_BYTES", 2 << 10)
    monkeypatch.setattr(blocks_module, "MAX_BLOCKS", 8)
    files = find_files(REPOSITORY / "examples" / "corpus" / "en", "*", (".jsonl",))
    truth = sum(len(file.path.read_bytes().splitlines()) for file in files)
    estimates = [estimate_total(sample, n_lines) for sample in draws(files)]
    assert share_covered(estimates, truth) >= 0.85


def test_one_beginning_of_many_files_says_how_little_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "MAX_PREFIXES", 1)
    contents = {f"{i}.jsonl.gz": gzip.compress(b"line\n" * 100 * (i + 1)) for i in range(9)}
    estimate = estimate_total(draws(corpus_of(tmp_path, contents))[0], n_lines)
    assert estimate.low <= 4500 <= estimate.high
    assert estimate.high > 2 * estimate.value


def test_nothing_is_nothing(tmp_path: Path) -> None:
    sample = draw_blocks(corpus_of(tmp_path, {"a.jsonl": b"", "b.jsonl.gz": gzip.compress(b"")}), 100, 0, Findings())
    assert json.dumps(estimate_total(sample, n_lines).to_json()) == '{"value": 0.0, "low": 0.0, "high": 0.0}'


def test_an_estimate_says_its_interval_and_a_known_number_does_not() -> None:
    assert Estimate(1200, 1100, 1300).words() == "about 1,200 (1,100 to 1,300)"
    assert Estimate.exact(54).words() == "54"
    assert Estimate(1.2e6, 1.2e6 - 1, 1.2e6 + 1).words() == "1.2 million"
