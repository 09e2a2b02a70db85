import fnmatch
import hashlib
import json
from pathlib import Path

import pytest

from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_files import HUB_ID, HeadFiles, find_head, head_digests

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with one repository; no other is available."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--Jackal-AI--JQL-Edu-Heads"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "checkpoints").mkdir(parents=True)
    (snapshot / "checkpoints" / "edu.ckpt").write_bytes(b"weights")
    (snapshot / "model.safetensors").write_bytes(b"other weights")
    (snapshot / "config.json").write_bytes(b"{}")
    return snapshot


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_file_of_a_repository_on_the_hub(hub: Path, revision: str) -> None:
    found = find_head("edu", f"Jackal-AI/JQL-Edu-Heads{revision}/checkpoints/edu.ckpt")
    assert found == HeadFiles(hub / "checkpoints" / "edu.ckpt", None)


def test_a_repository_on_the_hub_is_a_folder(hub: Path) -> None:
    assert find_head("edu", "Jackal-AI/JQL-Edu-Heads") == HeadFiles(hub / "model.safetensors", hub / "config.json")


@pytest.mark.parametrize("checkpoint", ["org/unknown", "heads/edu.pt", "Jackal-AI/JQL-Edu-Heads@other/x.ckpt"])
def test_what_is_neither_here_nor_on_the_hub_is_refused(hub: Path, checkpoint: str) -> None:
    with pytest.raises(HeadError, match=rf"head edu: {checkpoint} is neither a local checkpoint nor available from"):
        find_head("edu", checkpoint)


@pytest.mark.parametrize("checkpoint", ["./heads/edu.pt", "/heads/edu.pt", "../edu.pt", "edu.pt", "heads/deep/edu.pt"])
def test_what_is_a_path_is_not_looked_for_on_the_hub(hub: Path, tmp_path: Path, checkpoint: str) -> None:
    (tmp_path / "heads").mkdir()
    with pytest.raises(HeadError, match=r"head edu: the checkpoint .* does not exist; fix the path"):
        find_head("edu", checkpoint)


def test_a_hub_id_has_an_owner_a_name_a_revision_and_a_file() -> None:
    found = HUB_ID.fullmatch("org/some.name@v1.0/a/b.ckpt")
    assert found is not None
    assert found.groupdict() == {"repository": "org/some.name", "revision": "v1.0", "file": "a/b.ckpt"}


def test_the_digest_is_that_of_the_weights_where_there_is_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"weights")
    plain = head_digests({"x": str(tmp_path / "x.pt")})["x"]
    assert plain == hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "x.pt.json").write_text("{}")
    one = head_digests({"x": str(tmp_path / "x.pt")})["x"]
    (tmp_path / "x.pt.json").write_text('{"activation": "gelu"}')
    assert len({plain, one, head_digests({"x": str(tmp_path / "x.pt")})["x"]}) == 3


def shard(folder: Path, names: list[str], weights: str = "model.safetensors") -> None:
    """Writes files, and the index that names them."""
    for name in names:
        (folder / name).write_bytes(name.encode())
    weight_map = {f"{i}.weight": name for i, name in enumerate(names)}
    (folder / f"{weights}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def test_a_folder_may_hold_its_weights_in_shards(tmp_path: Path) -> None:
    shard(tmp_path, SHARDS)
    found = find_head("edu", tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    assert found == HeadFiles(index, None, shards=tuple(tmp_path / name for name in SHARDS))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert find_head("edu", tmp_path).weights == index, "as in transformers"


@pytest.mark.parametrize("name", SHARDS)
def test_the_digest_covers_every_shard(tmp_path: Path, name: str) -> None:
    shard(tmp_path, SHARDS)
    paths = tmp_path, tmp_path / "model.safetensors.index.json"
    before = [find_head("edu", path).sha256 for path in paths]
    (tmp_path / name).write_bytes(b"other weights")
    after = [find_head("edu", path).sha256 for path in paths]
    assert not set(before) & set(after)


def test_a_repository_on_the_hub_may_be_in_shards(hub: Path) -> None:
    (hub / "model.safetensors").unlink()
    shard(hub, SHARDS)
    assert find_head("edu", "Jackal-AI/JQL-Edu-Heads").shards == tuple(hub / name for name in SHARDS)


def test_the_index_and_the_shards_are_downloaded(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns: list[str] = []

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        patterns.extend(allow_patterns)
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    find_head("edu", "org/decoder")
    wanted = ["config.json", "model.safetensors", "model.safetensors.index.json", SHARDS[0],
              "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"]  # fmt: skip
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for name in wanted)
    assert not any(fnmatch.fnmatch("consolidated.safetensors", pattern) for pattern in patterns)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot be read"),
        ("[]", r"cannot be read \(it has no weight_map\); download it again"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "it names '../x.safetensors', which is no file of weights"),
        ('{"weight_map": {"a": 1}}', "it names '1', which is no file of weights in its folder"),
        ('{"weight_map": {"a": "x.bin"}}', r"x\.bin is missing, which model\.safetensors\.index\.json names; download"),
    ],
)
def test_a_broken_index_is_refused(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(HeadError, match=rf"head edu: .*{message}"):
        find_head("edu", tmp_path)
