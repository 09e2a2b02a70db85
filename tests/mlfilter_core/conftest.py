from pathlib import Path

import h5py
import pytest
import torch

from mlfilter_core.files import identity
from mlfilter_core.files.identity import file_sha256
from mlfilter_core.heads.checkpoint_formats import load_head
from mlfilter_core.heads.head import Head
from tests.conftest import TINY_DIM


@pytest.fixture
def heads(tmp_path: Path) -> list[Head]:
    """A linear head of one target and an MLP of two."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = torch.nn.Linear(TINY_DIM, 1)
        mlp = torch.nn.Sequential(torch.nn.Linear(TINY_DIM, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    torch.save(linear.state_dict(), tmp_path / "linear.pt")
    torch.save(mlp.state_dict(), tmp_path / "mlp.pt")
    return [load_head("quality", tmp_path / "linear.pt"), load_head("topics", tmp_path / "mlp.pt")]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Collects the files that are read for their digests."""
    paths: list[Path] = []
    monkeypatch.setattr(identity, "file_sha256", lambda path: (paths.append(path), file_sha256(path))[1])
    return paths


def flip_a_bit(path: Path, name: str) -> None:
    """Changes the lowest bit of a dataset of a file of embeddings without HDF5, as a faulty disk does."""
    with h5py.File(path) as file:
        place = file[f"train/{name}"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
