"""Broken, wrong and malicious checkpoints: each is refused with a reason, and nothing in it is executed.

No file is checked in; the tests make each of them.
"""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_formats import load_head

# PyTorch's warnings about other formats; only our message is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:`torch.jit:DeprecationWarning")

DIM = 6
MATRIX = torch.ones(1, DIM)
NOT_LOADED = "does not load as plain tensors"


def in_quantised_form(tensor: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


class OtherTensor(torch.Tensor):
    """A class that a reader would have to import."""


def refers_to_itself() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["state_dict"] = state
    return state


def is_not_dense(kind: str) -> str:
    return f"{kind}, not dense floats; save it as float32, on the CPU"


# State dicts, and the messages about them.
BAD_STATES: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (dict, "not a chain of linear layers; it contains nothing"),
    "no state dict": (lambda: MATRIX, rf"{NOT_LOADED} \(it contains a Tensor, not a state dict\)"),
    "a wrapped nothing": (lambda: {"state_dict": None}, "not a chain of linear layers; it contains state_dict"),
    "wrapped in itself": (refers_to_itself, "not a chain of linear layers; it contains state_dict"),
    "a name that is no text": (
        lambda: {("weight",): MATRIX},
        r"not a chain of linear layers; it contains \('weight',\)",
    ),
    "NaN": (lambda: {"weight": MATRIX * torch.nan}, "a weight is NaN or infinite"),
    "an infinite bias": (lambda: {"weight": MATRIX, "bias": torch.ones(1) / 0}, "a weight is NaN or infinite"),
    "beyond float32": (lambda: {"weight": MATRIX.double() * 1e300}, "a weight is NaN or infinite"),
    "a vector": (lambda: {"weight": torch.ones(DIM)}, "not a chain of linear layers; it contains weight"),
    "a convolution": (lambda: {"weight": torch.ones(1, DIM, 3)}, "weight is not a matrix; only linear layers"),
    "a scalar": (lambda: {"weight": torch.tensor(1.0)}, "weight is not a matrix; only linear layers"),
    "integers": (lambda: {"weight": MATRIX.long()}, "weight is not a matrix; only linear layers"),
    "booleans": (lambda: {"weight": MATRIX.bool()}, "weight is not a matrix; only linear layers"),
    "complex": (lambda: {"weight": MATRIX.cfloat()}, "weight is not a matrix; only linear layers"),
    "quantised": (lambda: {"weight": in_quantised_form(MATRIX)}, "weight is not a matrix; only linear layers"),
    "no rows": (lambda: {"weight": torch.ones(0, DIM)}, r"weight is empty, of shape \(0, 6\); save the weights of a"),
    "no columns": (lambda: {"weight": torch.ones(1, 0)}, r"weight is empty, of shape \(1, 0\); save the weights of a"),
    "sparse": (lambda: {"weight": MATRIX.to_sparse()}, f"weight is {is_not_dense('float32 sparse_coo on cpu')}"),
    "sparse rows": (
        lambda: {"weight": MATRIX.to_sparse_csr()},
        f"weight is {is_not_dense('float32 sparse_csr on cpu')}",
    ),
    "without values": (lambda: {"weight": MATRIX.to("meta")}, f"weight is {is_not_dense('float32 strided on meta')}"),
    "one number shown 1e13 times": (
        lambda: {"weight": torch.ones(1).expand(10**7, 10**6)},
        r"weight claims more values than the file contains; save a copy, tensor\.contiguous\(\)",
    ),
    "a bias that is no tensor": (
        lambda: {"weight": MATRIX, "bias": [1.0]},
        "the bias of weight is a list, not a tensor",
    ),
    "a bias of another length": (
        lambda: {"weight": MATRIX, "bias": torch.ones(2)},
        r"the bias of weight has shape \(2,\), not \(1,\)",
    ),
    "a bias of integers": (
        lambda: {"weight": MATRIX, "bias": torch.ones(1).long()},
        f"the bias of weight is {is_not_dense('int64 strided on cpu')}",
    ),
    "a complex bias": (
        lambda: {"weight": MATRIX, "bias": torch.ones(1).cfloat()},
        f"the bias of weight is {is_not_dense('complex64 strided on cpu')}",
    ),
    "a sparse bias": (
        lambda: {"weight": MATRIX, "bias": torch.ones(1).to_sparse()},
        f"the bias of weight is {is_not_dense('float32 sparse_coo on cpu')}",
    ),
    "a bias without weights": (
        lambda: {"weight": MATRIX, "2.bias": torch.ones(1)},
        "not a chain of linear layers; it contains 2.bias",
    ),
    "layers that do not fit": (lambda: {"0.weight": MATRIX, "2.weight": MATRIX}, r"2\.weight takes 6 values, but .* 1"),
    "a tensor of another class": (lambda: {"weight": MATRIX.as_subclass(OtherTensor)}, NOT_LOADED),
    "a whole module": (lambda: torch.nn.Linear(DIM, 1), NOT_LOADED),
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", BAD_STATES)
def test_a_hostile_state_dict_is_refused(tmp_path: Path, name: str, is_zip: bool) -> None:
    make, message = BAD_STATES[name]
    torch.save(make(), tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(HeadError, match=rf"head x: .*x\.pt:? {message}"):
        load_head("x", tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.nested.nested_tensor([torch.ones(DIM)]), "float32"),
        (lambda: MATRIX.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
    ids=["nested", "eight bits"],
)
def test_a_tensor_that_the_legacy_format_cannot_hold_is_refused(
    tmp_path: Path, make: Callable[[], torch.Tensor], kind: str
) -> None:
    torch.save({"weight": make()}, tmp_path / "x.pt")
    with pytest.raises(HeadError, match=f"weight is {is_not_dense(f'{kind} strided on cpu')}"):
        load_head("x", tmp_path / "x.pt")


def test_layers_may_have_numbers_of_any_length(tmp_path: Path) -> None:
    """Python's own int() refuses more than 4300 digits."""
    shapes = {"9" * 5000: (1, 4), "8" * 5000: (4, 5), "0077": (5, 6)}
    state = {f"{number}.weight": torch.ones(shape) for number, shape in shapes.items()}
    torch.save(state, tmp_path / "x.pt")
    assert load_head("x", tmp_path / "x.pt").widths == (6, 5, 4, 1)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def as_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def as_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def as_tar(content: Any, path: Path) -> None:
    """A file in the format of PyTorch before 0.1.10."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            pickled = pickle.dumps(content if name == "pickle" else 0, 2)
            member.size = len(pickled)
            archive.addfile(member, io.BytesIO(pickled))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ""])
@pytest.mark.parametrize("save", [as_zip, as_legacy, as_pickle, as_tar])
def test_code_in_a_checkpoint_is_not_run_whatever_its_format(
    tmp_path: Path, save: Callable[[Any, Path], None], suffix: str
) -> None:
    save({"weight": MATRIX, "x": Touch(tmp_path / "executed")}, tmp_path / f"x{suffix}")
    with pytest.raises(HeadError, match=rf"x{suffix} {NOT_LOADED} \(.+\); nothing in it was executed"):
        load_head("x", tmp_path / f"x{suffix}")
    assert not (tmp_path / "executed").exists()


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    class Code(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Code()).save(str(tmp_path / "x.pt"))
    with pytest.raises(HeadError, match=rf"x\.pt {NOT_LOADED} \(.+\); nothing in it was executed"):
        load_head("x", tmp_path / "x.pt")


def test_links_in_a_legacy_archive_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(HeadError, match=rf"x\.pt {NOT_LOADED}"):
        load_head("x", tmp_path / "x.pt")


def test_a_compressed_archive_is_refused_and_not_unpacked(tmp_path: Path) -> None:
    """64 MiB of zeros in 64 kB; a real attack could use any number of GB."""
    torch.save({"weight": torch.zeros(1, 1 << 24)}, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as stored:
        with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in stored.namelist():
                archive.writestr(name, stored.read(name))
    with pytest.raises(HeadError, match=r"\(it is compressed, as torch\.save never does, and may unpack to any size\)"):
        load_head("x", tmp_path / "x.pt")


# Pickles that claim wrong lengths.
LYING_PICKLES = {
    "text of 2 GiB": b"\x80\x02X\xff\xff\xff\x7f",
    "text of 8 EiB": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f",
    "bytes of 8 EiB": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f",
    "number of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f",
    "frame of 8 EiB": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f",
    "value that nobody stored": b"\x80\x02}h\xff.",
    "100,000 levels": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "nothing on its stack": b"\x80\x02.",
    "protocol that is not there yet": b"\x80\xff.",
    "no end": b"\x80\x02}",
    "a storage of 1 EiB": (
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0"
        + b"0X\x03\0\0\0cpu\x8a\x08\0\0\0\0\0\0\0\x04tQ."
    ),
}
LEGACY_HEADER = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


@pytest.mark.parametrize("header", [b"", LEGACY_HEADER], ids=["bare", "legacy"])
@pytest.mark.parametrize("name", LYING_PICKLES)
def test_a_lying_pickle_is_refused(tmp_path: Path, name: str, header: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(header + LYING_PICKLES[name])
    with pytest.raises(HeadError, match=rf"x\.pt {NOT_LOADED}"):
        load_head("x", tmp_path / "x.pt")


def safetensors(header: Any, n_header: int | None = None, content: bytes = bytes(4 * DIM)) -> bytes:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written) if n_header is None else n_header) + written + content


def entry(shape: list[int], end: int = 4 * DIM, dtype: str = "F32", start: int = 0) -> dict[str, Any]:
    return {"weight": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


BAD_SAFETENSORS = {
    "empty": (b"", NOT_LOADED),
    "no header": (safetensors(b""), NOT_LOADED),
    "header of 2**63 bytes": (safetensors({}, 2**63), NOT_LOADED),
    "header of 2**64 - 1 bytes": (safetensors({}, 2**64 - 1), NOT_LOADED),
    "header longer than the file": (safetensors({}, 10**6), NOT_LOADED),
    "header that is no JSON": (safetensors(b"weight"), NOT_LOADED),
    "header that is no UTF-8": (safetensors(b'{"\xff": 1}'), NOT_LOADED),
    "header of 10,000 levels": (safetensors(b"[" * 10_000 + b"]" * 10_000), NOT_LOADED),
    "no tensors": (safetensors({}, content=b""), "not a chain of linear layers; it contains nothing"),
    "more values than there are": (safetensors(entry([10**9, 10**9])), NOT_LOADED),
    "more values than can be counted": (safetensors(entry([2**62, 2**62])), NOT_LOADED),
    "end behind the file": (safetensors(entry([1, DIM], 2**60)), NOT_LOADED),
    "end before the start": (safetensors(entry([1, DIM], 0, start=24)), NOT_LOADED),
    "negative shape": (safetensors(entry([-1, DIM])), NOT_LOADED),
    "unknown type": (safetensors(entry([1, DIM], dtype="F33")), NOT_LOADED),
    "integers": (safetensors(entry([1, DIM], dtype="I32")), "weight is not a matrix"),
    "four bits": (
        safetensors(entry([8, DIM], dtype="F4")),
        f"weight is {is_not_dense('float4_e2m1fn_x2 strided on cpu')}",
    ),
    "no rows, and 1e18 columns": (safetensors(entry([10**18, 0], 0), content=b""), "weight is empty, of shape"),
    "gaps": (safetensors(entry([1, DIM - 1])), NOT_LOADED),
    "metadata that is no text": (safetensors({"__metadata__": {"activation": 5}, **entry([1, DIM])}), NOT_LOADED),
    "an activation that is code": (
        safetensors({"__metadata__": {"activation": "__import__('os')"}, **entry([1, DIM])}),
        "unknown activation",
    ),
}


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_hostile_safetensors_are_refused(tmp_path: Path, name: str) -> None:
    content, message = BAD_SAFETENSORS[name]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(HeadError, match=rf"head x: .*x\.safetensors:? {message}"):
        load_head("x", tmp_path / "x.safetensors")
