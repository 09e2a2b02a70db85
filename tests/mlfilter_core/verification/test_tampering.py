"""Every output of a pipeline, changed in every way: the verification names what was changed.

An edit is made once as it is, and once by somebody who also corrects the recorded sizes and digests, so that only the
comparison with what the outputs were made from can find it.
"""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from safetensors.numpy import load_file, save_file

from mlfilter_core.files.identity import file_identity
from mlfilter_core.heads.trained_head import TENSORS_SHA256, tensors_sha256
from mlfilter_core.verification.filtered_files import NO_ANNOTATIONS
from mlfilter_core.verification.held_out_documents import NO_EMBEDDINGS
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.verification.verify import Verification, verify
from tests.pipeline_folder import filter_corpus, make_pipeline

Lines = list[bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("pipeline"), tiny_model)


@pytest.fixture
def out(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder; its files are checked in this process, which saves the start of others."""
    serial = "mlfilter_core.verification.verify.in_processes"
    monkeypatch.setattr(serial, lambda function, items, n, died: (function(item) for item, _ in items))
    return Path(shutil.copytree(made, tmp_path / "out"))


def check(out: Path, **changes: Any) -> Verification:
    return verify(VerifyRequest(out, **changes))


def named(found: Verification) -> dict[str, str]:
    return {each.path: " | ".join(each.problems) for each in found.wrong}


@pytest.mark.parametrize("read_content", [True, False])
def test_an_untouched_folder_is_right(out: Path, read_content: bool) -> None:
    found = check(out, read_content=read_content)
    assert named(found) == {}
    assert found.not_checked == {}
    assert {flow: len(own) for flow, own in found.folder.outputs.items()} == {
        **{"embed": 3, "train_head": 2, "annotate": 3, "cluster": 0, "deduplicate": 0, "filter": 3}
    }
    assert found.annotated_lines == found.kept + found.dropped == found.counts.documents == 90
    assert 0 < found.kept < 45
    assert "3 files of embeddings, 2 heads, 3 annotated files, 3 filtered files: all right" in found.summary()


VARIANTS: dict[str, dict[str, Any]] = {
    "best tokens": {"keep": {"scores": {"good": {"best_tokens": 300}}}},
    "best tokens in groups": {"keep": {"scores": {"good": {"best_tokens": 100}}, "per": "language"}},
    "tokens by weights": {
        "keep": {
            **{"scores": {"good": {"best_tokens": 300}, "fine": {"threshold": 0}}, "per": "language"},
            "weights": {"de": 1, "fr": 1},
        }
    },
    "all tokens": {"keep": {"scores": {"good": {"best_tokens": 10**6}}}},
    "one of two scores": {"keep": {"scores": {"good": {"threshold": 2}, "fine": {}}, "at_least": 1}},
    "everything": {"keep": {"scores": {"good": {"percentile": 0}}}},
    "nothing": {"keep": {"scores": {"good": {"threshold": 1e6}}}},
    "without dropped": {"write_dropped": False},
    "gzip": {"compression": "gzip"},
    "zstd": {"compression": "zstd"},
    "parquet": {"output_format": "parquet"},
    "annotated lines": {"embeddings_directory": None, "keep": {"scores": {"good": {}}}},
    "annotated lines as parquet": {
        **{"embeddings_directory": None, "output_format": "parquet", "keep": {"scores": {"good": {}}}}
    },
}


@pytest.mark.parametrize("filtering", VARIANTS.values(), ids=VARIANTS)
def test_every_form_of_a_filter_is_proved(out: Path, filtering: dict[str, Any]) -> None:
    filter_corpus(out, overwrite=True, **filtering)
    found = check(out)
    assert (named(found), found.not_checked) == ({}, {})
    assert found.kept + found.dropped == 90
    # The same corpus with a limit that is too low or too high for it.
    changed_everywhere(out, another_bound)
    assert "filtered" in named(check(out))


def another_bound(made: Any) -> None:
    asked = made["request"]["keep"][0]
    kind = next((kind for kind in ("threshold", "best_tokens") if kind in asked), "percentile")
    asked[kind] = {"threshold": 1, "best_tokens": 50, "percentile": 95}[kind]


def test_without_annotations_documents_are_checked_by_their_own_scores(out: Path) -> None:
    """For example in a folder that was copied to where the corpus is used."""
    copy = out.with_name("copy")
    for name in ("filtered", "dropped"):
        shutil.copytree(out / name, copy / name)
    found = check(copy)
    assert (named(found), found.not_checked) == ({}, {NO_ANNOTATIONS: 3})
    moved_to_the_kept(copy)
    assert (
        "filtered/y.jsonl, line 1: the document is below the limits, and was kept"
        in named(check(copy))["filtered/y.jsonl"]
    )


def test_a_head_of_other_embeddings_is_checked_as_far_as_possible(out: Path) -> None:
    copy = out.with_name("copy")
    shutil.copytree(out / "heads", copy / "heads")
    found = check(copy)
    assert (named(found), found.not_checked) == ({}, {NO_EMBEDDINGS: 2})


# Lines of a file, changed.


def removed(lines: Lines) -> Lines:
    return lines[:1] + lines[2:]


def repeated(lines: Lines) -> Lines:
    return [*lines, lines[0]]


def swapped(lines: Lines) -> Lines:
    return [lines[1], lines[0], *lines[2:]]


def with_another_value(lines: Lines) -> Lines:
    """Changes the last value: a score, a label, or the bytes of a rejected line."""
    record = json.loads(lines[0])
    name = list(record)[-1]
    record[name] = record[name] + (0.25 if isinstance(record[name], float) else "x")
    return [json.dumps(record, separators=(",", ":")).encode() + b"\n", *lines[1:]]


def with_half_a_line(lines: Lines) -> Lines:
    return [*lines[:-1], lines[-1][: len(lines[-1]) // 2]]


def empty(lines: Lines) -> Lines:
    return []


EDITS = (removed, repeated, swapped, with_another_value, with_half_a_line, empty)
FILES = {
    "annotated_data/a/x.jsonl": "annotated_data/a/x.jsonl",
    "filtered/a/x.jsonl": "filtered/a/x.jsonl",
    "dropped/a/x.jsonl": "filtered/a/x.jsonl",
    "rejected/a/x.jsonl": "embeddings/a/x.h5",
    "heads/good.held_out.jsonl": "heads/good.safetensors",
}


@pytest.mark.parametrize("is_forged", [False, True], ids=["", "forged"])
@pytest.mark.parametrize(
    ("file", "edit"), list(itertools.product(FILES, EDITS)), ids=lambda each: getattr(each, "__name__", each)
)
def test_lines_that_were_changed_are_found(
    out: Path, file: str, edit: Callable[[Lines], Lines], is_forged: bool
) -> None:
    path = out / file
    before = path.read_bytes()
    path.write_bytes(b"".join(edit(before.splitlines(keepends=True))))
    assert path.read_bytes() != before
    if is_forged:
        forge(out, file)
    # A score that was changed with its digest is found where it was used: by the filtered file.
    expected = {FILES[file], "filtered/a/x.jsonl"} if is_forged and "annotated" in file else {FILES[file]}
    assert expected & named(check(out)).keys()


def forge(out: Path, file: str) -> None:
    """Corrects the recorded identity of a file."""
    folder, _, name = file.partition("/")
    provenance = out / folder.replace("dropped", "filtered") / ".provenance" / f"{name}.json"
    if folder in ("annotated_data", "filtered", "dropped"):
        written = json.loads(provenance.read_bytes())
        written["dropped" if folder == "dropped" else "output"] = file_identity(out / file)
        provenance.write_text(json.dumps(written))


# Anything else. Each function changes a folder, and returns the path that the verification must name.


def moved_to_the_kept(out: Path) -> str:
    kept, dropped = out / "filtered/y.jsonl", out / "dropped/y.jsonl"
    first, *rest = dropped.read_bytes().splitlines(keepends=True)
    dropped.write_bytes(b"".join(rest))
    kept.write_bytes(first + kept.read_bytes())
    forge(out, "filtered/y.jsonl")
    forge(out, "dropped/y.jsonl")
    return "filtered/y.jsonl"


def moved_to_another_file(out: Path) -> str:
    lines = (out / "filtered/y.jsonl").read_bytes().splitlines(keepends=True)
    (out / "filtered/y.jsonl").write_bytes(b"".join(lines[:-1]))
    (out / "filtered/z.jsonl").write_bytes((out / "filtered/z.jsonl").read_bytes() + lines[-1])
    forge(out, "filtered/y.jsonl")
    forge(out, "filtered/z.jsonl")
    return "filtered/z.jsonl"


def kept_with_another_text(out: Path) -> str:
    path = out / "filtered/y.jsonl"
    path.write_text(path.read_text().replace(" ba", " BA").replace('"ba', '"BA'))
    forge(out, "filtered/y.jsonl")
    return "filtered/y.jsonl"


def equal_to_a_parser(old: str, new: str) -> Callable[[Path], str]:
    def change(out: Path) -> str:
        path = out / "filtered/y.jsonl"
        before = path.read_text()
        path.write_text(before.replace(old, new))
        assert path.read_text() != before
        forge(out, "filtered/y.jsonl")
        return "filtered/y.jsonl"

    return change


def limits_that_were_lowered(out: Path) -> str:
    return changed_everywhere(out, lambda made: made["request"]["cuts"][0].update(dict.fromkeys(("de", "en"), 1)))


def another_percentile(out: Path) -> str:
    """Other limits than the corpus has, consistently: only the counts over all files show it."""
    changed_everywhere(out, lambda made: made["request"]["keep"][0].update(percentile=50))
    return "filtered"


@pytest.mark.parametrize(
    ("share", "problem"),
    [
        (1000, "good: the shares of the groups are 1,100 tokens, and the total 300"),
        (60, "good: a share of 60 tokens for 'de' is not .*, and the next best document has"),
        (0, "good: a share of 0 tokens for 'de' is not .* tokens reach it"),
    ],
)
def test_shares_of_other_weights_are_found(out: Path, share: int, problem: str) -> None:
    weights = {"de": 2, "en": 1}
    keep = {"scores": {"good": {"best_tokens": 300}}, "per": "language", "weights": weights}
    filter_corpus(out, overwrite=True, keep=keep)
    assert named(check(out)) == {}
    changed_everywhere(out, lambda made: made["request"]["shares"][0].update(de=share))
    assert re.search(problem, named(check(out))["filtered"])


def test_a_share_of_one_file_differs_from_those_of_the_others(out: Path) -> None:
    keep = {"scores": {"good": {"best_tokens": 300}}, "per": "language", "weights": {"de": 2, "en": 1}}
    filter_corpus(out, overwrite=True, keep=keep)
    path = out / "filtered/.provenance/y.jsonl.json"
    made = json.loads(path.read_bytes())
    made["request"]["shares"][0]["de"] = 201
    path.write_text(json.dumps(made))
    assert re.search(
        r"settings differ: limit of good for 'de' is .* \(rank \d+, 200 tokens\) in 2 files \(.*201 tokens\) in 1 file",
        named(check(out))["filtered"],
    )


def limits_of_one_file(out: Path) -> str:
    path = out / "filtered/.provenance/y.jsonl.json"
    made = json.loads(path.read_bytes())
    made["request"]["cuts"][1]["de"] += 1
    path.write_text(json.dumps(made))
    return "filtered"


def changed_everywhere(out: Path, change: Callable[[Any], None]) -> str:
    for path in (out / "filtered/.provenance").rglob("*.json"):
        made = json.loads(path.read_bytes())
        change(made)
        path.write_text(json.dumps(made))
    return "filtered/a/x.jsonl"


def counts_of_a_group(out: Path) -> str:
    def change(made: Any) -> None:
        made["report"]["by_group"]["de"]["kept"] += 1
        made["report"]["by_group"]["en"]["kept"] -= 1

    return changed_everywhere(out, change)


def scores_of_a_group(out: Path) -> str:
    def change(made: Any) -> None:
        made["report"]["score_sums"]["de"]["good"][1] += 1

    return changed_everywhere(out, change)


def missing(*files: str, named: str | None = None) -> Callable[[Path], str]:
    def remove(out: Path) -> str:
        for file in files:
            (out / file).unlink()
        return named or files[0]

    return remove


def copied(source: str, target: str, named: str | None = None) -> Callable[[Path], str]:
    def copy(out: Path) -> str:
        (out / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(out / source, out / target)
        return named or target

    return copy


def truncated(file: str, named: str | None = None) -> Callable[[Path], str]:
    def truncate(out: Path) -> str:
        content = (out / file).read_bytes()
        (out / file).write_bytes(content[: len(content) // 2])
        return named or file

    return truncate


def ids_of_two_rows(out: Path) -> str:
    with h5py.File(out / "embeddings/y.h5", "a") as file:
        ids = file["train/document_id"]
        ids[0], ids[1] = ids[1], ids[0]
    return "embeddings/y.h5"


def embeddings_of_another_encoder(out: Path) -> str:
    with h5py.File(out / "embeddings/y.h5", "a") as file:
        encoder = json.loads(file["train"].attrs["encoder"])
        file["train"].attrs["encoder"] = json.dumps({**encoder, "max_length": 7})
    return "embeddings"


def rewrite_head(out: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> str:
    """Changes tensors and the record of a head, with its digest and in the file beside it."""
    from safetensors import safe_open

    path = out / "heads/good.safetensors"
    with safe_open(path, "numpy") as file:
        metadata = dict(file.metadata())
    tensors, training = load_file(path), json.loads(metadata["training"])
    change(tensors, training)
    metadata |= {"training": json.dumps(training), TENSORS_SHA256: tensors_sha256(tensors)}
    save_file(tensors, path, metadata)
    path.with_suffix(".metrics.json").write_text(json.dumps(training))
    return "heads/good.safetensors"


def other_weights(out: Path) -> str:
    return rewrite_head(out, lambda tensors, _: tensors["0.weight"].__imul__(-1))


def one_bit_of_a_weight(out: Path) -> str:
    path = out / "heads/good.safetensors"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    return "heads/good.safetensors"


def better_metrics(out: Path) -> str:
    return rewrite_head(out, lambda _, training: training["metrics"].update(mae=0.01))


def more_documents_held_out(out: Path) -> str:
    return rewrite_head(out, lambda _, training: training.update(held_out=5, trained_on=85))


def another_split(out: Path) -> str:
    return rewrite_head(out, lambda _, training: training["request"].update(split_seed=1))


def metrics_of_the_file_alone(out: Path) -> str:
    path = out / "heads/good.metrics.json"
    path.write_text(path.read_text().replace('"mae": ', '"mae": 1'))
    return "heads/good.safetensors"


def a_head_trained_again(out: Path) -> str:
    """The scores are those of the head before."""
    rewrite_head(out, lambda tensors, _: tensors["0.bias"].__iadd__(1e-5))
    return "annotated_data"


HEAD = "heads/good.safetensors"
OTHERS: dict[str, Callable[[Path], str]] = {
    each.__name__: each
    for each in (
        *(moved_to_the_kept, moved_to_another_file, kept_with_another_text, limits_that_were_lowered),
        *(
            another_percentile,
            limits_of_one_file,
            counts_of_a_group,
            scores_of_a_group,
            ids_of_two_rows,
            embeddings_of_another_encoder,
        ),
        *(other_weights, one_bit_of_a_weight, better_metrics, more_documents_held_out, another_split),
        *(metrics_of_the_file_alone, a_head_trained_again),
    )
} | {
    "kept with other digits": equal_to_a_parser('"label": 1', '"label": 1.0'),
    "kept with a key that occurs twice": equal_to_a_parser('"label": 1', '"label": 0, "label": 1'),
    "kept with keys in another order": equal_to_a_parser(
        '"language": "de", "label": 1', '"label": 1, "language": "de"'
    ),
    "embeddings missing": missing("embeddings/y.h5", named="annotated_data"),
    "embeddings truncated": truncated("embeddings/y.h5"),
    "embeddings of another file": copied("embeddings/z.h5", "embeddings/y.h5"),
    "stale embeddings": copied("embeddings/z.h5", "embeddings/w.h5"),
    "rejects missing": missing("rejected/y.jsonl", named="embeddings/y.h5"),
    "stale rejects": copied("rejected/y.jsonl", "rejected/w.jsonl"),
    "annotations missing": missing("annotated_data/y.jsonl"),
    "annotations missing with provenance": missing(
        "annotated_data/y.jsonl", "annotated_data/.provenance/y.jsonl.json", named="embeddings"
    ),
    "annotations of another file": copied("annotated_data/z.jsonl", "annotated_data/y.jsonl"),
    "stale annotations": copied("annotated_data/z.jsonl", "annotated_data/w.jsonl"),
    "filtered missing": missing("filtered/y.jsonl"),
    "filtered missing with dropped": missing("filtered/y.jsonl", "dropped/y.jsonl"),
    "filtered missing with all": missing(
        *("filtered/y.jsonl", "dropped/y.jsonl", "filtered/.provenance/y.jsonl.json", "filtered/.survey/y.npz"),
        named="annotated_data",
    ),
    "filtered truncated": truncated("filtered/y.jsonl"),
    "filtered of another file": copied("filtered/z.jsonl", "filtered/y.jsonl"),
    "stale filtered": copied("filtered/z.jsonl", "filtered/w.jsonl"),
    "stale filtered of another format": copied("filtered/z.jsonl", "filtered/y.jsonl.gz"),
    "dropped missing": missing("dropped/y.jsonl", named="filtered/y.jsonl"),
    "dropped truncated": truncated("dropped/y.jsonl", named="filtered/y.jsonl"),
    "stale dropped": copied("dropped/z.jsonl", "dropped/w.jsonl", named="filtered/w.jsonl"),
    "filtered provenance missing": missing("filtered/.provenance/y.jsonl.json", named="filtered/y.jsonl"),
    "filtered provenance truncated": truncated("filtered/.provenance/y.jsonl.json", named="filtered/y.jsonl"),
    "head missing": missing(HEAD),
    "head truncated": truncated(HEAD),
    "head of another name": copied("heads/fine.safetensors", HEAD),
    "metrics missing": missing("heads/good.metrics.json", named=HEAD),
    "metrics truncated": truncated("heads/good.metrics.json", named=HEAD),
    "picture missing": missing("heads/good.svg", named=HEAD),
    "picture truncated": truncated("heads/good.svg", named=HEAD),
    "held-out documents missing": missing("heads/good.held_out.jsonl", named=HEAD),
    "held-out documents of another head": copied("heads/fine.metrics.json", "heads/good.held_out.jsonl", named=HEAD),
}


@pytest.mark.parametrize("tamper", OTHERS.values(), ids=OTHERS)
def test_whatever_else_was_changed_is_found(out: Path, tamper: Callable[[Path], str]) -> None:
    expected = tamper(out)
    assert expected in named(check(out))
