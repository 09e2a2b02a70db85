"""Broken, unusual and malicious source files, and names of files.

Each line is a document, rejected or blank, or the file fails with a reason; nothing else happens. No file is checked
in; the tests make each of them.
"""

import base64
import bz2
import gzip
import json
import lzma
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.corpus.lines import FREE_BYTES, MAX_EXPANSION, OverlongLine, SourceReader
from mlfilter_core.corpus.source_files import SOURCE_SUFFIXES
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.errors import ConfigError, SourceError
from mlfilter_core.files.task_files import find_files
from mlfilter_core.files.zstd import zstd
from tests.faults.hostile.conftest import MAX_LINE_BYTES, Annotate, Embed, outputs

ALL = slice(None)
LINE = b'{"text": "ba be"}'
LINES = b"".join(b'{"text": "ba %d"}\n' % i for i in range(300))
every_compression = pytest.mark.parametrize(
    "compress", [gzip.compress, zstd.compress, bz2.compress, lzma.compress], ids=["gzip", "zstd", "bzip2", "xz"]
)


def zstd_frame(content: bytes, **parameters: int) -> bytes:
    return zstd.compress(content, options={zstd.CompressionParameter[name]: n for name, n in parameters.items()})


def skippable_frame(content: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A50, len(content)) + content


def value(written: bytes) -> bytes:
    """A document with one more value, which is not used."""
    return b'{"text": "ba", "x": ' + written + b"}"


