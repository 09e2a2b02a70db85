"""Coverage-guided fuzzing of the code that reads untrusted files.

    python -m tests.faults.fuzz <target> --inputs 100000 --seed 1

Each input must succeed or end in an `MlfilterError`. Any other exception, a wrong count, or more than `TIMEOUT_S` or
`MEMORY_MB` is a crash: the input is written to a file, and the exit status is 1. The last line of the output is JSON.

libFuzzer runs in a separate process, in rounds. Each round continues from the interesting inputs of earlier rounds. An
input that ends its process ends the round. A crash, a hang or full memory inside libhdf5 cannot be caught in Python and
is counted separately, as contained: a run replaces a worker that dies on a file, and gives up the file after some
attempts. A hang holds the interpreter's lock, so the scheduler treats the worker as lost.
"""

import argparse
import faulthandler
import functools
import gzip
import hashlib
import importlib
import io
import json
import mmap
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

TIMEOUT_S = 10  # for one input; the slowest takes 1 s when all cores are busy
MEMORY_MB = 3000  # for the process; torch alone takes 300
MAX_INPUT_BYTES = 1 << 15  # the longest seed, a file of embeddings as we write it, has 29 kB
ROUND_INPUTS = 10_000  # a process that reads broken HDF5 files by the ten thousand grows
INNERMOST_CALL = re.compile(r'most recent call first\):\s+File "([^"]+)"')  # in the format of faulthandler
# Prefixes that libFuzzer gives to the input that ended a round.
DEATHS = ("crash-", "timeout-", "oom-", "leak-")


class Target:
    """A fuzzing target: `modules` are instrumented, `try_input` takes each input, `seeds` are valid inputs."""

    modules: tuple[str, ...]
    library = ""  # C library in which a process may die or hang; not fixed here

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def seeds(self) -> list[bytes]:
        raise NotImplementedError

    def try_input(self, content: bytes) -> None:
        raise NotImplementedError


class Reader(Target):
    """A source file. The first byte selects the storage of the rest: plain, compressed, or compressed and cut."""

    modules = ("mlfilter_core.corpus.lines", "mlfilter_core.corpus.documents", "mlfilter_core.corpus.windows")
    max_line_bytes = 100

    def seeds(self) -> list[bytes]:
        from mlfilter_core.files.zstd import zstd

        lines = (
            b'{"text": "ba", "id": 3, "label": 1.5, "meta": {"url": null}}\n\n[1e5, "\\ud83d\\ude00"]\n' + b"x" * 150
        )
        return [
            *(bytes([kind]) + lines for kind in range(5)),
            b"\0" + gzip.compress(lines) + gzip.compress(b"\n{}"),
            b"\0" + zstd.compress(lines) + b"\x50\x2a\x4d\x18\x01\x00\x00\x00x" + zstd.compress(b"\n{}"),
        ]

    def try_input(self, content: bytes) -> None:
        from mlfilter_core.corpus.documents import DocumentSchema
        from mlfilter_core.corpus.lines import SourceReader
        from mlfilter_core.corpus.windows import read_windows
        from mlfilter_core.files.task_files import TaskFile

        kind, content = content[:1], content[1:]
        stored = content if kind in (b"", b"\0") else self._compressed(kind[0], content)
        source = TaskFile("x.jsonl", "x", self.folder)
        source.path.write_bytes(stored)
        schema = DocumentSchema(("text",), index_keys=("meta.url",), label_keys=None, label_dtype="int8")
        n_lines = 0
        with SourceReader(source.path) as reader:
            for window in read_windows(reader, source, schema, self.max_line_bytes, self.folder):
                for _, kept in window.rejected:
                    if not isinstance(kept, bytes):
                        kept.close()
                n_lines += len(window.documents) + len(window.rejected) + window.n_blank
            assert n_lines == reader.n_lines
            assert reader.n_bytes == len(stored)

    def _compressed(self, kind: int, content: bytes) -> bytes:
        from mlfilter_core.files.zstd import zstd

        stored = gzip.compress(content, 1, mtime=0) if kind % 2 else zstd.compress(content)
        return stored if kind < 128 else stored[: len(stored) * (kind - 127) // 128]


class Parquet(Target):
    """A Parquet file of any bytes."""

    modules = ("mlfilter_core.corpus.parquet_source", "mlfilter_core.corpus.arrow_values")
    library = "/pyarrow/"

    def seeds(self) -> list[bytes]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [{"text": f"text {i}", "meta": {"url": None, "scores": [i / 2]}, "id": i} for i in range(9)]
        seeds = []
        for options in ({"compression": "none"}, {"data_page_version": "2.0"}, {"write_page_checksum": True}):
            content = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows), content, row_group_size=4, **options)
            seeds.append(content.getvalue())
        return seeds

    def try_input(self, content: bytes) -> None:
        from mlfilter_core.corpus.documents import RecordKeys
        from mlfilter_core.corpus.sources import open_source

        (self.folder / "x.parquet").write_bytes(content)
        with open_source(self.folder / "x.parquet", RecordKeys(("text",), ("id", "meta.url"))) as source:
            positions = [line.offset for line in source.lines(100)]
            assert positions == sorted(set(positions))
            assert source.n_bytes == len(content)


