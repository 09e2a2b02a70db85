import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.errors import ConfigError
from mlfilter_core.verification import embedding_files
from mlfilter_core.verification.annotated_files import NO_EMBEDDINGS, provenance_of
from mlfilter_core.verification.discrepancies import FileCheck, LineCounts
from mlfilter_core.verification.embedding_files import FILES_OF_EMBEDDINGS
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.verify import Verification, find_outputs, verify
from tests.mlfilter_core.verification.conftest import Outputs
from tests.mlfilter_core.verification.deadly import die_over_b

RECORDS: list[Any] = [{"id": "a", "text": "one"}, b"{broken", {"id": "b", "text": "two"}, b"", {"text": "three"}]


def run(outputs: Outputs, n_workers: int = 1, **changes: Any) -> Verification:
    return verify(VerifyRequest(outputs.folder, **changes), n_workers)


def problems(verification: Verification) -> dict[str, tuple[str, ...]]:
    return {check.path: check.problems for check in verification.wrong}


@pytest.fixture
def filled(outputs: Outputs) -> Outputs:
    """Two folders of embeddings, one of them annotated in two compressions, and files in progress."""
    for name in ("a/x.jsonl", "b/x.jsonl.gz", "y.jsonl.zst"):
        file, _ = outputs.embed(name, RECORDS)
        outputs.annotate(file)
        outputs.annotate(file, compression="gzip")
        outputs.embed(name, None, embedding_dir="v2/f16", rejected_dir="rejected/v2/f16", embedding_dtype="float16")
    for left in ("embeddings/.x.h5.0.1.2.part", "embeddings/a/.z.h5.committed", ".embeddings/z.h5", "logs/run/x.h5"):
        (outputs.folder / left).parent.mkdir(parents=True, exist_ok=True)
        (outputs.folder / left).write_bytes(b"half")
    (outputs.folder / ".embeddings/z.h5").unlink()
    (outputs.folder / ".embeddings").rmdir()
    return outputs


@pytest.mark.parametrize("read_content", [True, False])
def test_an_untouched_folder_is_right(filled: Outputs, read_content: bool) -> None:
    found = run(filled, n_workers=2, read_content=read_content)
    assert problems(found) == {}
    assert found.is_right
    numbers = {flow: len(outputs) for flow, outputs in found.folder.outputs.items()}
    assert numbers == {"embed": 6, "train_head": 0, "annotate": 6, "cluster": 0, "deduplicate": 0, "filter": 0}
    assert (found.counts, found.annotated_lines) == (LineCounts(30, 18, 6, 6), 18)
    assert (found.not_checked, found.folder.unfinished) == ({}, {".part": 1, ".committed": 1})
    assert found.summary().splitlines()[:2] == [
        "6 files of embeddings, 6 annotated files: all right",
        "30 lines = 18 documents + 6 rejected + 6 blank; 18 annotated lines",
    ]
    assert ("not checked: any content (--quick)" in found.summary()) != read_content


def test_each_file_that_is_not_right_is_named_in_order(filled: Outputs) -> None:
    (filled.folder / "annotated_data/a/x.jsonl").write_bytes(b"")
    (filled.folder / provenance_of("annotated_data/y.jsonl.gz")).unlink()
    (filled.folder / "rejected/b/x.jsonl").unlink()
    (filled.folder / "v2/f16/y.h5").write_bytes(b"")
    (filled.folder / "rejected/z.jsonl").write_bytes(b"")
    seen: list[FileCheck] = []
    found = verify(VerifyRequest(filled.folder), 2, seen.append)
    assert not found.is_right
    assert list(problems(found)) == [
        "embeddings/b/x.h5",
        "v2/f16/y.h5",
        "annotated_data/a/x.jsonl",
        "annotated_data/y.jsonl.gz",
        "rejected/v2/f16/y.jsonl",
        "rejected/z.jsonl",
    ]
    assert problems(found)["rejected/z.jsonl"] == (
        "belongs to no embeddings and no annotations here; run their job again, or remove it",
    )
    assert [check for check in seen if check.problems] == list(found.wrong)
    assert found.summary().startswith("6 files of embeddings, 6 annotated files: 6 not right\n")


