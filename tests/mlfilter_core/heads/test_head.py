import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlfilter_core.embedding_store.fingerprint import Fingerprint
from mlfilter_core.errors import HeadError
from mlfilter_core.heads import head
from mlfilter_core.heads.head import Head, check_heads_fit, find_mismatched_heads
from mlfilter_core.heads.layers import mlp

DIM = 6


def make_head(name: str, dim: int = DIM, n_targets: int = 1, encoder: Fingerprint | None = None) -> Head:
    return Head(name, mlp([torch.ones(n_targets, dim)], [torch.zeros(n_targets)], "relu"), encoder or {})


def test_a_head_of_another_width_does_not_fit() -> None:
    message = r"head b takes embeddings of width 7, but those of x\.h5 are 6 wide; use the head that was trained on"
    with pytest.raises(HeadError, match=message):
        check_heads_fit([make_head("a"), make_head("b", 7)], DIM, "x.h5")


@pytest.mark.parametrize(
    ("trained_on", "made_by"), [({}, {"prompt": "b"}), ({"prompt": "a"}, {}), ({"prompt": "a"}, {"pooling": "cls"})]
)
def test_what_is_not_known_of_an_encoder_is_not_compared(trained_on: Fingerprint, made_by: Fingerprint) -> None:
    assert find_mismatched_heads([make_head("x", encoder=trained_on)], made_by, "x.h5", are_allowed=False) == {}


def test_heads_need_no_library_for_files_of_embeddings() -> None:
    modules = [f"mlfilter_core.heads.{path.stem}" for path in Path(head.__file__).parent.glob("*.py")]
    code = f"import sys, {', '.join(modules)}; sys.exit('h5py is imported' if 'h5py' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
