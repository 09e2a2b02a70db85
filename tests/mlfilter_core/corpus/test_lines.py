import gzip
import hashlib
import random
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest

from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES, READ_BYTES, Line, OverlongLine, SourceReader
from mlfilter_core.errors import SourceError
from mlfilter_core.files.identity import file_sha256
from mlfilter_core.files.task_files import WHOLE, Part
from mlfilter_core.files.zstd import zstd
from tests.conftest import EVERY_COMPRESSION

every_compression = pytest.mark.parametrize("suffix", EVERY_COMPRESSION)


def read(path: Path, max_line_bytes: int = 1000) -> list[tuple[int, int, bytes, type]]:
    with SourceReader(path) as reader:
        return read_lines(reader, max_line_bytes)


def read_lines(reader: SourceReader, max_line_bytes: int, part: Part = WHOLE) -> list[tuple[int, int, bytes, type]]:
    return [
        (line.number, line.offset, line.content if isinstance(line, Line) else b"".join(line.pieces), type(line))
        for line in reader.lines(max_line_bytes, part)
    ]


def split(content: bytes, max_line_bytes: int = 1000) -> list[tuple[int, int, bytes, type]]:
    """Returns the expected result of `read` for these decompressed bytes."""
    pieces = content.split(b"\n")
    if not pieces[-1]:
        pieces.pop()
    lines = []
    offset = 0
    for number, piece in enumerate(pieces, 1):
        lines.append((number, offset, piece, Line if len(piece) <= max_line_bytes else OverlongLine))
        offset += len(piece) + 1
    return lines


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"a\n", b"a", b"a\nb", b"a\n\n\nb\n", b"a\r\nb\r\n", b"a\rb\x0b\x0c\xc2\x85\xe2\x80\xa8c\n"],
    ids=repr,
)
@every_compression
def test_a_line_ends_with_a_line_feed_and_nothing_else(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(EVERY_COMPRESSION[suffix](content))
    assert read(path) == split(content)


@every_compression
@pytest.mark.parametrize("ends", [True, False])
def test_lines_of_many_reads_are_those_of_the_whole(tmp_path: Path, suffix: str, ends: bool) -> None:
    generator = random.Random(0)
    sizes = [0, 1, 10, 1000, 100_000, 3 * READ_BYTES, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1]
    lines = [generator.randbytes(generator.choice(sizes)).replace(b"\n", b"") for _ in range(20)]
    content = b"\n".join(lines) + b"\n" * ends
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(EVERY_COMPRESSION[suffix](content))
    for max_line_bytes in (READ_BYTES - 1, READ_BYTES, DEFAULT_MAX_LINE_BYTES):
        assert read(path, max_line_bytes) == split(content, max_line_bytes)


def test_lines_are_counted_as_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\nb\nc")
    with SourceReader(tmp_path / "x") as reader:
        assert [(reader.n_lines, line.number) for line in reader.lines(DEFAULT_MAX_LINE_BYTES)] == [
            (1, 1),
            (2, 2),
            (3, 3),
        ]


@every_compression
def test_numbers_and_offsets_are_those_of_the_decompressed_bytes(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlfilter_core.corpus.lines.READ_BYTES", 7)  # lines and pieces span many reads
    path = tmp_path / "x"
    for seed in range(60):
        rng = random.Random(seed)
        content = bytes(rng.choices(b"ab\r\n", [6, 6, 1, 2], k=rng.randrange(120)))
        max_line_bytes = rng.randrange(1, 12)
        path.write_bytes(EVERY_COMPRESSION[suffix](content))
        assert read(path, max_line_bytes) == split(content, max_line_bytes), f"seed {seed}"


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_several_compressed_streams_make_one_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(EVERY_COMPRESSION[suffix](b"one\ntw") + EVERY_COMPRESSION[suffix](b"o\nthree\n"))
    assert read(path) == split(b"one\ntwo\nthree\n")


@every_compression
def test_the_first_bytes_tell_the_compression_not_the_name(tmp_path: Path, suffix: str) -> None:
    for name in ("x.jsonl", "x.jsonl.gz", "x.jsonl.zst"):
        (tmp_path / name).write_bytes(EVERY_COMPRESSION[suffix](b"one\ntwo\n"))
        assert read(tmp_path / name) == split(b"one\ntwo\n")


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        (b"abcd\n", [Line]),
        (b"abcd", [Line]),
        (b"abcde\n", [OverlongLine]),
        (b"abcde", [OverlongLine]),
        (b"ab\nabcdefghijkl\nab\n", [Line, OverlongLine, Line]),
        (b"ab\nabcdefghijkl", [Line, OverlongLine]),
        (b"abcde\nabcde\n", [OverlongLine, OverlongLine]),
    ],
)
def test_a_line_above_the_limit_is_overlong(tmp_path: Path, content: bytes, kinds: list[type]) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    lines = read(path, max_line_bytes=4)
    assert [kind for *_, kind in lines] == kinds
    assert lines == split(content, 4)