DOCUMENT, BLANK = "document", "blank"
# The content of a source, and the result of each of its lines.
SOURCES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", []),
    "blank lines only": (b"\n \n\t\r\n\n", [BLANK] * 4),
    "no final newline": (LINE + b"\n" + LINE, [DOCUMENT] * 2),
    "CRLF": (LINE + b"\r\n" + LINE + b"\r\n", [DOCUMENT] * 2),
    "CR only, which makes one line": (LINE + b"\r" + LINE + b"\r", ["not_json"]),
    "byte order mark": (b"\xef\xbb\xbf" + LINE + b"\n" + LINE, [DOCUMENT] * 2),
    "byte order mark alone": (b"\xef\xbb\xbf\n" + LINE, ["not_json", DOCUMENT]),
    "two byte order marks": (b"\xef\xbb\xbf" * 2 + LINE, ["not_json"]),
    "a byte order mark in each line": ((b"\xef\xbb\xbf" + LINE + b"\n") * 2, [DOCUMENT] * 2),
    "line separators of Unicode in a text": (
        '{"text": "a\u2028b\u2029c\x85d"}'.encode() + b"\n" + LINE,
        [DOCUMENT] * 2,
    ),
    "VT and FF in a text": (b'{"text": "a\x0bb\x0cc"}\n' + LINE, ["not_json", DOCUMENT]),
    "VT, FF, FS, GS and RS between documents": (b"\x0b\x0c\n" + LINE + b"\x1c\x1d\x1e" + LINE, [BLANK, "not_json"]),
    "UTF-16 little endian": ((LINE + b"\n" + LINE).decode().encode("utf-16"), ["not_utf8", "not_json"]),
    "UTF-16 big endian": (b"\xfe\xff" + LINE.decode().encode("utf-16-be"), ["not_utf8"]),
    "UTF-32": (LINE.decode().encode("utf-32"), ["not_utf8"]),
    "Latin-1": ('{"text": "größer"}\n'.encode("latin-1") + LINE, ["not_utf8", DOCUMENT]),
    "UTF-8 cut in a character": ('{"text": "größer"}'.encode()[:13] + b"\n" + LINE, ["not_utf8", DOCUMENT]),
    "UTF-8 longer than it may be": (b'{"text": "\xc0\xaf"}', ["not_utf8"]),
    "UTF-8 beyond the last character": (b'{"text": "\xf4\x90\x80\x80"}', ["not_utf8"]),
    "raw surrogate": (b'{"text": "\xed\xa0\x80"}', ["not_utf8"]),
    "escaped lone surrogate": (rb'{"text": "\ud800"}', ["not_json"]),
    "escaped surrogates in the wrong order": (rb'{"text": "\udc00\ud800"}', ["not_json"]),
    "escaped surrogate in a key": (rb'{"text": "ba", "\udfff": 1}', ["not_json"]),
    "escaped pair of surrogates": (rb'{"text": "\ud83d\ude00"}', [DOCUMENT]),
    "raw NUL in a text": (b'{"text": "a\0b"}', ["not_json"]),
    "escaped NUL in a text": (rb'{"text": "a\u0000b"}', ["nul_character"]),
    "escaped NUL in a key": (rb'{"text": "ba", "\u0000": 1}', [DOCUMENT]),
    "escaped NUL in an id": (rb'{"text": "ba", "id": "\u0000"}', ["nul_character"]),
    "NULs only": (b"\0" * 100 + b"\n" + LINE, ["not_json", DOCUMENT]),
    "noncharacters": ('{"text": "\ufffe\uffff\U0010ffff"}'.encode(), [DOCUMENT]),
    "right-to-left override": ('{"text": "\u202eab"}'.encode(), [DOCUMENT]),
    "NaN": (value(b"NaN"), ["not_json"]),
    "Infinity": (value(b"Infinity"), ["not_json"]),
    "-Infinity": (value(b"-Infinity"), ["not_json"]),
    "integer of 3,000 digits": (value(b"9" * 3000), ["not_json"]),
    "fraction of 3,000 digits": (value(b"0." + b"3" * 3000), [DOCUMENT]),
    "huge exponent": (value(b"1e99999"), ["not_json"]),
    "huge negative exponent": (value(b"1e-99999"), [DOCUMENT]),
    "1,000 levels": (value(b"[" * 1000 + b"]" * 1000), [DOCUMENT]),
    "1,000 levels as an id": (b'{"text": "ba", "id": ' + b"[" * 1000 + b"]" * 1000 + b"}", ["nested_too_deep"]),
    "2,000 levels": (value(b"[" * 2000 + b"]" * 2000), ["not_json"]),
    "4,000 brackets that never close": (b"[" * 4000, ["not_json"]),
    "duplicate keys, the last of which counts": (
        b'{"text": "", "text": "ba"}\n{"text": "ba", "text": ""}',
        [DOCUMENT, "empty_text"],
    ),
    "two documents in a line": (LINE + LINE, ["not_json"]),
    "a document over two lines": (b'{"text":\n"ba"}', ["not_json"] * 2),
    "single quotes": (b"{'text': 'ba'}", ["not_json"]),
    "a comment": (LINE + b" // ba", ["not_json"]),
    "a trailing comma": (b'{"text": "ba",}', ["not_json"]),
    "an array of documents": (b"[" + LINE + b"]", ["not_an_object"]),
    "values that are no objects": (b'null\ntrue\n3\n"text"\n[]\n{}', ["not_an_object"] * 5 + ["missing_key"]),
    "texts that are no strings": (
        b'{"text": null}\n{"text": 3}\n{"text": ["ba"]}\n{"text": {"text": "ba"}}',
        ["not_a_string"] * 4,
    ),
    "white space of Unicode as a text": ('{"text": "\u3000\u2003\\t"}'.encode(), ["empty_text"]),
    "a line at the limit": (b'{"text": "' + b"b" * (MAX_LINE_BYTES - 12) + b'"}\n' + LINE, [DOCUMENT] * 2),
    "a line above the limit": (
        b'{"text": "' + b"b" * (MAX_LINE_BYTES - 11) + b'"}\n' + LINE,
        ["line_too_long", DOCUMENT],
    ),
    "a blank line above the limit": (b" " * (MAX_LINE_BYTES + 1) + b"\n" + LINE, ["line_too_long", DOCUMENT]),
    "gzip of nothing": (gzip.compress(b""), []),
    "gzip in many members": (b"".join(gzip.compress(bytes([byte])) for byte in LINE), [DOCUMENT]),
    "gzip with an empty member": (
        gzip.compress(LINE) + gzip.compress(b"") + gzip.compress(b"\n" + LINE),
        [DOCUMENT] * 2,
    ),
    "gzip padded with NULs": (gzip.compress(LINE) + b"\0" * 512, [DOCUMENT]),
    "zstd of nothing": (zstd_frame(b""), []),
    "zstd in many frames": (b"".join(zstd_frame(bytes([byte])) for byte in LINE), [DOCUMENT]),
    "zstd with skippable frames": (
        skippable_frame(b"a")
        + zstd_frame(LINE[:5])
        + skippable_frame(b"\n" * 99)
        + zstd_frame(LINE[5:])
        + skippable_frame(b""),
        [DOCUMENT],
    ),
    "zstd of skippable frames only": (skippable_frame(b"a") * 2, []),
    "gzip in gzip": (gzip.compress(gzip.compress(LINE, mtime=0), mtime=0), ["not_utf8"]),
    "first bytes of gzip alone, one short": (b"\x1f", ["not_json"]),
    "first bytes of zstd, one short": (b"\x28\xb5\x2f", ["not_utf8"]),
    "first bytes of bzip2, one short": (b"BZh91AY&S\xff\xff", ["not_utf8"]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_each_line_of_a_hostile_source_is_a_document_rejected_or_blank(tmp_path: Path, embed: Embed, name: str) -> None:
    content, outcomes = SOURCES[name]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/x.jsonl").write_bytes(content)
    report = embed(tmp_path / "corpus")
    rejects = tmp_path / "out/rejected.jsonl"
    rejected = [json.loads(line) for line in rejects.read_bytes().splitlines()] if rejects.exists() else []
    with EmbeddingFile(Path(report.output), "train") as file:
        became = dict.fromkeys(file.array("source_line", ALL).tolist(), DOCUMENT)
    became.update({line["line"]: line["reason"] for line in rejected})
    assert [became.get(i, BLANK) for i in range(1, report.lines + 1)] == outcomes
    assert report.blank == outcomes.count(BLANK)
    assert report.lines == report.documents + report.rejected + report.blank == len(outcomes)
    lines = decompressed(tmp_path / "corpus/x.jsonl").split(b"\n")
    assert [raw(line) for line in rejected] == [lines[line["line"] - 1] for line in rejected]


def decompressed(path: Path) -> bytes:
    """A file as other tools compress it."""
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        return gzip.decompress(content)
    return zstd.decompress(content) if content[1:4] in (b"\xb5\x2f\xfd", b"\x2a\x4d\x18") else content


def raw(rejected: dict[str, Any]) -> bytes:
    return rejected["raw"].encode() if "raw" in rejected else base64.b64decode(rejected["raw_base64"])


def with_window(frame: bytes, gib: int) -> bytes:
    """A frame whose header requests this much memory, in the byte after its descriptor."""
    assert frame[4] & 0x20 == 0, "a frame of a single segment has no window"
    window_log = (gib << 30).bit_length() - 1
    return frame[:5] + bytes([(window_log - 10) << 3]) + frame[6:]


def zstd_stream(content: bytes) -> bytes:
    """A frame without the size of its content, as the command writes it from a pipe."""
    compressor = zstd.ZstdCompressor()
    return compressor.compress(content) + compressor.flush()


BREAKS_OFF = (
    r"x\.jsonl:{line}: the compressed stream breaks off here \(.*{reason}.*\); download or compress the file again"
)
GZIPPED, FRAME = gzip.compress(LINES, mtime=0), zstd_stream(LINES)
BZIPPED, XZ = bz2.compress(LINES), lzma.compress(LINES)
# The content of a source, the line in which it breaks off, and a part of the reason.
BROKEN_STREAMS: dict[str, tuple[bytes, int, str]] = {
    "gzip of two bytes": (GZIPPED[:2], 1, "ended"),
    "gzip header alone": (GZIPPED[:10], 1, "ended"),
    "gzip of an unknown method": (GZIPPED[:2] + b"\x07" + GZIPPED[3:], 1, "method"),
    "gzip without its last byte": (GZIPPED[:-1], 301, "ended"),
    "gzip with another length": (GZIPPED[:-4] + b"\0\0\0\0", 301, "length"),
    "gzip with another checksum": (GZIPPED[:-8] + b"\0" * 4 + GZIPPED[-4:], 301, "CRC"),
    "gzip with garbage behind": (GZIPPED + b"garbage", 301, "Not a gzipped file"),
    "gzip and then zstd": (GZIPPED + FRAME, 301, "Not a gzipped file"),
    "gzip and then half a member": (GZIPPED + GZIPPED[:30], 301, "ended"),
    "gzip of a wrong block": (GZIPPED[:10] + b"\xff" * 50, 1, "invalid block type"),
    "gzip with a name that never ends": (b"\x1f\x8b\x08\x08" + b"\0" * 6 + b"x" * 1000, 1, "ended"),
    "zstd header alone": (FRAME[:6], 1, "ended"),
    "zstd without its last byte": (FRAME[:-1], 1, "ended"),
    "zstd with garbage behind": (FRAME + b"garbage", 301, "Unknown frame descriptor"),
    "zstd and then gzip": (FRAME + GZIPPED, 301, "Unknown frame descriptor"),
    "zstd with a wrong block": (FRAME[:6] + b"\xff" * 50, 1, "Data corruption"),
    "zstd with a window of 4 GiB": (with_window(FRAME, gib=4), 1, "too much memory"),
    "zstd with a dictionary that nobody has": (
        FRAME[:4] + bytes([FRAME[4] | 1]) + FRAME[5:6] + b"\x07" + FRAME[6:],
        1,
        "Dictionary",
    ),
    "bzip2 without its last byte": (BZIPPED[:-1], 301, "ends before"),
    "bzip2 with garbage behind": (BZIPPED + b"garbage", 301, "Invalid data stream"),
    "bzip2 and then half a stream": (BZIPPED + BZIPPED[:30], 301, "ends before"),
    "bzip2 of a wrong block": (BZIPPED[:10] + b"\xff" * 50, 1, "Invalid data stream"),
    "bzip2 with another checksum": (BZIPPED[:10] + b"\0" * 4 + BZIPPED[14:], 1, "Invalid data stream"),
    "xz without its last byte": (XZ[:-1], 301, "ends before"),
    "xz with garbage behind": (XZ + b"garbage that is long enough", 301, "not supported"),
    "xz and then half a stream": (XZ + XZ[:30], 301, "ends before"),
    "xz that asks for 1.5 GiB": (
        lzma.compress(LINES, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 3 << 29}]),
        1,
        "limit",
    ),
    "skippable frame that is cut short": (skippable_frame(b"a" * 99)[:50], 1, "ended"),
}


