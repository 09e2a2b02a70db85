"""Downloads from a server that answers as the hub does, into caches as sites have them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlfilter_core.files.hub import HubError, from_hub
from tests.hub_server import COMMIT, hub
from tests.machines import python_with_mounts

RESOLVE = """
import sys
from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.errors import EncoderError
try:
    print(resolve_model(sys.argv[1], *sys.argv[2:]).revision)
except EncoderError as error:
    print(error)
"""
READ_ONLY = "mount --bind {0} {0}; mount -o remount,ro,bind {0}"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def endpoint(tiny_model: Path) -> Iterator[str]:
    with hub("org/tiny", tiny_model) as url:
        yield url


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path


def resolve(cache: Path, endpoint: str, *arguments: str, mounts: str = "", offline: bool = False) -> str:
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1" if offline else "0"}
    return python_with_mounts(mounts.format(cache), RESOLVE, *(arguments or ("org/tiny",)), **environment).strip()


def test_a_cache_that_has_the_model_is_only_read(cache: Path, endpoint: str) -> None:
    assert resolve(cache, endpoint) == COMMIT
    assert resolve(cache, endpoint, mounts=READ_ONLY) == COMMIT
    assert resolve(cache, NOWHERE, mounts=READ_ONLY) == COMMIT
    assert resolve(cache, endpoint, offline=True) == COMMIT


@pytest.mark.parametrize(
    ("mounts", "reason"),
    [
        ("mount -t tmpfs -o size=40k none {}", "[Errno 28] No space left on device"),
        (READ_ONLY, "[Errno 30] Read-only file system: "),
    ],
)
def test_a_cache_that_cannot_be_written_is_named(cache: Path, endpoint: str, mounts: str, reason: str) -> None:
    said = resolve(cache, endpoint, mounts=mounts)
    assert said.startswith(f"embedding_model: org/tiny is neither a local folder nor available from the hub: {reason}")
    assert said.endswith(
        f"; the cache {cache}/hub cannot be written: set HF_HOME to a folder that you can write, with room"
    )


@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_is_missing_without_a_network_names_the_cache(cache: Path, offline: bool) -> None:
    said = resolve(cache, NOWHERE, offline=offline)
    assert ("outgoing traffic has been disabled" if offline else "Connection refused") in said
    assert said.endswith(
        f"it is not in the cache {cache}/hub: check the name; without a network, run hf download org/tiny elsewhere "
        "with HF_HOME in a folder that both machines share, or give a local folder"
    )


@pytest.mark.parametrize("arguments", [("org/absent",), ("not a name",)])
def test_a_wrong_name_is_an_error_of_the_name(cache: Path, endpoint: str, arguments: tuple[str, ...]) -> None:
    said = resolve(cache, endpoint, *arguments)
    assert said.endswith("check the name and the revision, and log in for a private repository (hf auth login)")


def test_errors_of_the_client_s_libraries_are_errors_of_the_download() -> None:
    def full(repository: str) -> str:
        raise RuntimeError("Data processing error: File reconstruction error: No space left on device (os error 28)")

    def lost(repository: str) -> str:
        raise ConnectionResetError

    with pytest.raises(HubError, match=r"\(os error 28\); the cache .* cannot be written: set HF_HOME"):
        from_hub(full, "org/tiny")
    with pytest.raises(HubError, match=r"^ConnectionResetError; check the name; without a network, run hf download"):
        from_hub(lost, "org/tiny")


def test_code_of_a_model_needs_a_folder_that_can_be_written(tiny_model: Path, cache: Path) -> None:
    model = shutil.copytree(tiny_model, cache / "model")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModel": "own.OwnModel"}
    (model / "config.json").write_text(json.dumps({**config, "model_type": "own"}))
    (model / "own.py").write_text("from transformers import BertConfig\nclass Own(BertConfig): model_type = 'own'\n")
    code = """
import sys
from pathlib import Path
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.encoder.settings import EncoderSettings
from mlfilter_core.errors import EncoderError
try:
    load_encoder(resolve_model(sys.argv[1]), EncoderSettings(trust_remote_code=True), "cpu", 512)
except EncoderError as error:
    print(error)
"""
    said = python_with_mounts(READ_ONLY.format(cache), code, model, HF_HOME=str(cache)).strip()
    assert said.startswith(
        f"embedding_model: {model} does not load: [Errno 30] Read-only file system: '{cache}/modules"
    )
    assert said.endswith(
        "; set HF_MODULES_CACHE, or HF_HOME, to a folder that can be written: code of models is copied there"
    )
