import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from mlfilter_core.evaluation.agreement import MeasureOptions
from mlfilter_core.evaluation.annotator_result import AnnotatorResult, annotator_result
from mlfilter_core.evaluation.evaluation_figures import MAX_BINS, _bins, draw_confusion, draw_invalid, draw_scores
from mlfilter_core.evaluation.predictions import Predictions
from mlfilter_core.evaluation.scale import Scale
from mlfilter_core.evaluation.truth import Truth

DRAW = [draw_confusion, draw_scores, draw_invalid]


def result(scale: Scale, annotator: str = "m", spread: float = 1.0) -> AnnotatorResult:
    rng = np.random.default_rng(0)
    truth = Truth([Path("gt.jsonl")], {str(i): float(rng.choice(scale.labels)) for i in range(200)})
    part = Predictions(annotator, "de", Path("m.jsonl"))
    for document_id, score in truth.scores.items():
        part.add(document_id, None if rng.random() < 0.1 else score + spread * rng.normal(), truth)
    return annotator_result([part], truth, MeasureOptions(scale, n_resamples=0))


@pytest.mark.parametrize("draw", DRAW)
def test_a_figure_appears_whole_with_ink_on_it_and_without_pyplot(draw, scale: Scale, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    draw(result(scale), tmp_path / "de" / "x.png")
    image = imread(tmp_path / "de" / "x.png")
    assert min(image.shape[:2]) > 400
    assert image[..., :3].std() > 0.1
    assert [path.name for path in (tmp_path / "de").iterdir()] == ["x.png"]
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("annotator", ["a$b$c^{", "名前", "org__" + "model-" * 40, "<b>&\\frac"])
def test_any_name_can_be_a_title(draw, annotator: str, scale: Scale, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    draw(result(scale, annotator), tmp_path / "x.png")
    assert imread(tmp_path / "x.png").size


@pytest.mark.parametrize("scale", [Scale((3.0,)), Scale((-2.0, 0.5, 40.0)), Scale(tuple(np.arange(101.0).tolist()))])
@pytest.mark.parametrize("spread", [0.0, 1e30])
def test_any_scale_and_any_scores_can_be_drawn(scale: Scale, spread: float, tmp_path: Path) -> None:
    for draw in DRAW:
        draw(result(scale, spread=spread), tmp_path / "x.png")
        assert max(imread(tmp_path / "x.png").shape) < 3000


def test_bins_have_labels_in_their_middle_and_a_bounded_number(scale: Scale) -> None:
    of_labels = _bins(scale, np.array([0.0, 3.0]))
    assert ((of_labels[1:] + of_labels[:-1]) / 2).tolist() == [-1, 0, 1, 2, 3, 4, 5, 6]
    between = _bins(scale, np.array([0.3]))
    assert {0.0, 1.0, 5.0} <= set(((between[1:] + between[:-1]) / 2).tolist())
    assert np.allclose(np.diff(between), 0.25)
    assert len(_bins(Scale((0.0, 1e-6, 1e6)), np.array([0.5]))) <= MAX_BINS + 3


def test_settings_of_the_process_are_left_alone(scale: Scale, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    draw_confusion(result(scale), tmp_path / "x.png")
    assert dict(mpl.rcParams) == before