class ParquetFooter(Parquet):
    """A footer of any bytes below sound pages. The first byte selects the pages."""

    def seeds(self) -> list[bytes]:
        return [bytes([i]) + content[_footer_of(content) : -8] for i, content in enumerate(self._sound)]

    def try_input(self, content: bytes) -> None:
        pages = self._sound[int.from_bytes(content[:1], "big") % len(self._sound)]
        footer = content[1:]
        super().try_input(pages[: _footer_of(pages)] + footer + len(footer).to_bytes(4, "little") + b"PAR1")

    @functools.cached_property
    def _sound(self) -> list[bytes]:
        return super().seeds()


def _footer_of(parquet: bytes) -> int:
    """Returns where the footer of a sound file begins."""
    return len(parquet) - 8 - int.from_bytes(parquet[-8:-4], "little")


class Config(Target):
    """A job file. The first byte selects the kind of job."""

    modules = (
        *("mlfilter_core.config.job_files", "mlfilter_core.config.execution", "mlfilter_core.config.embedding"),
        *("mlfilter_core.config.annotation", "yaml"),
    )

    def seeds(self) -> list[bytes]:
        jobs = sorted((Path(__file__).parents[2] / "deployments").rglob("*.yaml"))
        assert jobs, "the example jobs are gone, so that this target starts from nothing"
        made = b"a: &a [1, 2.5e3, ~, true, 0x1f, 12:30:45]\nb: {<<: {c: *a}, d: ${a}}\n? !!binary aGk=\n: |\n  text\n"
        return [bytes([kind]) + content for kind in range(2) for content in (made, *(job.read_bytes() for job in jobs))]

    def try_input(self, content: bytes) -> None:
        from mlfilter_core.config.annotation import AnnotationJob
        from mlfilter_core.config.embedding import EmbeddingJob
        from mlfilter_core.config.job_files import load_job

        (self.folder / "job.yaml").write_bytes(content[1:])
        if content[:1] < b"\x01":
            load_job(self.folder / "job.yaml", EmbeddingJob)
        else:
            load_job(self.folder / "job.yaml", AnnotationJob)


