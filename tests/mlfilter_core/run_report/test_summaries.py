from pathlib import Path

from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.pictures import pictures_of, summary_of
from mlfilter_core.run_report.summaries import escaped
from tests.mlfilter_core.run_report.conftest import WriteOutputs
from tests.output_folders import documents, head
from tests.pipeline_folder import make_pipeline


def test_heads_and_filters_are_summed_up(tmp_path: Path, tiny_model: Path) -> None:
    facts = collect(make_pipeline(tmp_path, tiny_model))
    heads, kept = summary_of(facts, "train_head"), summary_of(facts, "filter")
    assert [line.partition(" | ")[0] for line in heads.splitlines()[2:]] == ["| head", "| ---", "| fine", "| good"]
    assert "spearman" in heads
    assert "| good | percentile 60 | de: " in kept and "## Kept by language" in kept
    assert kept.count("- above, **") == kept.count("- below, **") == 8
    assert list(pictures_of(facts, "train_head")) == ["fine", "good"]
    assert set(pictures_of(facts, "filter")) == {"score_fine, with limits", "score_good, with limits"}


def test_a_folder_without_heads_and_filtered_files_has_no_summary(write_outputs: WriteOutputs) -> None:
    facts = collect(write_outputs({"a.jsonl": documents("a", 3)}, (head("education", 1),)))
    assert {summary_of(facts, flow) for flow in ("embed", "train_head", "annotate", "filter", "survey", "x")} == {""}


def test_texts_stay_text_in_markdown() -> None:
    assert escaped("a|b\n<script>*x*") == r"a\|b \<script\>\*x\*"