@every_compression
def test_an_overlong_line_may_be_left_unread_or_half_read(tmp_path: Path, suffix: str) -> None:
    content = b"ab\n" + b"x" * 3_000_000 + b"\ncd\n" + b"y" * 3_000_000 + b"\nef"
    path = tmp_path / "x"
    path.write_bytes(EVERY_COMPRESSION[suffix](content))
    seen = []
    with SourceReader(path) as reader:
        for line in reader.lines(10):
            seen.append((line.number, line.offset))
            if isinstance(line, OverlongLine) and line.number == 4:
                next(line.pieces)
        assert reader.n_lines == 5
    assert seen == [(number, offset) for number, offset, *_ in split(content)]


def test_the_pieces_of_an_overlong_line_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlfilter_core.corpus.lines.READ_BYTES", 16)
    path = tmp_path / "x"
    path.write_bytes(b"x" * 1000)
    with SourceReader(path) as reader:
        (sizes,) = ([len(piece) for piece in line.pieces] for line in reader.lines(4))  # type: ignore[union-attr]
    assert max(sizes) <= 16
    assert sum(sizes) == 1000


@every_compression
def test_size_and_digest_are_those_of_the_bytes_on_disk(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(EVERY_COMPRESSION[suffix](b"some text\n" * 10_000))
    with SourceReader(path) as reader:
        assert sum(1 for _ in reader.lines(100)) == reader.n_lines == 10_000
        assert reader.n_bytes == path.stat().st_size
        assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == file_sha256(path)


def random_lines() -> bytes:
    """Lines that hardly compress: half of the stream contains about half of the lines."""
    rng = random.Random(0)
    return b"".join(rng.randbytes(20).hex().encode() + b"\n" for _ in range(20_000))


def test_a_truncated_gzip_stream_fails_the_file_and_names_the_line(tmp_path: Path) -> None:
    half = (stream := gzip.compress(random_lines(), 1))[: len(stream) // 2]
    n_whole_lines = zlib.decompressobj(wbits=31).decompress(half).count(b"\n")
    assert_breaks_off_after(tmp_path, half, n_whole_lines)


def test_a_truncated_zstd_stream_fails_the_file_and_names_the_line(tmp_path: Path) -> None:
    half = (stream := zstd.compress(random_lines()))[: len(stream) // 2]
    n_whole_lines = zstd.ZstdDecompressor().decompress(half).count(b"\n")
    assert_breaks_off_after(tmp_path, half, n_whole_lines)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_garbage_after_a_compressed_stream_fails_the_file(tmp_path: Path, suffix: str) -> None:
    assert_breaks_off_after(tmp_path, EVERY_COMPRESSION[suffix](b"one\ntwo\n") + b"garbage that is long enough", 2)


def test_a_wrong_checksum_fails_the_file(tmp_path: Path) -> None:
    stream = bytearray(gzip.compress(b"one\ntwo\n"))
    stream[-8] ^= 1  # the first byte of the CRC
    assert_breaks_off_after(tmp_path, bytes(stream), 2)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_a_changed_byte_in_the_middle_of_a_stream_fails_the_file(tmp_path: Path, suffix: str) -> None:
    compress = EVERY_COMPRESSION[suffix] if suffix == ".gz" else with_checksum
    stream = bytearray(compress(random_lines()))
    stream[len(stream) // 2] ^= 0xFF
    (tmp_path / "x.jsonl").write_bytes(stream)
    with SourceReader(tmp_path / "x.jsonl") as reader, pytest.raises(SourceError, match="breaks off here"):
        list(reader.lines(1 << 20))


def with_checksum(content: bytes) -> bytes:
    """Compresses like the command zstd."""
    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


def test_a_zstd_stream_may_begin_with_a_skippable_frame(tmp_path: Path) -> None:
    """Compresses like the command pzstd."""
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00size"
    (tmp_path / "x.jsonl").write_bytes(skippable + zstd.compress(b"one\ntwo\n"))
    with SourceReader(tmp_path / "x.jsonl") as reader:
        assert [line.content for line in reader.lines(100) if isinstance(line, Line)] == [b"one", b"two"]


def test_a_line_of_200_mb_stays_out_of_memory(tmp_path: Path) -> None:
    with open(tmp_path / "x.jsonl", "wb") as file:
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b"\nafter\n")
    tracemalloc.start()
    with SourceReader(tmp_path / "x.jsonl") as reader:
        overlong, after = (
            (sum(map(len, line.pieces)) if isinstance(line, OverlongLine) else line.content)
            for line in reader.lines(DEFAULT_MAX_LINE_BYTES)
        )
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (overlong, after) == (200_000_000, b"after")
    assert peak_bytes < 3 * DEFAULT_MAX_LINE_BYTES


def test_a_file_that_may_not_be_read_is_named(unprivileged: Path) -> None:
    (unprivileged / "x.jsonl").write_text("{}")
    (unprivileged / "x.jsonl").chmod(0)
    with pytest.raises(SourceError, match=r"x\.jsonl cannot be read \(Permission denied\); fix its path or its"):
        SourceReader(unprivileged / "x.jsonl")


def assert_breaks_off_after(tmp_path: Path, stream: bytes, n_whole_lines: int) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(stream)
    lines = []
    with SourceReader(path) as reader:
        with pytest.raises(
            SourceError, match=rf"x\.jsonl:{n_whole_lines + 1}: .*breaks off here .*; download or compress"
        ):
            lines += [line.content for line in reader.lines(1000) if isinstance(line, Line)]
            pytest.fail("the end of the stream was taken for the end of the file")
        assert reader.n_lines == n_whole_lines > 0


def test_a_missing_file_is_said_once(tmp_path: Path) -> None:
    """Closing a file that was never open causes no second error (-X dev and Python 3.13 would show it)."""
    imports = "from pathlib import Path; from mlfilter_core.corpus.lines import SourceReader"
    code = f"{imports}; SourceReader(Path({str(tmp_path / 'x')!r}))"
    run = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True)
    assert f"SourceError: {tmp_path}/x cannot be read (No such file or directory); fix" in run.stderr.splitlines()[-1]
    assert "Exception ignored" not in run.stderr


@pytest.mark.parametrize("suffix", EVERY_COMPRESSION)
def test_lines_before_an_offset_are_passed_over(tmp_path: Path, suffix: str) -> None:
    content = b"\xef\xbb\xbffirst\r\n\n" + b"\n".join(b"x" * n for n in (2, 3 << 20, 0, 5, 2 << 20, 7))
    path = tmp_path / f"x{suffix}"
    path.write_bytes(EVERY_COMPRESSION[suffix](content))
    with SourceReader(path) as reader:
        whole = [line for line in reader.lines(4 << 20) if isinstance(line, Line)]
        sha256 = reader.sha256
    for i, line in enumerate(whole):
        with SourceReader(path) as reader:
            reader.skip(line.offset)
            assert list(reader.lines(4 << 20)) == whole[i:]
            assert (reader.n_lines, reader.sha256) == (len(whole), sha256)


@pytest.mark.parametrize("suffix", EVERY_COMPRESSION)
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_each_line_is_in_one_part(tmp_path: Path, suffix: str, end: bytes) -> None:
    rng = random.Random(7)
    lines = [rng.randbytes(rng.choice([0, 1, 900, 2000, 5000])).hex().encode() for _ in range(1000)]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(EVERY_COMPRESSION[suffix](b"\n".join(lines) + end))
    with SourceReader(path) as reader:
        whole = read_lines(reader, 4000)
        sha256 = reader.sha256
    for n_parts in (1, 2, 3, 11):
        found, n_lines, n_with_lines = [], 0, 0
        for number in range(1, n_parts + 1):
            with SourceReader(path) as reader:
                part = read_lines(reader, 4000, Part(number, n_parts))
                assert reader.n_skipped == n_lines
                n_lines, n_with_lines = reader.n_lines, n_with_lines + bool(part)
                assert n_lines == reader.n_skipped + len(part)
            found += part
        assert found == whole
        assert (reader.sha256, reader.n_bytes) == (sha256, path.stat().st_size)  # after the last part
        assert n_with_lines >= min(2, n_parts)


def test_lines_longer_than_a_part(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\n" + b"b" * 1000 + b"\nc")
    parts = []
    for number in range(1, 6):
        with SourceReader(path) as reader:
            parts.append([line[0] for line in read_lines(reader, 5000, Part(number, 5))])
    assert parts == [[1, 2], [], [], [], [3]]


def test_a_broken_stream_fails_each_part_behind_the_place(tmp_path: Path) -> None:
    content = b"".join(b"%06d " % i + random.Random(i).randbytes(100).hex().encode() + b"\n" for i in range(9000))
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(content)[:-300_000])
    messages = []
    for number in range(1, 5):
        with SourceReader(path) as reader:
            try:
                read_lines(reader, 4000, Part(number, 4))
            except SourceError as error:
                messages.append(str(error))
    with SourceReader(path) as reader, pytest.raises(SourceError) as whole:
        list(reader.lines(4000))
    assert set(messages) == {str(whole.value)}