class Embeddings(Target):
    """An HDF5 file of any bytes."""

    modules = ("mlfilter_core.embedding_store.reader",)
    library = "/h5py/"

    def seeds(self) -> list[bytes]:
        import h5py
        import numpy as np

        from mlfilter_core.corpus.documents import Document
        from mlfilter_core.embedding_store.layout import Provenance
        from mlfilter_core.embedding_store.writer import EmbeddingWriter

        def file(write: Callable[[Any], Any], **settings: Any) -> bytes:
            content = io.BytesIO()
            with h5py.File(content, "w", **settings) as opened:
                write(opened)
            return content.getvalue()

        rows = np.eye(3, 4, dtype=np.float32)
        settings: dict[str, Any] = {"dim": 4, "embedding_dtype": "float32", "label_shape": (), "label_dtype": "int8"}
        with EmbeddingWriter(self.folder / "x.h5", "train", index_keys=["url"], slice_rows=2, **settings) as writer:
            documents = [Document(i, i, f"id {i}", "text", ("url",), (i,)) for i in range(3)]
            writer.append(documents, rows, np.ones(3, np.int32))
            counts = dict.fromkeys(
                ("lines", "documents", "rejected", "blank", "truncated", "duplicate_ids", "tokens"), 3
            )
            source = {"path": "x", "folder": "/", "bytes": 1, "mtime_ns": 1, "sha256": "a"}
            request = {"max_line_bytes": 1, "id_key": None}
            writer.finish(Provenance(source, request, {"is_normalized": True}, counts, {}))
        return [
            (self.folder / "x.h5").read_bytes(),
            file(lambda opened: opened.create_dataset("train/embeddings", data=rows)),
            file(lambda opened: opened.create_dataset("train/embeddings", data=rows), libver="latest"),
            file(
                lambda opened: opened.create_dataset("train/embeddings", data=rows, chunks=(1, 4), compression="gzip")
            ),
            file(lambda opened: opened.create_dataset("train/embeddings", data=rows, chunks=(2, 2), fletcher32=True)),
        ]

    def try_input(self, content: bytes) -> None:
        from mlfilter_core.embedding_store.reader import EmbeddingFile

        (self.folder / "x.h5").write_bytes(content)
        with EmbeddingFile(self.folder / "x.h5", "train") as file:
            for rows in file.slices(2048):
                assert file.embeddings(rows).shape == (rows.stop - rows.start, file.dim)
                for name in file.names():
                    assert len(file.column(name, rows)) == rows.stop - rows.start
            file.check_content()


class Checkpoint(Target):
    """A checkpoint. The first byte selects its format: safetensors, a `.pt` file, or the pickle in a valid one."""

    modules = (
        "mlfilter_core.heads.checkpoint_formats",
        "mlfilter_core.heads.checkpoint_tensors",
        "mlfilter_core.heads.inferred_layers",
        "mlfilter_core.heads.light_widths",
        "mlfilter_core.heads.layer_notation",
        "mlfilter_core.heads.modules",
        "mlfilter_core.heads.sequence_classifiers",
        "mlfilter_core.heads.head",
    )

    def seeds(self) -> list[bytes]:
        import torch
        from safetensors.torch import save, save_file

        state = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2), "2.weight": torch.ones(1, 2)}
        legacy, in_zip = io.BytesIO(), io.BytesIO()
        torch.save(state, legacy, _use_new_zipfile_serialization=False)
        torch.save({"state_dict": state, "epoch": 3}, in_zip)
        in_zip.seek(0)
        pickled = torch._C.PyTorchFileReader(in_zip).get_record("data.pkl")
        files = [save(state, {"activation": "gelu"}), legacy.getvalue(), in_zip.getvalue(), pickled]
        torch.save(state, self.folder / "sound.pt")
        classifier = {"bert.pooler.dense.weight": torch.ones(3, 3), "bert.pooler.dense.bias": torch.ones(3),
                      "classifier.weight": torch.ones(2, 3), "classifier.bias": torch.ones(2)}  # fmt: skip
        (self.folder / "classifier").mkdir(exist_ok=True)
        save_file(classifier, self.folder / "classifier" / "model.safetensors")
        facts = [
            b'{"layers": ["0", "gelu", [["linear"]]], "eps": 0.1}',
            b'{"activation": "tanh", "task": "binary", "labels": ["n", "y"], "encoder": {}, "hidden_dim": 2}',
            b'{"architectures": ["BertForSequenceClassification"], "model_type": "bert", "id2label": {"0": "n"}}',
        ]
        kinds = b"\0\1\1\2\3\3\4"
        return [kinds[i : i + 1] + content for i, content in enumerate([*files, *facts])]

    def try_input(self, content: bytes) -> None:
        from mlfilter_core.errors import HeadError
        from mlfilter_core.heads.checkpoint_files import find_head
        from mlfilter_core.heads.checkpoint_formats import load_head
        from mlfilter_core.heads.light_widths import check_layers

        kind, content = content[:1], content[1:]
        if kind >= b"\3":
            sidecar, checkpoint = (
                ("sound.pt.json", "sound.pt") if kind == b"\3" else ("classifier/config.json", "classifier")
            )
            (self.folder / sidecar).write_bytes(content)
            load_head("x", self.folder / checkpoint)
            return
        path = self.folder / ("x.safetensors" if kind == b"\0" else "x.pt")
        path.write_bytes(content if kind < b"\x02" else in_archive(content))
        with suppress(HeadError):  # no layer has this width
            check_layers("x", find_head("x", path), 3, "y.h5")
        load_head("x", path)