@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_a_broken_stream_fails_its_file_and_leaves_nothing(tmp_path: Path, embed: Embed, name: str) -> None:
    content, line, reason = BROKEN_STREAMS[name]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/x.jsonl").write_bytes(content)
    with pytest.raises(SourceError, match=BREAKS_OFF.format(line=line, reason=reason)):
        embed(tmp_path / "corpus")
    assert not outputs(tmp_path)


def bomb(compress: Callable[[bytes], bytes], piece: bytes, n_mb: int) -> bytes:
    """This number of MB in a few kB, as repeated members or frames."""
    return compress(piece * ((1 << 20) // len(piece))) * n_mb


@pytest.mark.parametrize(
    "piece", [b"\n", b" ", b"[", LINE + b"\n"], ids=["blank lines", "spaces", "one line", "documents"]
)
@every_compression
def test_a_decompression_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes], piece: bytes
) -> None:
    monkeypatch.setattr("mlfilter_core.corpus.lines.FREE_BYTES", 1 << 20)
    (tmp_path / "x.jsonl").write_bytes(content := bomb(compress, piece, 3))
    most = max(1 << 20, MAX_EXPANSION * len(content))
    message = (
        rf"x\.jsonl:\d+: the compressed stream unpacks to more than {most} bytes, 200 times its size, .* decompressed"
    )
    with SourceReader(tmp_path / "x.jsonl") as reader, pytest.raises(SourceError, match=message):
        for _ in reader.lines(MAX_LINE_BYTES):
            pass


