"""A Hugging Face encoder as a local folder with digests of its files.

Knows nothing about torch: a login node finds and hashes a model without loading it, and the workers
load that folder.
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfilter_core.encoder.adapter import ADAPTER_CONFIG, base_model
from mlfilter_core.errors import EncoderError
from mlfilter_core.files.hub import HubError, from_hub
from mlfilter_core.files.identity import cached_sha256

PACKAGE_SCHEME = "package:"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model",
                   "sentencepiece.bpe.model", "spm.model")  # fmt: skip
CONFIG_PATTERNS = ("*.json", "*.txt", "*.model", "*.py")  # with trust_remote_code, code changes embeddings as well
# Weights for other frameworks, which many repositories contain and nothing here reads.
UNUSED_PATTERNS = ["*.onnx", "onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot", "*.gguf", "coreml/*"]


@dataclass(frozen=True)
class ModelFiles:
    """An encoder on this machine.

    Attributes:
        model: The id, path or `package:` name in the job.
        folder: Folder of its files.
        revision: Commit hash on the hub; None for a local folder.
        weights_sha256: Digest over names and contents of the weight files.
        tokenizer_sha256: Digest over names and contents of the tokenizer's files.
        config_sha256: Digest over names and contents of the other configuration (pooling,
            normalisation, prompts, architecture, code).
    """

    model: str
    folder: Path
    revision: str | None
    weights_sha256: str
    tokenizer_sha256: str
    config_sha256: str

    def provenance(self) -> dict[str, str | None]:
        """Returns what distinguishes this encoder from others, wherever its files are."""
        return {
            "model": self.model,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "config_sha256": self.config_sha256,
        }


def resolve_model(model: str, revision: str | None = None) -> ModelFiles:
    """Returns an encoder's files, hashed, and downloaded from the hub if necessary.

    Args:
        model: A folder, a hub id (`org/name`), or `package:<package>/<folder>` for a model that an
            installed Python package ships.
        revision: Branch, tag or commit on the hub; only for a hub id.

    Raises:
        EncoderError: The model does not exist, the download fails, or the folder lacks configuration, weights
            or tokenizer.
    """
    if model.startswith(PACKAGE_SCHEME):
        folder = _package_folder(model)
    elif Path(model).expanduser().is_dir():
        folder = Path(model).expanduser().absolute()
    elif model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        raise EncoderError(f"embedding_model: the folder {model} does not exist; fix the path")
    else:
        return _hash_files(model, *_download(model, revision))
    if revision is not None:
        raise EncoderError(f"model_revision {revision!r} is for a hub id; {model} is a local folder")
    return _hash_files(model, folder, None)


def code_elsewhere(folder: Path) -> list[str]:
    """Returns the other repositories whose code a model's configuration names; it runs with `trust_remote_code`."""
    found: set[str] = set()
    for path in folder.rglob("*.json"):
        classes = read_settings(path).get("auto_map")
        for reference in classes.values() if isinstance(classes, dict) else ():
            for part in reference if isinstance(reference, list) else [reference]:
                if isinstance(part, str) and "--" in part:
                    found.add(part.partition("--")[0])
    return sorted(found)


def has_own_code(folder: Path) -> bool:
    """Whether a model's configuration names code that the model ships."""
    return "auto_map" in read_settings(folder / "config.json")


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings in one of a model's JSON files; none if it is missing or broken, which loading reports."""
    settings = _read_json(path)
    return settings if isinstance(settings, dict) else {}


def saved_modules(folder: Path) -> list[dict[str, Any]]:
    """Returns the `name`, `path` and `type` of each module of a sentence-transformers folder; none for another one."""
    saved = _read_json(folder / "modules.json")
    return [entry for entry in saved if isinstance(entry, dict)] if isinstance(saved, list) else []


def stated_dim(folder: Path) -> int | None:
    """Returns the width of a model's embeddings, without loading the model; None if it is unknown before loading.

    It is the width of the last layer, unless a dense layer follows.
    """
    if any("Dense" in str(entry) for entry in saved_modules(folder)):
        return None
    widths = [
        read_settings(folder / file).get(name)
        for file, name in (("config_sentence_transformers.json", "truncate_dim"), ("config.json", "hidden_size"))
    ]
    return next((width for width in widths if isinstance(width, int) and width > 0), None)


def _read_json(path: Path) -> Any:
    """Returns the content of a JSON file; None if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _package_folder(model: str) -> Path:
    package, _, below = model.removeprefix(PACKAGE_SCHEME).partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    for location in (found and found.submodule_search_locations) or ():
        if (Path(location) / below).is_dir():
            return Path(location) / below
    raise EncoderError(f"embedding_model: {model}: no installed package contains that folder; install the package")


def _download(model: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    try:
        folder = from_hub(snapshot_download, model, revision=revision, ignore_patterns=UNUSED_PATTERNS)
    except HubError as error:
        raise EncoderError(
            f"embedding_model: {model} is neither a local folder nor available from the hub: {error}"
        ) from error
    return folder, folder.name  # the hub cache names a snapshot's folder after its commit


def _hash_files(model: str, folder: Path, revision: str | None) -> ModelFiles:
    adapter = read_settings(folder / ADAPTER_CONFIG)
    if not adapter and not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise EncoderError(f"embedding_model: {folder} contains no config.json; it is not a model folder")
    if not _loaded_weights(folder):
        raise EncoderError(f"embedding_model: {folder} contains no weights (*.safetensors, *.bin)")
    texts = sorted({path for pattern in CONFIG_PATTERNS for path in folder.rglob(pattern)})
    tokenizer = [path for path in texts if path.name in TOKENIZER_FILES or "token" in path.name]
    if not any(path.name in TOKENIZER_FILES for path in tokenizer):
        raise EncoderError(
            f"embedding_model: {folder} contains no tokenizer ({', '.join(TOKENIZER_FILES)}); save it "
            "next to the model with tokenizer.save_pretrained(...)"
        )
    weights_sha256 = weights_digest(folder)
    if adapter:
        base = resolve_model(base_model(adapter, folder), adapter.get("revision"))
        weights_sha256 = hashlib.sha256(f"{weights_sha256} {base.weights_sha256}".encode()).hexdigest()
    return ModelFiles(
        model=model,
        folder=folder,
        revision=revision,
        weights_sha256=weights_sha256,
        tokenizer_sha256=_digest(folder, tokenizer),
        config_sha256=_digest(folder, [path for path in texts if path not in tokenizer]),
    )


def weights_digest(folder: Path) -> str:
    """Returns the digest over names and contents of a folder's weight files."""
    return _digest(folder, _loaded_weights(folder))


def _loaded_weights(folder: Path) -> list[Path]:
    """Returns the weight files that loading reads: in each folder *.safetensors, or *.bin if there are none."""
    safetensors = sorted(folder.rglob("*.safetensors"))
    with_safetensors = {path.parent for path in safetensors}
    return sorted([*safetensors, *(path for path in folder.rglob("*.bin") if path.parent not in with_safetensors)])


def _digest(folder: Path, paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder).as_posix()} {cached_sha256(path)}\n".encode())
    return digest.hexdigest()
