"""Untrusted models and checkpoints: only code that the job allows runs, and nothing else is downloaded."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling

from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import code_elsewhere, resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import EncoderError
from mlfilter_core.files.task_files import find_files
from tests.conftest import TINY_DIM


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code ran"


def load(folder: Path, **settings: Any) -> None:
    load_encoder(resolve_model(str(folder)), EncoderSettings(**settings), "cpu", 512)


def saved_with_dense(tiny_model: Path, folder: Path) -> Path:
    transformer = Transformer(str(tiny_model))
    SentenceTransformer(modules=[transformer, Pooling(TINY_DIM, "mean"), Dense(TINY_DIM, 24)]).save(str(folder))
    return folder


def write_code(folder: Path, marker: Path) -> None:
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nimport torch\nclass Own(torch.nn.Module): pass\n"
    (folder / "own.py").write_text(code)


def test_weights_that_are_a_pickle_with_code_are_refused(model: Path, marker: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Code(marker)}, model / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"embedding_model: .*model does not load: "):
        load(model)
    assert not marker.exists()


def test_a_dense_layer_that_is_a_pickle_with_code_is_refused(tiny_model: Path, tmp_path: Path, marker: Path) -> None:
    folder = saved_with_dense(tiny_model, tmp_path / "dense")
    (folder / "2_Dense/model.safetensors").unlink()
    (folder / "2_Dense/pytorch_model.bin").write_bytes(pickle.dumps(Code(marker)))
    with pytest.raises(EncoderError, match=r"embedding_model: .*dense does not load: "):
        load(folder)
    assert not marker.exists()


def test_an_activation_that_is_code_is_refused_and_not_replaced(tiny_model: Path, tmp_path: Path) -> None:
    folder = saved_with_dense(tiny_model, tmp_path / "dense")
    config = json.loads((folder / "2_Dense/config.json").read_text())
    (folder / "2_Dense/config.json").write_text(json.dumps({**config, "activation_function": "os.system"}))
    with pytest.raises(EncoderError, match=r"2_Dense/config.json names os.system as activation, .*read that code, and"):
        load(folder)


def test_modules_of_the_model_s_own_run_only_where_the_job_says_so(
    tiny_model: Path, tmp_path: Path, marker: Path
) -> None:
    folder = saved_with_dense(tiny_model, tmp_path / "dense")
    write_code(folder, marker)
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "own.Own"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=r"does not load: .*own.Own.*third-party code"):
        load(folder)
    assert not marker.exists()
    with pytest.raises(EncoderError, match="does not load"):  # it runs now, but is not a suitable module
        load(folder, trust_remote_code=True)
    assert marker.exists()


def test_a_model_class_of_the_model_s_own_does_not_run(model: Path, marker: Path) -> None:
    write_code(model, marker)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModel": "own.Own", "AutoConfig": "own.Own"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=r"does not load: The repository .* contains custom code"):
        load(model)
    assert not marker.exists()


def test_code_of_other_repositories_is_named(model: Path) -> None:
    assert code_elsewhere(model) == []
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "org/other--own.Own", "AutoTokenizer": ["own.Own", "org/third--own.Own"]}
    (model / "config.json").write_text(json.dumps(config))
    assert code_elsewhere(model) == ["org/other", "org/third"]


def test_offline_nothing_is_asked_of_the_hub(tmp_path: Path) -> None:
    code = """
import socket, sys
def refuse(*args): raise AssertionError(f"reached out to {args}")
socket.getaddrinfo = socket.socket.connect = refuse
from mlfilter_core.errors import EncoderError
from mlfilter_core.encoder.model_files import resolve_model
try:
    resolve_model("org/absent")
except EncoderError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "org/absent is neither a local folder nor available from the hub" in done.stdout


def test_a_loop_of_links_is_walked_once(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "a").mkdir(parents=True)
    (corpus / "a/x.jsonl").write_text("{}")
    (corpus / "a/loop").symlink_to(corpus)
    (corpus / "b").symlink_to(corpus / "a")
    (corpus / "self.jsonl").symlink_to(corpus / "self.jsonl")
    found = find_files(corpus, "**/*", SOURCE_SUFFIXES)
    assert [file.relative for file in found] == ["a/x.jsonl", "self.jsonl"]
    assert all(file.output(tmp_path / "out", ".h5").is_relative_to(tmp_path / "out") for file in found)
