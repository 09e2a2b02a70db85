from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.execution import Job
from mlfilter_core.config.filtering import FilterJob
from mlfilter_core.config.training import TrainingJob
from mlfilter_core.errors import ConfigError, HeadError
from mlfilter_core.job_kinds import course_of, kind_of_flow, kinds, load_job_of_kind, workload_of

DEPLOYMENTS = Path(__file__).parents[2] / "deployments/local"


@pytest.mark.parametrize("asked", ["embed", "train_head", "annotate", "filter"])
@pytest.mark.parametrize("written", ["embed", "train_head", "annotate", "filter"])
def test_a_job_file_of_another_kind_is_named_as_that(asked: str, written: str) -> None:
    kind, path = kind_of_flow(asked), DEPLOYMENTS / f"{written}.yaml"
    assert kind is not None
    if asked == written:
        assert type(load_job_of_kind(path, kind, {})) is kind.config
        return
    command = written.replace("_", "-")
    with pytest.raises(
        ConfigError, match=rf"{written}\.yaml is a job file of {written}, as .*; run it with `ml_filter {command}`, or"
    ):
        load_job_of_kind(path, kind, {})


def test_a_job_file_of_no_kind_is_explained_by_its_fields(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("params: {output_dir: out}\n")
    for kind in kinds():
        with pytest.raises(ConfigError, match=rf"params\.{kind.field}: missing"):
            load_job_of_kind(tmp_path / "job.yaml", kind, {})


STEPS: list[tuple[type[Job], dict[str, Any], str, str]] = [
    (AnnotationJob, {"regression_head_checkpoints": {}}, "embeddings_directory", "embed"),
    (TrainingJob, {"heads": {"good": {}}}, "embeddings_directory", "embed"),
    (FilterJob, {"keep": {"scores": {"good": {}}}}, "annotated_directory", "annotate"),
]


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(("kind", "params", "field", "command"), STEPS)
def test_a_step_before_the_one_that_it_needs_names_the_command_of_that(
    kind: type[Job], params: dict[str, Any], field: str, command: str, exists: bool, tmp_path: Path
) -> None:
    if "regression_head_checkpoints" in params:
        save_file({"0.weight": torch.ones(1, 4), "0.bias": torch.ones(1)}, tmp_path / "x.safetensors")
        params = {"regression_head_checkpoints": {"good": str(tmp_path / "x.safetensors")}}
    folder = tmp_path / "inputs"
    if exists:
        folder.mkdir()
        (folder / "corpus.txt").touch()
    job = kind.model_validate({"params": {**params, field: folder, "output_dir": tmp_path / "out"}})
    what = f"no file below {folder} matches" if exists else f"the folder {folder} does not exist"
    advice = f", or run `ml_filter {command}` first, which writes such files$"
    with pytest.raises(ConfigError, match=f"^{what}.*{advice}"):
        next(course_of(job))


def test_a_head_that_is_not_trained_yet_names_the_command_that_trains(tmp_path: Path) -> None:
    params = {"embeddings_directory": tmp_path, "output_dir": tmp_path / "out"}
    (tmp_path / "x.h5").touch()
    heads = {"good": str(tmp_path / "heads/good.safetensors")}
    job = AnnotationJob.model_validate({"params": {**params, "regression_head_checkpoints": heads}})
    with pytest.raises(HeadError, match=r"good\.safetensors does not exist; fix .* run `ml_filter train-head` first"):
        workload_of(job)
