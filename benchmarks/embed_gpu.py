"""Speed of the encoder on a GPU, compared with sentence-transformers, within a number of minutes.

Encoders with random weights, the most telling first, each in a process of its own with its share of the time. The
result file is complete after each figure, whenever the command is killed; its `not_measured` says why a figure is
missing. Last, the tests that need a GPU, where pytest is installed. Needs PyTorch, sentence-transformers and h5py, but
neither Prefect nor Dask, nor an installation of this project:

    HF_HUB_OFFLINE=1 PYTHONPATH=. python benchmarks/embed_gpu.py --minutes 8 --threads 16 --json FILE

To compare two versions of PyTorch, run it with the Python of each, and a FILE for each.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from apart import REST, Missing, Result, apart
from measure import facts_of_run, parser, print_result, write_result

REPOSITORY = Path(__file__).parent.parent
END_S = 10  # of the minutes, for the start of Python, and for processes to end
NOT_REACHED = "not reached"
GPU_TESTS = ("tests/mlfilter_core/encoder/test_attention.py", "tests/mlfilter_core/encoder/test_encoder.py")
TESTS, TESTS_PASSED = "gpu_tests", "gpu_tests_passed"
TESTS_WEIGHT = 0.5
MAX_OUTPUT = 2000  # characters of the tests


@dataclass(frozen=True)
class Row:
    """An encoder to measure.

    Attributes:
        encoder: Its name in `random_encoders`.
        max_length: Most tokens of a document.
        weight: Its share of the time, relative to those of other rows.
        is_compiled: Whether torch.compile is measured.
    """

    encoder: str
    max_length: int
    weight: float
    is_compiled: bool = False

    @property
    def name(self) -> str:
        return f"{self.encoder}_{self.max_length}{'_compiled' if self.is_compiled else ''}"

    def figures(self, names: Iterable[str]) -> list[str]:
        """Returns the names of its figures among those of all rows."""
        return [f"{self.name}_{name}" for name in names]


ROWS = {
    row.name: row
    for row in (
        Row("xlm_roberta_base", 512, 1.0),
        Row("modernbert_base", 512, 1.0),
        Row("modernbert_base", 8192, 1.2),
        Row("qwen3_600m", 8192, 1.3),
        Row("minilm", 512, 0.6),
        Row("xlm_roberta_base", 512, 1.5, is_compiled=True),
        Row("modernbert_base", 8192, 1.5, is_compiled=True),
    )
}


@dataclass
class Results:
    """The results so far.

    Attributes:
        json_file: File that is written after each addition; None for none.
        figures: Figures by name.
        facts: Facts by name.
        not_measured: Reason of each figure that is missing.
    """

    json_file: Path | None
    figures: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, result: Result) -> None:
        if isinstance(result, float):
            self.figures[name] = result
            self.not_measured.pop(name, None)
        elif isinstance(result, str):
            self.facts[name] = result
        else:
            self.not_measured[name] = result.reason
        self._write()

    def miss(self, names: Iterable[str], missing: Missing) -> None:
        """Notes why figures are missing; those that are measured, or miss for a reason of their own, stay."""
        for name in names:
            if name not in self.figures and self.not_measured.get(name, NOT_REACHED) == NOT_REACHED:
                self.not_measured[name] = missing.reason
        self._write()

    def all_facts(self) -> Mapping[str, Any]:
        return {**self.facts, "not_measured": self.not_measured}

    def _write(self) -> None:
        if self.json_file is not None:
            write_result(self.json_file, self.figures, self.all_facts())


def main() -> None:
    """Runs the benchmark, or reports that there is no GPU."""
    begun = time.monotonic()
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=8, help="time for everything (default: 8)")
    options.add_argument("--device", default="cuda", help="cpu shows that the script runs, and no more")
    options.add_argument("--tiny", action="store_true", help="tiny encoders and short documents, for the same purpose")
    options.add_argument("--documents", type=int, default=8192, help="most documents for an encoder (default: 8192)")
    options.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    arguments = options.parse_args()
    until = begun + 60 * arguments.minutes - END_S
    about = dict(apart(about_machine, until))
    if isinstance(failed := about.get(REST), Missing):
        raise SystemExit(failed.reason)
    if arguments.device.startswith("cuda") and about["gpu"] == "none":
        print("There is no CUDA GPU on this machine: nothing is measured.")
        return
    results = Results(arguments.json, facts={name: str(fact) for name, fact in about.items()})
    measure_rows([ROWS[name] for name in arguments.rows], results, arguments, until)
    run_gpu_tests(results, arguments.device, until)
    print_result(results.figures, results.all_facts())


def about_machine() -> Iterator[tuple[str, Result]]:
    """Yields the machine and the versions. Not in the first process: a process that uses CUDA cannot be forked."""
    yield from facts_of_run().items()
    yield "gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda}"


def measure_rows(rows: list[Row], results: Results, arguments: argparse.Namespace, until: float) -> None:
    """Measures one row after another; what a row leaves of its share of the time is for the later ones."""
    # Here, as the time for these imports counts, up to half a minute.
    from encoder_rates import COMPILED_FIGURES, FIGURES, Conditions, compiled_rates, rates
    from random_encoders import MEAN_TOKENS, TINY_MEAN_TOKENS, random_texts

    mean_tokens = TINY_MEAN_TOKENS if arguments.tiny else MEAN_TOKENS
    texts = random_texts(arguments.documents, mean_tokens)
    results.add("texts", f"{mean_tokens} tokens on average, before they are cut; random words, random weights")
    results.add("threads", str(arguments.threads))
    figures = {row: row.figures(COMPILED_FIGURES if row.is_compiled else FIGURES) for row in rows}
    for of_row in (*figures.values(), [TESTS_PASSED]):
        results.miss(of_row, Missing(NOT_REACHED))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for number, row in enumerate(rows):
            begun = time.monotonic()
            weight_left = sum(other.weight for other in rows[number:]) + TESTS_WEIGHT
            end = begun + (until - begun) * row.weight / weight_left
            given = Conditions(
                *(row.encoder, row.max_length, texts, Path(folder) / row.encoder, arguments.device, arguments.threads),
                *(arguments.tiny, arguments.rounds, end),
            )
            for name, result in apart(partial(compiled_rates if row.is_compiled else rates, given), end):
                if f"{row.name}_{name}" not in results.figures:
                    print(f"{time.monotonic() - begun:4.0f} s {row.name} {name or 'rest'}: {result}", flush=True)
                if name == REST and isinstance(result, Missing):
                    results.miss(figures[row], result)
                else:
                    results.add(f"{row.name}_{name}", result)


def run_gpu_tests(results: Results, device: str, until: float) -> None:
    """Runs the tests that need a GPU; adds how many passed, or why none ran."""
    if not device.startswith("cuda"):
        results.add(TESTS_PASSED, Missing("they need a GPU"))
        return
    # Without the project's settings of pytest, which need its plug-ins.
    options = ("-k", "cuda or a_gpu", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", "-c", os.devnull)
    line = [sys.executable, "-m", "pytest", *options, "--rootdir", str(REPOSITORY), *GPU_TESTS]
    seconds = max(1.0, until - time.monotonic())
    try:
        done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        results.add(TESTS_PASSED, Missing(f"their {seconds:.0f} s were over"))
        return
    output = f"{done.stdout}{done.stderr}".strip()
    passed = re.search(r"(\d+) passed", output)
    results.add(TESTS, output[-MAX_OUTPUT:])
    results.add(TESTS_PASSED, float(passed[1]) if passed else Missing(f"none ran; {TESTS} says why"))


if __name__ == "__main__":
    main()
