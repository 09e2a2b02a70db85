"""Records of draw files, as language models write them."""

from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.evaluation.scale import Scale


@pytest.fixture
def scale() -> Scale:
    """0 to 5."""
    return Scale((0.0, 1.0, 2.0, 3.0, 4.0, 5.0))


def draw_record(
    document_id: Any, scores: Any, raw: Path | str = "raw.jsonl", model: str = "org/model"
) -> dict[str, Any]:
    """One record of a draw file, with the used fields and an unused one."""
    return {
        "document_id": document_id,
        "scores": scores,
        "explanations": ["..."],
        "meta_information": {"prompt_name": "edu", "model_name": model, "raw_data_file_path": str(raw)},
    }
