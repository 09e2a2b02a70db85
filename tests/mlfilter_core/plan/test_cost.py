import json
from dataclasses import replace

import pytest

from mlfilter_core.plan.cost import MeasuredSpeed, cost_section
from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import PlannedWorkers

ON_GPUS = PlannedWorkers(4, 1, 8, True, False, "4 workers on this machine")
ON_CPU = PlannedWorkers(1, 1, 2, False, False, "1 worker on this machine")
HOUR = 3600
CORPUS, MILLION_DOCUMENTS = Estimate(12 * HOUR, 10 * HOUR, 14 * HOUR), Estimate(2 * HOUR, 1.5 * HOUR, 2.5 * HOUR)


def speed(device: str, threads: int, billion_tokens_s: Estimate | None = None) -> MeasuredSpeed:
    return MeasuredSpeed(device, threads, CORPUS, MILLION_DOCUMENTS, billion_tokens_s)


def test_the_hours_of_a_gpu_and_their_price_have_the_intervals_of_the_corpus() -> None:
    section = cost_section(speed("cuda", 8, Estimate.exact(HOUR / 2)), 2.5, ON_GPUS, Findings())
    assert section.lines == [
        (
            "cost",
            "in GPU-hours: 0.5 per billion tokens, about 2 (1.5 to 2.5) per million documents, "
            "about 12 (10 to 14) for the corpus",
        ),
        (
            "",
            "at 2.5 for a GPU-hour: 1.25 per billion tokens, about 5 (3.75 to 6.25) per million documents, "
            "about 30 (25 to 35) for the corpus",
        ),
    ]
    facts = json.loads(json.dumps(section.facts))
    assert facts["unit"] == "GPU-hour"
    assert facts["hours"]["for_the_corpus"] == {"value": 12, "low": 10, "high": 14}
    assert facts["money"]["per_billion_tokens"]["value"] == 1.25
    assert facts["price_per_hour"] == 2.5


def test_on_a_cpu_the_hours_are_those_of_all_cores() -> None:
    section = cost_section(speed("cpu", 2), 0.04, ON_CPU, Findings())
    assert [words for _, words in section.lines] == [
        "in core-hours: about 4 (3 to 5) per million documents, about 24 (20 to 28) for the corpus",
        "at 0.04 for a core-hour: about 0.16 (0.12 to 0.2) per million documents, "
        "about 0.96 (0.8 to 1.12) for the corpus",
    ]


def test_without_a_price_there_is_no_money() -> None:
    section = cost_section(speed("cuda", 2), None, ON_GPUS, Findings())
    assert len(section.lines) == 1
    assert "money" not in section.facts


def test_a_price_of_gpus_is_not_that_of_the_cpu_on_which_the_plan_runs() -> None:
    findings = Findings()
    section = cost_section(speed("cpu", 2), 2.5, ON_GPUS, findings)
    assert "money" not in section.facts
    assert findings.warnings == [
        "price_per_hour is that of a GPU, and the speed here is that of a CPU: no price is stated"
    ]


def test_a_price_of_cores_is_not_that_of_the_gpu_on_which_the_plan_runs() -> None:
    findings, elsewhere = Findings(), replace(ON_CPU, are_elsewhere=True)
    assert "money" not in cost_section(speed("cuda", 2), 0.04, elsewhere, findings).facts
    assert findings.warnings == [
        "price_per_hour is that of a core, and the speed here is that of a GPU: no price is stated"
    ]


@pytest.mark.parametrize(("seconds", "words"), [(36, "0.01"), (HOUR * 123_456, "123,456")])
def test_small_and_large_costs_can_be_read(seconds: float, words: str) -> None:
    cost = MeasuredSpeed("cuda", 1, Estimate.exact(seconds), Estimate.exact(HOUR))
    assert cost_section(cost, None, ON_GPUS, Findings()).lines[0][1].endswith(f", {words} for the corpus")