@every_compression
def test_one_endless_line_is_refused_at_the_limit_that_is_set(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "x.jsonl").write_bytes(bomb(compress, b"x", 300))
    with SourceReader(tmp_path / "x.jsonl") as reader:
        (line,) = (line for line in [next(reader.lines(MAX_LINE_BYTES))] if isinstance(line, OverlongLine))
        with pytest.raises(SourceError, match=f"unpacks to more than {FREE_BYTES} bytes, 200 times its size"):
            for _ in line.pieces:
                pass


@every_compression
def test_a_file_of_moderate_size_may_compress_as_well_as_it_likes(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "x.jsonl").write_bytes(content := bomb(compress, b"x" * 4095 + b"\n", 100))
    assert len(content) * MAX_EXPANSION < 100 << 20, "it compresses too badly to show anything"
    with SourceReader(tmp_path / "x.jsonl") as reader:
        assert sum(1 for _ in reader.lines(MAX_LINE_BYTES)) == 25_600


def test_the_largest_window_of_the_command_zstd_is_read(tmp_path: Path) -> None:
    """That of `zstd --long=31`."""
    (tmp_path / "x.jsonl").write_bytes(with_window(FRAME, gib=2))
    with SourceReader(tmp_path / "x.jsonl") as reader:
        assert sum(1 for _ in reader.lines(MAX_LINE_BYTES)) == 300


