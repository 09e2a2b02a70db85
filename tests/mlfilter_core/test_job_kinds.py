from pathlib import Path

import pytest

from mlfilter_core.errors import ConfigError
from mlfilter_core.job_kinds import kind_of_flow, kinds, load_job_of_kind

DEPLOYMENTS = Path(__file__).parents[2] / "deployments/local"


@pytest.mark.parametrize("asked", ["embed", "train_head", "annotate", "filter"])
@pytest.mark.parametrize("written", ["embed", "train_head", "annotate", "filter"])
def test_a_job_file_of_another_kind_is_named_as_that(asked: str, written: str) -> None:
    kind, path = kind_of_flow(asked), DEPLOYMENTS / f"{written}.yaml"
    assert kind is not None
    if asked == written:
        assert type(load_job_of_kind(path, kind, {})) is kind.config
        return
    with pytest.raises(ConfigError, match=rf"{written}\.yaml is a job file of {written}, as .*or give one of {asked}"):
        load_job_of_kind(path, kind, {})


def test_a_job_file_of_no_kind_is_explained_by_its_fields(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("params: {output_dir: out}\n")
    for kind in kinds():
        with pytest.raises(ConfigError, match=rf"params\.{kind.field}: missing"):
            load_job_of_kind(tmp_path / "job.yaml", kind, {})
