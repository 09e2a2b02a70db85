"""kill -9 of workers at random moments: every row exists once, in order, as in an uninterrupted run."""

import json
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import torch
import yaml

from flows.annotate import annotate
from flows.embed import embed
from flows.running.report import RunReport
from flows.workers import task_runner as task_runner_module
from mlfilter_core.embedding import work as embed_work_module
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.work import EmbedWork, embed_work
from mlfilter_core.encoder.encoder import EncodedTexts, TokenizedTexts
from mlfilter_core.files.task_files import TaskFile
from tests.conftest import TINY_DIM
from tests.embedding_content import content
from tests.faults.campaign import SEED, amount, record
from tests.flows.conftest import write_embeddings

N_FILES = 20
DOCUMENTS = 400  # to embed a file
WINDOW = 32
ROWS = 30_000  # to annotate a file
MOST_S = 1.5  # from the beginning of a file to the kill


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file must not fail because its workers are killed repeatedly for other reasons."""
    monkeypatch.setattr(task_runner_module, "MAX_STARTS", 1000)
    with dask.config.set({"distributed.scheduler.allowed-failures": 1000}):
        yield


class CountingWork(EmbedWork):
    """Records the number of encoded documents in a file that outlives the workers."""

    def run(self, file: TaskFile) -> EmbedReport:
        encoder = self.encoder()
        if "encode" not in vars(encoder):
            encode, log = encoder.encode, self.params.output_dir / "encoded"

            def noted(tokens: TokenizedTexts, *limits: Any) -> EncodedTexts:
                encoded = encode(tokens, *limits)
                with open(log, "a") as notes:
                    notes.write(f"{len(tokens.input_ids)}\n")
                return encoded

            encoder.encode = noted  # type: ignore[method-assign]
        return super().run(file)


class Killer:
    """Kills workers during a run, up to a given number; a worker is killed after it has begun a file."""

    def __init__(self, seed: int, n_kills: int) -> None:
        self.n_killed = 0
        self._random = random.Random(seed)
        self._n_kills = n_kills

    @contextmanager
    def at_work(self, logs: Path) -> Iterator[None]:
        done = threading.Event()
        thread = threading.Thread(target=self._kill, args=(logs, done))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _kill(self, logs: Path, done: threading.Event) -> None:
        while self.n_killed < self._n_kills and not done.wait(0.02):
            begun = workers_at_work(logs)
            if not begun:
                continue
            worker = self._random.choice(begun)
            if not done.wait(self._random.uniform(0, MOST_S)) and worker.is_running():
                worker.send_signal(signal.SIGKILL)
                self.n_killed += 1


def workers_at_work(logs: Path) -> list[psutil.Process]:
    """Returns the workers that have begun a file."""
    begun = {path.stem.rpartition("-")[2] for path in logs.rglob("worker-*.log") if "begins" in path.read_text()}
    return [child for child in psutil.Process().children(recursive=True) if str(child.pid) in begun]


def written(folder: Path, name: str, params: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"params": params, "local_settings": {"workers": 2}, "files_per_task": 1}))
    return path


def with_kills(
    n_kills: int, folder: Path, run: Callable[[Path], RunReport], check: Callable[[Path], None]
) -> tuple[int, int, list[RunReport]]:
    """Repeats a run, each time into a new folder, until there were enough kills.

    Returns:
        Number of kills, number of runs, and the reports of the runs.
    """
    reports: list[RunReport] = []
    n_killed = 0
    while n_killed < n_kills:
        killer = Killer(SEED * 1000 + len(reports), n_kills - n_killed)
        output = folder / f"run{len(reports)}"
        output.mkdir()
        with killer.at_work(output / "logs"):
            reports.append(run(output))
        assert killer.n_killed, "the run was over before the first kill"
        n_killed += killer.n_killed
        check(output)
        assert not [path for path in output.rglob(".*") if path.suffix in (".part", ".parts", ".lock", ".committed")]
        shutil.rmtree(output)
    return n_killed, len(reports), reports


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("n_parts", [1, 4])
def test_workers_killed_while_they_embed(
    n_parts: int, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_work_module, "embed_work", lambda params: CountingWork(**vars(embed_work(params))))
    (tmp_path / "corpus").mkdir()
    words = random.Random(SEED)
    n_files, n_lines = N_FILES // n_parts, DOCUMENTS * n_parts
    for i in range(n_files):
        records = [{"id": f"{i}-{k}", "text": "ba be bi " * words.randrange(1, 20)} for k in range(n_lines)]
        lines = [json.dumps(record) for record in records]
        lines.insert(n_lines // 2, "{broken")
        (tmp_path / "corpus" / f"{i:02}.jsonl").write_text("\n".join(lines))

    def run(output: Path) -> RunReport:
        params = {"input_dir": str(tmp_path / "corpus"), "output_dir": str(output), "text_field": "text",
                  "embedding_model": str(tiny_model), "max_batch_tokens": 128,
                  "commit_documents": WINDOW, "split": n_parts if n_parts > 1 else False}  # fmt: skip
        return embed(written(output, "embed", params))

    def contents(output: Path) -> dict[str, Any]:
        found = {}
        for path in sorted((output / "embeddings").rglob("*.h5")):
            shutil.copy(output / "rejected" / f"{path.stem}.jsonl", path.parent / "rejected.jsonl")
            found[path.name] = content(path)
        return found

    (tmp_path / "undisturbed").mkdir()
    run(tmp_path / "undisturbed")
    expected = contents(tmp_path / "undisturbed")
    n_encoded: list[int] = []

    def check(output: Path) -> None:
        assert contents(output) == expected
        n_encoded.append(sum(map(int, (output / "encoded").read_text().split())))

    n_killed, n_runs, reports = with_kills(amount(20 // n_parts, 200), tmp_path, run, check)
    n_documents = n_runs * n_files * n_lines
    assert sum(report.totals()["documents"] for report in reports) == n_documents
    n_again = sum(n_encoded) - n_documents
    assert 0 <= n_again <= n_killed * 3 * WINDOW  # windows that a worker may lose
    record(
        "kills_embedding" if n_parts == 1 else "kills_embedding_parts",
        **{"kills": n_killed, "runs": n_runs, "files": n_runs * n_files, "documents": n_documents},
        **{"documents_lost": 0, "documents_encoded_again": n_again, "window_documents": WINDOW, "seed": SEED},
    )


@pytest.mark.timeout(3600)
def test_workers_killed_while_they_annotate(tmp_path: Path) -> None:
    for i in range(N_FILES):
        write_embeddings(tmp_path / "embeddings" / f"{i:02}.h5", ROWS + i)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        torch.save(torch.nn.Linear(TINY_DIM, 1).state_dict(), tmp_path / "head.pt")

    def run(output: Path) -> RunReport:
        params = {"embeddings_directory": str(tmp_path / "embeddings"), "output_dir": str(output), "batch_size": 256,
                  "regression_head_checkpoints": {"edu": str(tmp_path / "head.pt")}}  # fmt: skip
        return annotate(written(output, "annotate", params))

    def contents(output: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((output / "annotated_data").glob("*.jsonl"))}

    (tmp_path / "undisturbed").mkdir()
    run(tmp_path / "undisturbed")
    expected = contents(tmp_path / "undisturbed")
    assert len(expected) == N_FILES

    def check(output: Path) -> None:
        assert contents(output) == expected

    n_killed, n_runs, reports = with_kills(amount(10, 100), tmp_path, run, check)
    n_documents = sum(report.totals()["documents"] for report in reports)
    assert n_documents == n_runs * sum(ROWS + i for i in range(N_FILES))
    record(
        "kills_annotation",
        **{"kills": n_killed, "runs": n_runs, "files": n_runs * N_FILES, "documents": n_documents},
        **{"documents_lost": 0, "seed": SEED},
    )
