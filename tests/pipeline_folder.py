"""An output folder as a whole pipeline leaves it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.filtering.work import survey_workload
from mlfilter_core.job_kinds import workload_of
from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.facts import FilterFacts
from mlfilter_core.work.workload import Workload

WORDS = ("ba", "be", "bi", "bo", "bu", "ca", "ce", "ci", "co", "cu")
NAMES = ("a/x", "y", "z")
LINEAR = {"hidden_dims": [], "learning_rate": 0.02, "batch_size": 16, "max_epochs": 5, "label_key": "label"}
KEEP: dict[str, Any] = {"scores": {"good": {"percentile": 60}, "fine": {"percentile": 20}}, "per": "language"}


def document(name: str, i: int) -> dict[str, Any]:
    text = " ".join(WORDS[(i * i + k * (i + 3)) % 10] for k in range(2 + i % 7))
    return {"id": f"{name}-{i}", "text": text, "language": "de" if i % 3 else "en", "label": i % 5, "meta": {"i": i}}


def make_pipeline(folder: Path, model: Path, **filtering: Any) -> Path:
    """Runs embedding, training, annotation and filtering; returns the output folder.

    Args:
        folder: Folder of the corpus and the outputs.
        model: The encoder.
        filtering: Parameters of the filter job that override the defaults.
    """
    for name in NAMES:
        path = folder / "corpus" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(document(name, i)) for i in range(30)]
        path.write_text("\n".join([*lines[:4], "{broken", "", *lines[4:9], "[1]", *lines[9:]]) + "\n")
    return run_pipeline(folder, model, {}, {}, **filtering)


def run_pipeline(
    folder: Path, model: str | Path, embedding: Mapping[str, Any], annotation: Mapping[str, Any], **filtering: Any
) -> Path:
    """Does the same with the corpus that is there; parameters of each job override the defaults."""
    out = folder / "out"
    labels = {"keys_to_index": ["language"], "save_labels": True, "label_key": "label", "id_key": "id"}
    source = {"input_dir": folder / "corpus", "text_field": "text", "embedding_model": model, "max_batch_tokens": 512}
    do(job(EmbeddingJob, {**source, **labels, "output_dir": out, **embedding}))
    embeddings = {"embeddings_directory": out / "embeddings", "output_dir": out}
    recipes = {"good": LINEAR, "fine": {**LINEAR, "hidden_dims": [8], "activation": "gelu"}}
    do(job(TrainingJob, {**embeddings, "heads": recipes, "device": "cpu"}))
    annotate(out, **annotation)
    filter_corpus(out, **filtering)
    return out


def annotate(out: Path, **annotation: Any) -> None:
    """Scores the embeddings of an output folder with its heads, into the same one."""
    heads = {name: out / "heads" / f"{name}.safetensors" for name in ("good", "fine")}
    embeddings = {"embeddings_directory": out / "embeddings", "output_dir": out}
    do(job(AnnotationJob, {**embeddings, "regression_head_checkpoints": heads, "device": "cpu", **annotation}))


def filter_facts(out: Path) -> FilterFacts:
    """Returns what a report says about the filtered files of an output folder."""
    found = collect(out).filtered
    assert found is not None
    return found


def filter_corpus(out: Path, **filtering: Any) -> None:
    """Filters the annotated files of an output folder, into the same one."""
    embeddings = {"embeddings_directory": out / "embeddings", "output_dir": out}
    annotated = {"annotated_directory": out / "annotated_data", "keep": KEEP, "write_dropped": True}
    filtered = job(FilterJob, {**embeddings, **annotated, **filtering})
    run(survey_workload(filtered))
    do(filtered)


def job(kind: Any, params: dict[str, Any]) -> Any:
    return kind.model_validate({"params": json.loads(json.dumps(params, default=str))})


def do(job: Any) -> None:
    run(workload_of(job))


def run(workload: Workload[Any]) -> None:
    workload.work.prepare(workload.files)
    for file in workload.files:
        workload.work.run(file)
