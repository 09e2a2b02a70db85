"""Whether a model tells its attention the windows of its layers, or only the mask, which unpadded attention ignores.

A trial of short texts cannot tell: a window above their length changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mlfilter_core.encoder.attention import UNPADDED

SLIDING, CHUNKED = "sliding_attention", "chunked_attention"  # layer_types of transformers' configurations


@contextmanager
def recording_windows() -> Iterator[list[int]]:
    """Yields a list, to which each call of unpadded attention with a window adds the window meanwhile."""
    attend = ALL_ATTENTION_FUNCTIONS[UNPADDED]
    windows: list[int] = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("sliding_window") is not None:
            windows.append(kwargs["sliding_window"])
        return attend(*args, **kwargs)

    AttentionInterface.register(UNPADDED, recorded)
    try:
        yield windows
    finally:
        AttentionInterface.register(UNPADDED, attend)


def reason_against_windows(model: PreTrainedModel, max_length: int | None, windows: list[int]) -> str | None:
    """Returns why unpadded attention would not be local where the model's is; None if it is.

    Args:
        model: The model.
        max_length: Most tokens of a text; a window of at least as many has no effect. None sets no limit.
        windows: Result of `recording_windows` for some forward passes.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []

    def is_local(name: str) -> bool:
        size = getattr(config, name, None)
        return isinstance(size, int) and size > 0 and (max_length is None or size < max_length)

    if is_local("attention_chunk_size") and (CHUNKED in kinds or not kinds):
        return "its layers attend in chunks"
    if is_local("sliding_window") and (SLIDING in kinds or not kinds) and not windows:
        return "only its mask has windows"
    return None
