"""The bottleneck of embedding: the stage that waited least for another.

Knows what to change where it is the tokenizer, which keeps the encoder waiting.
"""

from collections.abc import Mapping

from mlfilter_core.wording import rough_share

CLEAR_SHARE = 0.05  # arbitrary: every encoder waits for its first window


def bottleneck(waited_s: Mapping[str, float]) -> str | None:
    """Returns the stage that waited least; None where there are no stages.

    Args:
        waited_s: Seconds that each stage waited for another.
    """
    return min(waited_s, key=lambda stage: waited_s[stage], default=None)


def advice(waited_s: Mapping[str, float], seconds: float) -> str:
    """Returns what to change where the tokenizer keeps the encoder waiting; otherwise nothing.

    Args:
        waited_s: Seconds that each stage waited for another.
        seconds: Seconds in which each of them was busy or waited.
    """
    starved_s = waited_s.get("encoding", 0.0)
    if bottleneck(waited_s) != "tokenizing" or starved_s < CLEAR_SHARE * seconds:
        return ""
    return (
        f"the encoder waited {rough_share(starved_s, seconds)} of the time, mostly for tokens: give each worker more "
        "cores (slurm_settings.cpus_per_task, or fewer local_settings.workers); ml_filter plan on a GPU node says how "
        "many"
    )
