import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

from mlfilter_core.annotating.work import annotate_work
from mlfilter_core.config.annotation import AnnotationPipelineParameters, Scoring
from mlfilter_core.config.embedding import EmbeddingJob, EmbeddingPipelineParameters
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding.work import embed_work, embedding_workload
from mlfilter_core.embedding_store.layout import EMBEDDING_SUFFIXES
from mlfilter_core.errors import HeadError
from mlfilter_core.files.task_files import TaskFile, find_files
from mlfilter_core.work.workload import Work


def do(work: Work, folder: Path, suffixes: tuple[str, ...]) -> None:
    """Runs the work on the files of a folder, as a flow and its workers do."""
    files = find_files(folder, "**/*", suffixes)
    assert [work.finished(file, read_content=False) for file in files] == [None]
    work.prepare(files)
    on_worker: tuple[Work, list[TaskFile]] = pickle.loads(pickle.dumps((work, files)))
    assert on_worker[0].run(on_worker[1][0]).documents == 1


@pytest.mark.usefixtures("heads")  # they are written to tmp_path
def test_several_jobs_and_their_workers_hash_each_file_of_the_model_and_the_heads_once(
    tiny_model: Path, tmp_path: Path, hashed: list[Path]
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "x.jsonl").write_text(json.dumps({"id": "a", "text": "one"}))
    checkpoints = {"quality": str(tmp_path / "linear.pt"), "topics": str(tmp_path / "mlp.pt")}
    for name in ("first", "second"):
        embedding = EmbeddingPipelineParameters(
            input_dir=tmp_path / "corpus",
            text_field="text",
            output_dir=tmp_path / name,
            embedding_model=str(model),
            max_batch_tokens=512,
            annotate_inline=Scoring(regression_head_checkpoints=checkpoints, output_keys=("document_id",)),
        )
        do(embed_work(embedding), embedding.input_dir, SOURCE_SUFFIXES)
        annotation = AnnotationPipelineParameters(
            embeddings_directory=embedding.embedding_output_dir,
            output_dir=tmp_path / f"{name} again",
            regression_head_checkpoints=checkpoints,
            output_keys=("document_id",),
        )
        do(annotate_work(annotation), annotation.embeddings_directory, EMBEDDING_SUFFIXES)
    hashed_once = [path for path in hashed if path.suffix in (".pt", ".safetensors", ".json") or path.parent == model]
    assert {tmp_path / "linear.pt", tmp_path / "mlp.pt", model / "model.safetensors"} < {*hashed_once}
    assert len(hashed_once) == len({*hashed_once})


@pytest.fixture
def classifier(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder that is an encoder and a sequence classifier, as those on the hub are."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "classifier"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(folder, num_labels=1, architectures=["BertForSequenceClassification"])
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def inline_job(tmp_path: Path, classifier: Path, **params: Any) -> EmbeddingPipelineParameters:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "x.jsonl").write_text(json.dumps({"id": "a", "text": "one"}))
    scoring = Scoring(regression_head_checkpoints={"edu": str(classifier)}, output_keys=("document_id",))
    return EmbeddingPipelineParameters(
        input_dir=tmp_path / "corpus",
        text_field="text",
        output_dir=tmp_path / "out",
        embedding_model=str(classifier),
        max_batch_tokens=512,
        annotate_inline=scoring,
        **params,
    )


def test_one_folder_can_be_the_encoder_and_the_head(classifier: Path, tmp_path: Path) -> None:
    params = inline_job(tmp_path, classifier, pooling="cls")
    do(embed_work(params), params.input_dir, SOURCE_SUFFIXES)
    model = BertForSequenceClassification.from_pretrained(classifier).eval()
    tokens = AutoTokenizer.from_pretrained(classifier)("one", return_tensors="pt")
    with torch.inference_mode():
        expected = model(**tokens).logits.item()
    written = json.loads((params.annotated_output_dir / "x.jsonl").read_text())
    assert written["score_edu"] == pytest.approx(expected, abs=1e-5)


def test_another_pooling_than_that_of_the_head_is_refused_before_the_first_file(
    classifier: Path, tmp_path: Path
) -> None:
    params = inline_job(tmp_path, classifier, pooling="mean")
    work = embed_work(params)
    files = find_files(params.input_dir, "**/*", SOURCE_SUFFIXES)
    with pytest.raises(
        HeadError, match=r"differ in pooling \('cls' and 'mean'\)\. Embed with params\.pooling: cls, or"
    ):
        work.prepare(files)


def test_the_pooling_of_the_model_itself_is_refused_with_the_one_to_set(classifier: Path, tmp_path: Path) -> None:
    params = inline_job(tmp_path, classifier)
    work = embed_work(params)
    files = find_files(params.input_dir, "**/*", SOURCE_SUFFIXES)
    work.prepare(files)
    with pytest.raises(HeadError, match=r"Embed with params\.pooling: cls, or use the head"):
        work.run(files[0])
    assert not params.embedding_output_dir.exists() or not any(params.embedding_output_dir.glob("*.h5"))


@pytest.mark.parametrize(("n_bytes", "why"), [(1000, "without a trial, as the corpus is small"), (2 << 20, "smallest")])
def test_a_small_corpus_is_embedded_without_a_trial_of_batch_sizes(
    tiny_model: Path, tmp_path: Path, n_bytes: int, why: str
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/x.jsonl").write_text(json.dumps({"text": "one", "not read": "x" * n_bytes}))
    params = {"input_dir": tmp_path / "corpus", "output_dir": tmp_path / "out", "embedding_model": str(tiny_model)}
    own = {"text_field": "text", "openvino": False}  # which has no trial
    workload = embedding_workload(EmbeddingJob.model_validate({"params": {**params, **own}}))
    assert why in workload.work.run(workload.files[0]).encoder
