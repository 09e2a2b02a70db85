"""Runs from job files, where they are refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from flows.running.start import run_job_file, run_pipeline
from mlfilter_core.errors import ConfigError, HeadError
from tests.flows.conftest import WriteJob

NONE: tuple[Path, dict[str, Any]] = (Path("/none/job.yaml"), {})


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="there is no kind of job embd; the kinds are: embed, cluster, train_head, annotate, ded"
    ):
        run_job_file("embd", NONE[0])


def test_a_step_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="a pipeline has no step fliter; its steps are: embed, cluster, train, ann"):
        run_pipeline({"embed": NONE, "annotate": NONE, "fliter": NONE})


def test_a_pipeline_without_a_step_that_it_needs_is_refused() -> None:
    with pytest.raises(ConfigError, match="a pipeline needs the step annotate; give its job file"):
        run_pipeline({"embed": NONE})


def test_each_job_file_of_a_pipeline_is_read_once(
    embed_job: WriteJob, annotate_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    load = OmegaConf.load

    def counting_load(path: Path) -> Any:
        read.append(path)
        return load(path)

    monkeypatch.setattr(OmegaConf, "load", counting_load)
    embed, annotate = embed_job(), annotate_job(regression_head_checkpoints={"quality": "/none/quality.pt"})
    with pytest.raises(HeadError, match=r"/none/quality\.pt"):  # from within the flow, before its first step
        run_pipeline({"embed": (embed, {}), "annotate": (annotate, {})})
    assert read == [embed, annotate]