def test_a_window_of_zstd_is_read_within_its_128_mib(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(zstd_frame(LINES * 1000, window_log=27, enable_long_distance_matching=1))
    tracemalloc.start()
    with SourceReader(tmp_path / "x.jsonl") as reader:
        assert sum(1 for _ in reader.lines(MAX_LINE_BYTES)) == 300_000
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(SourceError, match=r"x\.jsonl is a pipe or a device; give a regular file"):
        SourceReader(tmp_path / "x.jsonl")
    with pytest.raises(ConfigError, match="no file below"):
        find_files(tmp_path, "*", SOURCE_SUFFIXES)
    with pytest.raises(SourceError, match="/dev/zero is a pipe or a device"):
        SourceReader(Path("/dev/zero"))


NAMES = {
    "spaces": " a  b ",
    "line feed": "a\nb",
    "tab and carriage return": "a\tb\r",
    "leading dashes": "--help",
    "percent": "%s%(x)d%%",
    "braces and dollars": "${x}{0}$(touch executed)`touch executed`",
    "quotes and backslashes": "'\"\\n\\",
    "glob": "[a-z]*?",
    "home": "~root",
    "emoji": "\U0001f600\u200d\U0001f525",
    "not composed": "e\u0301",
    "right to left": "\u202egnp",
    "control characters": "\x01\x1b[31m\x7f",
    "suffixes": "x.jsonl.gz.h5.part",
    "as long as it may be": "x" * 240,
    "as many bytes as it may have": "ä" * 120,
    "looks like a number": "1e5",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_goes_all_the_way(tmp_path: Path, embed: Embed, annotate: Annotate, name: str) -> None:
    stem = NAMES[name]
    folder = tmp_path / "corpus" / stem
    folder.mkdir(parents=True)
    (folder / f"{stem}.jsonl").write_bytes(b'{"text": "ba", "n": 3}\n')
    report = embed(tmp_path / "corpus")
    assert report.source == f"{stem}/{stem}.jsonl"
    assert report.output == str(tmp_path / f"out/embeddings/{stem}/{stem}.h5")
    annotated = annotate(tmp_path / "out/embeddings", "document_id", "n")
    assert annotated.output == str(tmp_path / f"out/annotated_data/{stem}/{stem}.jsonl")
    (record,) = map(json.loads, Path(annotated.output).read_text().splitlines())
    assert (record["document_id"], record["n"]) == (f"{stem}/{stem}.jsonl:1", 3)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", b"\xff\xfe/x.jsonl", b"\xed\xa0\x80.jsonl"], ids=repr)
def test_a_name_that_is_not_utf8_is_refused_before_any_work(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(bytes(tmp_path / "corpus") + b"/" + name))
    path.parent.mkdir(parents=True)
    path.write_bytes(LINE)
    message = r"the name of b'.*\\x.*' is not UTF-8; rename it, for example with convmv, or narrow glob_pattern"
    with pytest.raises(ConfigError, match=message):
        find_files(tmp_path / "corpus", "**/*", SOURCE_SUFFIXES)


@pytest.mark.parametrize("stem", ["x" * 249, "ä" * 124], ids=["characters", "bytes"])
def test_a_name_that_is_too_long_for_its_outputs_is_refused_before_any_work(tmp_path: Path, stem: str) -> None:
    (tmp_path / f"{stem}.jsonl").write_bytes(LINE)
    message = (
        rf"the name of .*{stem[:9]}.* is {len(stem.encode()) - 240} bytes too long for names of outputs, .* 255 bytes"
    )
    with pytest.raises(ConfigError, match=message):
        find_files(tmp_path, "*", SOURCE_SUFFIXES)
