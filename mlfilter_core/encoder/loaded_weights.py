"""Whether the files of a model contain every weight that its forward pass uses.

transformers fills a weight that it does not find at random, so that two workers would write different embeddings.
"""

import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedModel

from mlfilter_core.encoder.model_files import has_own_code
from mlfilter_core.errors import EncoderError

N_NAMED = 3  # tensors in a message: arbitrary
TRIAL_TOKENS = 8  # arbitrary; a forward pass uses the same weights for any number
WITHOUT_EFFECT = ("num_batches_tracked",)  # of BatchNorm, outside of training
_IN_A_LAYER = re.compile(r"\.\d+\.")

_log = logging.getLogger(__name__)
_loading = threading.Lock()


@dataclass
class LoadedWeights:
    """Names of weights that a model and its files do not share.

    Attributes:
        missing: Weights of the model that no file has.
        surplus: Tensors of the files that the model does not use.
    """

    missing: set[str] = field(default_factory=set)
    surplus: set[str] = field(default_factory=set)


@contextmanager
def recording_weights() -> Iterator[LoadedWeights]:
    """Yields what transformers finds missing or surplus in the models that are loaded meanwhile.

    sentence-transformers loads its model by `from_pretrained`, and keeps only the model of what that returns. The
    report that transformers itself logs is left out: it advises to train a pooler that nothing uses.
    """
    log_of_transformers = logging.getLogger("transformers.modeling_utils")
    found = LoadedWeights()

    def from_pretrained(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> Any:
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = own.__get__(None, cls)(*args, output_loading_info=True, **kwargs)
        # An adapter (see encoder/adapter.py) wraps a layer as its base_layer.
        found.missing |= {name.replace(".base_layer.", ".") for name in info["missing_keys"]}
        found.surplus |= set(info["unexpected_keys"])
        return (model, info) if wants_info else model

    with _loading:  # one model at a time: the class is changed for all threads
        own = PreTrainedModel.__dict__["from_pretrained"]
        PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment, method-assign]
        log_of_transformers.addFilter(_is_no_report)  # with a higher level, transformers 5.23 logs other warnings
        try:
            yield found
        finally:
            log_of_transformers.removeFilter(_is_no_report)
            PreTrainedModel.from_pretrained = own  # type: ignore[method-assign]


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def check_weights(transformer: Transformer, found: LoadedWeights, folder: Path, runs_own_code: bool) -> list[str]:
    """Checks that the forward pass uses no weight that was not loaded; a missing pooler or head is fine.

    Args:
        transformer: The transformer of sentence-transformers, on its device.
        found: Result of `recording_weights`.
        folder: Folder of the model, for messages.
        runs_own_code: Whether code that the model ships was loaded.

    Returns:
        Warnings: of layers in the files that the model does not have.

    Raises:
        EncoderError: It uses such a weight, or an adapter has tensors that were not loaded; names some, and the likely
            cause.
    """
    model = transformer.model
    if found.surplus and getattr(model, "peft_config", None):
        raise EncoderError(
            f"embedding_model: {folder} is an adapter with {len(found.surplus)} tensors that transformers does not "
            f"load, among them {_named(sorted(found.surplus))}; save the merged model with merge_and_unload()"
        )
    used = sorted(_used(transformer, found.missing))
    if used:
        raise EncoderError(
            f"embedding_model: {folder} lacks {len(used)} weights of {type(model).__name__}, among them "
            f"{_named(used)}: they would be random; {_cure(found, folder, runs_own_code)}"
        )
    in_layers = sorted(name for name in found.surplus if _IN_A_LAYER.search(name))
    if not in_layers:
        return []
    return [
        f"embedding_model: {folder} contains {len(in_layers)} tensors of layers that {type(model).__name__} does not "
        f"have, among them {_named(in_layers)}; they are not used. If that is not intended, correct config.json"
    ]


@torch.inference_mode()
def _used(transformer: Transformer, names: set[str]) -> set[str]:
    """Returns those weights that token embeddings depend on, found by changing them; also those of any expert.

    A text may not reach an expert. Gradients are no alternative: buffers have none, and some models compute without.
    """
    state = transformer.model.state_dict()
    missing = {name: state[name] for name in names if name in state and not name.endswith(WITHOUT_EFFECT)}
    used = {name for name, tensor in missing.items() if ".experts." in name or not tensor.is_floating_point()}
    if used == missing.keys():
        return used
    n_tokens = min(TRIAL_TOKENS, transformer.model.config.get_text_config().vocab_size)
    input_ids = torch.arange(n_tokens, device=transformer.model.device)[None]

    def embeddings() -> torch.Tensor:
        features = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        tokens: torch.Tensor = transformer(features)["token_embeddings"]
        return tokens

    try:
        before = embeddings()
        for name in sorted(missing.keys() - used):
            missing[name].normal_()
            after = embeddings()
            if not torch.equal(after, before):
                used.add(name)
            before = after
    except Exception:  # a model's own code raises anything
        _log.debug("which weights are used is unknown", exc_info=True)
        return set(missing)
    return used


def _cure(found: LoadedWeights, folder: Path, runs_own_code: bool) -> str:
    if has_own_code(folder) and not runs_own_code:
        return (
            "its config.json names code of its own, without which it is another model: read that code, and set "
            "params.trust_remote_code: true to run it"
        )
    if found.surplus:
        return (
            f"its files contain {_named(sorted(found.surplus))} instead: save the model with save_pretrained(...), or "
            "correct config.json"
        )
    return "download it again, or correct config.json"


def _named(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
