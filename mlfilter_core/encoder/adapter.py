"""LoRA adapters: a folder with changes to the weights of another model, which peft adds and merges."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from mlfilter_core.errors import EncoderError

ADAPTER_CONFIG = "adapter_config.json"

_log = logging.getLogger(__name__)


def base_model(settings: dict[str, Any], folder: Path) -> str:
    """Returns the id or path of the model that an adapter changes.

    Args:
        settings: Content of the adapter's `adapter_config.json`.
        folder: Its folder, for messages.

    Raises:
        EncoderError: The adapter does not name it, or peft is not installed.
    """
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise EncoderError(f"embedding_model: {folder / ADAPTER_CONFIG} names no base_model_name_or_path; add it")
    if importlib.util.find_spec("peft") is None:
        raise EncoderError(
            f"embedding_model: {folder} is an adapter for {base}; install peft (pip install 'mlfilter[lora]'), or save "
            "the merged model with merge_and_unload().save_pretrained(...)"
        )
    return base


def merge_adapters(model: Any) -> None:
    """Adds the adapters of a model to its weights, in place, so that they cost no time. Does nothing without any.

    An adapter that cannot be merged stays as it is, which gives the same embeddings.
    """
    if not getattr(model, "peft_config", None):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            try:
                module.merge(safe_merge=True)
            except (RuntimeError, ValueError, NotImplementedError) as error:  # such as LoRA with a bias of its own
                _log.info("%s keeps its adapter beside its weights: %s", name, error)
                continue
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
