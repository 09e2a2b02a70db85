import re
import tomllib
from pathlib import Path

import pytest

from mlfilter_core.files.urls import STORES, check_url, masked, refuse_url, url_of


@pytest.mark.parametrize(
    "written", ["s3://bucket/corpus", "s3://bucket/corpus/", "s3:/bucket/corpus", "S3://bucket/corpus"]
)
def test_a_path_made_from_a_url_stays_one(written: str) -> None:
    assert url_of(Path(written)) == "s3://bucket/corpus"


@pytest.mark.parametrize("path", ["corpus", "/data/s3", "/s3:/x", "~/x", "C:/x", "package:encoders/model", "a:b"])
def test_a_path_of_this_machine_is_no_url(path: str) -> None:
    assert url_of(Path(path)) is None
    refuse_url(path)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "hf", "https", "file", "hdfs"])
def test_a_url_is_refused_instead_of_becoming_a_folder_of_that_name(scheme: str) -> None:
    with pytest.raises(ValueError, match="is a URL, which is not taken here; give a path of this machine"):
        refuse_url(Path(f"{scheme}://bucket/corpus"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'s3://id:secret@bucket/x' failed", "'s3://***@bucket/x' failed"),
        ("s3:/id:secret@bucket", "s3:/***@bucket"),
        ("https://host/x?X-Amz-Signature=abc&y=1 failed", "https://host/x?*** failed"),
        ("hf://datasets/owner/name@main/x", "hf://datasets/owner/name@main/x"),
        ("which one? a=b", "which one? a=b"),
    ],
)
def test_credentials_in_urls_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize("scheme", STORES)
def test_what_a_url_needs_is_the_name_of_an_extra(scheme: str) -> None:
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    extra, module = STORES[scheme].extra, STORES[scheme].module
    assert extra is None or [re.split("[>=]", needed)[0] for needed in extras[extra]] == [module]


@pytest.mark.parametrize(
    ("url", "is_written", "message"),
    [
        ("s4://bucket/x", False, "s4:// is no store that is known here .*; did you mean s3://"),
        ("file:///x", False, "file:// is no store that is known here"),
        ("s3://", False, "names no bucket"),
        ("s3://id:secret@bucket/x", False, "contains credentials"),
        ("https://host/x?signature=abc", False, "contains credentials or a query"),
        ("hf://datasets/owner/name", True, "hf:// is only read"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, is_written: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        check_url(url, is_written)
    assert "secret" not in str(refused.value)


def test_urls_of_stores_that_are_installed_are_taken() -> None:
    check_url("s3://bucket", is_written=True)
    check_url("hf://datasets/owner/name@main/data", is_written=False)
    check_url("https://host/folder", is_written=False)