def test_embeddings_that_did_not_stay_are_replaced_by_their_sources(outputs: Outputs) -> None:
    outputs.embed_and_annotate("a/x.jsonl", RECORDS)
    outputs.embed_and_annotate("x.jsonl", RECORDS)
    found = run(outputs)
    assert found.is_right
    assert (found.counts, found.annotated_lines) == (LineCounts(10, 6, 2, 2), 6)
    assert found.not_checked == {NO_EMBEDDINGS: 2}
    (outputs.folder / "rejected/a/x.jsonl").unlink()
    assert problems(run(outputs)) == {
        "annotated_data/a/x.jsonl": ("it states 1 rejected lines, which are missing; embed it again",)
    }


def test_annotations_in_another_folder_are_checked_against_the_sources(outputs: Outputs, tmp_path: Path) -> None:
    file, _ = outputs.embed("a/x.jsonl", RECORDS)
    outputs.annotate(file, output_dir=tmp_path / "other/annotated_data")
    found = verify(VerifyRequest(tmp_path / "other"), 1)
    assert (found.is_right, found.counts, found.annotated_lines) == (True, LineCounts(5, 3, 1, 1), 3)


def test_an_annotated_file_that_was_removed_is_missed(filled: Outputs) -> None:
    (filled.folder / "annotated_data/a/x.jsonl").unlink()
    assert list(problems(run(filled))) == ["annotated_data/a/x.jsonl"]


def test_embeddings_below_the_folder_that_was_annotated_are_found(outputs: Outputs) -> None:
    """As from a job whose embeddings_directory is embeddings/de."""
    file, _ = outputs.embed("de/x.jsonl", RECORDS)
    outputs.annotate(type(file)("x.h5", "x", outputs.folder / "embeddings/de"))
    assert (run(outputs).is_right, run(outputs).not_checked) == (True, {})


def test_linked_folders_are_followed_once(filled: Outputs, tmp_path: Path) -> None:
    (filled.folder / "embeddings").rename(tmp_path / "elsewhere")
    (filled.folder / "embeddings").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere")
    assert len(find_outputs(filled.folder).outputs["embed"]) == 6
    assert run(filled, read_content=False).is_right


def test_embeddings_of_a_killed_job_that_were_not_to_stay_are_unfinished(outputs: Outputs) -> None:
    outputs.embed("x.jsonl", RECORDS)
    outputs.embed("y.jsonl", RECORDS[:1], embedding_dir=".embeddings")
    found = run(outputs)
    assert (found.is_right, found.folder.unfinished) == (True, {".h5": 1})


@pytest.mark.parametrize(
    "make", [lambda folder: None, Path.mkdir, lambda folder: (folder / "logs").mkdir(parents=True)]
)
def test_nothing_to_verify_is_an_error(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"nothing to verify in .*/out; give|the folder .*/out cannot be read"):
        verify(VerifyRequest(tmp_path / "out"))


def test_a_folder_that_may_not_be_read_is_an_error(unprivileged: Path) -> None:
    (unprivileged / "embeddings").mkdir(mode=0)
    with pytest.raises(ConfigError, match=r"embeddings cannot be read \(Permission denied\)"):
        find_outputs(unprivileged)


def test_a_file_that_kills_its_reader_is_named_and_the_others_are_checked(
    filled: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_files, "FILES_OF_EMBEDDINGS", replace(FILES_OF_EMBEDDINGS, check=die_over_b))
    found = run(filled, n_workers=2)
    assert len(found.folder.outputs["embed"]) == 6
    assert problems(found) == {
        "embeddings/b/x.h5": (
            "the process that read it died or did not return, as over broken HDF5; make the file again",
        ),
        "rejected/b/x.jsonl": ("belongs to no embeddings and no annotations here; run their job again, or remove it",),
    }


def test_broken_bytes_anywhere_do_not_end_the_verification(outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """libhdf5 reads most of these files, raises errors for many, loops on some and dies on a few."""
    monkeypatch.setattr("mlfilter_core.compute.isolation.FILE_S", 5.0)
    chance = random.Random(0)
    file, _ = outputs.embed("x.jsonl", RECORDS)
    content = file.path.read_bytes()
    for i in range(40):
        broken = bytearray(content)
        for _ in range(40):
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        (file.path.parent / f"{i}.h5").write_bytes(broken)
    found = run(outputs, n_workers=2)
    assert [check.path for check in found.wrong] == sorted(f"embeddings/{i}.h5" for i in range(40))


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, mlfilter_core.verification.verify\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'prefect', 'dask', 'distributed', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
