import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.errors import EncoderError
from tests.conftest import tiny_bert, tiny_tokenizer
from tests.mlfilter_core.encoder.conftest import TEXTS, TOLERANCE, encode, tiny

# peft 0.21 asks transformers 5 for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of the tiny model, whose change is not zero."""
    changed = get_peft_model(tiny_bert(seed=0), LoraConfig(r=4, target_modules=["query", "value"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    changed.peft_config["default"].base_model_name_or_path = str(tiny_model)
    changed.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    changed.merge_and_unload().save_pretrained(tmp_path / "merged")
    tiny_tokenizer().save_pretrained(tmp_path / "merged")
    return tmp_path / "adapter"


def test_an_adapter_is_merged_into_its_model(adapter: Path, tiny_model: Path) -> None:
    encoder = tiny(adapter)
    found = encode(encoder, TEXTS)
    np.testing.assert_allclose(found, encode(tiny(adapter.parent / "merged"), TEXTS), atol=TOLERANCE)
    assert np.abs(found - encode(tiny(tiny_model), TEXTS)).max() > 0.01
    assert not any("lora" in name for name, _ in encoder.forward_pass.model.named_modules())


def test_the_weights_of_its_model_are_part_of_the_digest(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    own = resolve_model(str(adapter)).weights_sha256
    other = shutil.copytree(tiny_model, tmp_path / "other")
    tiny_bert(seed=1).save_pretrained(other)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(other)}))
    assert resolve_model(str(adapter)).weights_sha256 != own


def test_an_adapter_of_which_a_part_is_not_loaded_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """DoRA's magnitudes."""
    changed = get_peft_model(tiny_bert(seed=0), LoraConfig(r=4, target_modules=["query"], use_dora=True))
    changed.peft_config["default"].base_model_name_or_path = str(tiny_model)
    changed.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match=r"is an adapter with \d+ tensors that .* does not load, .*magnitude"):
        tiny(tmp_path)


def test_without_peft_the_message_says_what_to_install(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        EncoderError, match=r"is an adapter for .*tiny-bert; install peft \(pip install 'mlfilter\[lora"
    ):
        resolve_model(str(adapter))
