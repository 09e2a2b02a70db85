import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.model_files import ModelFiles
from tests.output_folders import make_outputs

WriteOutputs = Callable[..., Path]


@pytest.fixture
def write_outputs(tmp_path: Path, tiny_files: ModelFiles, tiny_encoder: Encoder) -> WriteOutputs:
    """Makes an output folder in tmp_path; takes the arguments of `make_outputs` from `files` on."""
    return functools.partial(make_outputs, tmp_path, tiny_files, tiny_encoder)
