"""What a job costs: hours of a GPU or of a core for its documents, and money where the job names the price of an hour.

The hours are those of the work alone: workers that start, or wait for the largest file, are paid for beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mlfilter_core.plan.estimates import Estimate
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import PlannedWorkers, Section
from mlfilter_core.wording import HOUR_S, number

BILLION, MILLION = 1e9, 1e6


@dataclass(frozen=True)
class MeasuredSpeed:
    """What one worker did on this machine.

    Attributes:
        device: Device of the worker.
        threads: Cores that it used; they count where the device is the CPU.
        corpus_s: Its seconds for the whole corpus.
        million_documents_s: Its seconds for a million documents.
        billion_tokens_s: Its seconds for a billion tokens; None where there are no tokens.
    """

    device: str
    threads: int
    corpus_s: Estimate
    million_documents_s: Estimate
    billion_tokens_s: Estimate | None = None


def cost_section(
    speed: MeasuredSpeed, price_per_hour: float | None, workers: PlannedWorkers, findings: Findings
) -> Section:
    """Returns the hours of a job, and their price.

    Args:
        speed: Speed of one worker.
        price_per_hour: Price of one of these hours; None where it is unknown.
        workers: Workers that the job asks for.
        findings: Receives a warning where the price is that of another device than the measured one.
    """
    on_cpu = speed.device == "cpu"
    unit, n_units = ("core-hour", speed.threads) if on_cpu else ("GPU-hour", 1)
    amounts = {
        "per billion tokens": speed.billion_tokens_s,
        "per million documents": speed.million_documents_s,
        "for the corpus": speed.corpus_s,
    }
    hours = {name: seconds.times(n_units / HOUR_S) for name, seconds in amounts.items() if seconds is not None}
    facts = {"device": speed.device, "unit": unit, "hours": _facts(hours), "price_per_hour": price_per_hour}
    lines = [("cost", f"in {unit}s: {_words(hours)}")]
    # Of a local run, the device says what its workers have.
    is_other = workers.has_gpu if on_cpu else workers.are_elsewhere and not workers.has_gpu
    if price_per_hour is not None and is_other:
        priced, measured = ("GPU", "CPU") if on_cpu else ("core", "GPU")
        findings.add_warning(
            f"price_per_hour is that of a {priced}, and the speed here is that of a {measured}: no price is stated"
        )
    elif price_per_hour is not None:
        money = {name: amount.times(price_per_hour) for name, amount in hours.items()}
        facts["money"] = _facts(money)
        lines.append(("", f"at {number(price_per_hour)} for a {unit}: {_words(money)}"))
    return Section("cost", facts, lines)


def _facts(amounts: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name.replace(" ", "_"): amount.to_json() for name, amount in amounts.items()}


def _words(amounts: Mapping[str, Estimate]) -> str:
    return ", ".join(f"{amount.words(number)} {name}" for name, amount in amounts.items())