def in_archive(pickled: bytes) -> bytes:
    """Returns a file as torch.save writes it, with correct checksums, which mutated bytes would not have."""
    import zipfile

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, record in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}.items():
            archive.writestr(f"x/{name}", record)
        for i in range(3):
            archive.writestr(f"x/data/{i}", struct.pack("<6f", *range(6)))
    return content.getvalue()


class Sham(Target):
    """A target with a known bug: finding it proves that the fuzzer works."""

    modules = ()

    def seeds(self) -> list[bytes]:
        return [b"sound", b"raise", b"die"]

    def try_input(self, content: bytes) -> None:
        if content == b"raise":
            raise KeyError("not an expected error")
        if content == b"die":
            os.abort()


TARGETS: dict[str, type[Target]] = {
    "reader": Reader,
    "parquet": Parquet,
    "parquet_footer": ParquetFooter,
    "config": Config,
    "embeddings": Embeddings,
    "checkpoint": Checkpoint,
    "sham": Sham,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--crashes", type=Path, help="folder of the inputs that crash; default: a temporary one")
    parser.add_argument("--round", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--again", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.again:
        return try_again(args.target, args.again)
    if args.round:
        fuzz(args.target, args.round, args.inputs, args.seed)
    crashes = args.crashes or Path(tempfile.mkdtemp(prefix=f"fuzz-{args.target}-"))
    return run_rounds(args.target, args.inputs, args.seed, crashes)


def run_rounds(name: str, n_inputs: int, seed: int, crashes: Path) -> int:
    """Tries this number of inputs, prints a report, and returns the exit status."""
    crashes.mkdir(parents=True, exist_ok=True)
    covered: list[str] = []
    n_tried = n_well = contained = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "corpus").mkdir()
        while n_tried < n_inputs:
            (work / "tried").write_bytes(bytes(16))
            command = [sys.executable, "-m", "tests.faults.fuzz", name, "--round", folder, "--seed", str(seed)]
            command += ["--inputs", str(min(ROUND_INPUTS, n_inputs - n_tried))]
            with open(work / "log", "wb") as log:
                status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
            n_tried_now = int.from_bytes((work / "tried").read_bytes()[:8], "little")
            n_tried, seed = n_tried + n_tried_now, seed + 1
            covered = re.findall(r"cov: (\d+)", (work / "log").read_text(errors="replace"))[-1:] or covered
            n_well += int.from_bytes((work / "tried").read_bytes()[8:], "little")
            deaths = [path for path in work.iterdir() if path.name.startswith(DEATHS)]
            for death in deaths:
                is_contained = dies_in_library(name, death, (work / "log").read_text(errors="replace"))
                contained += is_contained
                (crashes / f"{'contained-' if is_contained else ''}{death.name}").write_bytes(death.read_bytes())
                for seen in (work / "corpus").iterdir():
                    if seen.read_bytes() == death.read_bytes():  # it would end each later round too
                        seen.unlink()
                death.unlink()
            if status and not deaths:  # a bug of this script, not of the target
                print((work / "log").read_text(errors="replace"), file=sys.stderr)
                return 1
        for path in (work / "failed").iterdir() if (work / "failed").exists() else ():
            (crashes / path.name).write_bytes(path.read_bytes())
    found = sorted(path.name for path in crashes.iterdir() if not path.name.startswith("contained-"))
    found = [name for name in found if not name.endswith(".txt")]
    report = {"target": name, "inputs": n_tried, "sound": n_well, "crashes": len(found), "contained": contained}
    report |= {"covered": int((covered or ["0"])[0]), "folder": str(crashes), "files": found[:20]}
    print(json.dumps(report))
    return 1 if found else 0


def dies_in_library(name: str, death: Path, last_words: str) -> bool:
    """Returns whether a process ended in the library of its target, by its traceback or by a second attempt."""
    command = [sys.executable, "-m", "tests.faults.fuzz", name, "--again", str(death)]
    if not (calls := INNERMOST_CALL.findall(last_words)):  # it hung, or its memory ran out
        last_words = subprocess.run(command, capture_output=True, text=True, errors="replace").stderr
        calls = INNERMOST_CALL.findall(last_words)
    n_in_library = sum(TARGETS[name].library in call for call in calls)
    return bool(TARGETS[name].library) and 2 * n_in_library > len(calls)


def try_again(name: str, content: Path) -> int:
    """Tries one input, and writes its position repeatedly from a thread outside of Python."""
    from mlfilter_core.errors import MlfilterError

    for module in TARGETS[name].modules:  # takes longer than most inputs
        importlib.import_module(module)
    faulthandler.enable()
    faulthandler.dump_traceback_later(0.05, repeat=True)
    signal.alarm(TIMEOUT_S)
    with tempfile.TemporaryDirectory() as folder, suppress(MlfilterError):
        TARGETS[name](Path(folder)).try_input(content.read_bytes())
    return 0


def mutate(content: bytes, max_bytes: int, seed: int, sound: list[bytes]) -> bytes:
    """Changes an input as libFuzzer does, or in place, or changes a valid input in place.

    Inserted or removed bytes always break a format with many offsets. Most inputs that libFuzzer keeps are broken
    too, because each kind of breakage is new to it.
    """
    import atheris

    rng = random.Random(seed)
    way = rng.random()
    if way < 0.3:
        return bytes(atheris.Mutate(content, max_bytes))
    mutated = bytearray(content if content and way < 0.6 else rng.choice(sound))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start = rng.randrange(len(mutated))
        end = min(start + rng.choice((1, 1, 1, 2, 4, 8)), len(mutated))
        elsewhere = rng.randrange(len(mutated))
        replacement = rng.choice((rng.randbytes(8), bytes(8), b"\xff" * 8, b"\x7f" * 8, mutated[elsewhere:] + bytes(8)))
        mutated[start:end] = replacement[: end - start]
    return bytes(mutated)


def fuzz(name: str, work: Path, n_inputs: int, seed: int) -> None:
    """Runs one round, and ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(TARGETS[name].modules), enable_loader_override=False):
        for module in TARGETS[name].modules:
            importlib.import_module(module)
    from mlfilter_core.errors import MlfilterError

    folder = Path(tempfile.mkdtemp(dir=work))
    target = TARGETS[name](folder)
    sound = target.seeds()
    is_first = not any((work / "corpus").iterdir())
    for seed_input in sound if is_first else ():
        (work / "corpus" / hashlib.sha1(seed_input).hexdigest()).write_bytes(seed_input)
    (work / "failed").mkdir(exist_ok=True)
    counts = memoryview(mmap.mmap(os.open(work / "tried", os.O_RDWR), 16)).cast("Q")  # they stay when the process dies

    def try_input(content: bytes) -> None:
        if not counts[0]:
            faulthandler.enable(2)  # over libFuzzer's own handlers, which it calls in turn
        counts[0] += 1
        try:
            with redirect_stderr(None):
                target.try_input(content)
            counts[1] += 1
        except MlfilterError:
            pass
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__}-{Path(place.filename).stem}-{place.lineno}"
            if not (work / "failed" / kind).exists():  # one of each is enough
                (work / "failed" / kind).write_bytes(content)
                (work / "failed" / f"{kind}.txt").write_text(traceback.format_exc())

    flags = {
        "runs": n_inputs,
        "seed": seed,
        "max_len": MAX_INPUT_BYTES,
        "len_control": 0,
        "timeout": TIMEOUT_S,
        "rss_limit_mb": MEMORY_MB,
        "artifact_prefix": f"{work}/",
        "print_final_stats": 1,
    }
    arguments = [sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items()), str(work / "corpus")]
    atheris.Setup(arguments, try_input, custom_mutator=functools.partial(mutate, sound=sound))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
