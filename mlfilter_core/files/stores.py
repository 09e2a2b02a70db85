"""A folder of a store, behind a URL, and its mirror on this machine: listed, staged in, put out.

Readers and writers work on the mirror. Knows nothing about what the files contain.
"""

import base64
import errno
import functools
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson

from mlfilter_core.errors import ConfigError, MlfilterError, SourceError, StoreError, in_one_line
from mlfilter_core.files.claims import claim, hidden_name
from mlfilter_core.files.publishing import publish, publish_json
from mlfilter_core.files.urls import masked

# About a minute with the waits between. The libraries of the stores try again within each attempt, and the run after.
ATTEMPTS = 6
FIRST_WAIT_S = 1.0
VERSION_SUFFIX = ".version"  # hidden file beside a staged one: which version it is
# What stores call the version of a file. Some of these names also stand for a checksum; see `_checksum`.
VERSIONS = ("ETag", "etag", "md5Hash", "blob_id")
TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime")
# Codes of S3 for credentials that are refused altogether, whatever they are used for.
BAD_CREDENTIALS = (
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
)

T = TypeVar("T")

_log = logging.getLogger(__name__)
# Stores whose ETags look like MD5 and are not, as with server-side encryption by KMS.
_without_md5: set[str] = set()


@dataclass(frozen=True)
class StoredFile:
    """A file of a store, as the store describes it.

    Attributes:
        bytes: Size; None where the store does not say it.
        mtime_ns: Time of modification, in whole seconds, as listings and files may differ below; None where unknown.
        version: What identifies the content, such as the ETag; empty where the store has nothing of the kind.
        checksum: Algorithm and digest of the content, as in `md5:9e107d9d...`; empty where the store has none.
    """

    bytes: int | None
    mtime_ns: int | None
    version: str
    checksum: str = field(default="", compare=False)

    def identity(self) -> dict[str, Any]:
        """Returns what tells this version from others, for JSON."""
        return {"bytes": self.bytes, "mtime_ns": self.mtime_ns, "version": self.version}


@dataclass(frozen=True)
class Listing:
    """The files below a folder of a store, by relative path."""

    url: str
    files: Mapping[str, StoredFile]


@dataclass(frozen=True)
class StoreFolder:
    """A folder of a store and its mirror.

    Attributes:
        url: URL of the folder, without a slash at the end.
        mirror: Folder of this machine, where staged files and new outputs have the same relative paths.
    """

    url: str
    mirror: Path

    def url_to(self, relative: str) -> str:
        return f"{self.url}/{relative}"

    def listing(self) -> Listing:
        """Returns all files below the folder, from one listing; none for a folder that is not there.

        Raises:
            ConfigError: The bucket does not exist, or the store refuses to list it.
            OSError: The store does not answer.
        """
        root = self.path_of("")

        def find() -> dict[str, Mapping[str, Any]]:
            self.store.invalidate_cache()
            found: dict[str, Mapping[str, Any]] = self.store.find(root, detail=True)
            return found

        try:
            found = _retried(self.url, find)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.url} does not exist ({_shown(error)}); fix the URL, or create the bucket"
            ) from None
        except StoreError as error:
            raise ConfigError(str(error)) from None
        if list(found) == [root] and found[root]["type"] == "file":
            raise ConfigError(f"{self.url} is a file; give its folder, and a glob_pattern")
        files = {}
        for path, info in found.items():
            relative = path.removeprefix(root).lstrip("/")
            if info["type"] == "file" and relative and not relative.endswith("/"):  # a marker of an empty folder
                described = _described(info)
                files[relative] = self.find(relative) or described if described.bytes is None else described
        return Listing(self.url, files)

    def find(self, relative: str) -> StoredFile | None:
        """Returns a file as it is now; None where there is none."""

        def info() -> Mapping[str, Any]:
            self.store.invalidate_cache()
            found: Mapping[str, Any] = self.store.info(self.path_of(relative))
            return found

        try:
            found = _retried(self.url_to(relative), info)
        except FileNotFoundError:
            return None
        return _described(found) if found["type"] == "file" else None

    def stage(self, relative: str, listed: StoredFile | None = None) -> StoredFile:
        """Returns the version of a file that lies in the mirror, whole; waits while another process stages it.

        Args:
            relative: The file.
            listed: The version that was listed, which need not be the one that is there now.

        Raises:
            SourceError: The file is gone, may not be read, or changes again and again while it is staged.
            StoreError: The store refuses the credentials.
            OSError: The store does not answer, or the disk is full.
        """
        target = self.mirror / relative
        with claim(target):
            if listed is not None and listed == self.staged(relative):
                return listed
            try:
                staged = _retried(self.url_to(relative), _Download(self, relative))
            except FileNotFoundError:
                raise SourceError(
                    f"{self.url_to(relative)} was listed, and is not there; run again when it is back"
                ) from None
            except _ChangedError as error:
                raise SourceError(f"{error}; run again when it is complete") from None
            except _DeniedError as error:
                self._check_access()  # an answer about one file does not say whether credentials have expired
                raise SourceError(str(error)) from None
        if listed is not None and staged != listed:
            _log.info("%s changed since it was listed; the new version is used", self.url_to(relative))
        return staged

    def staged(self, relative: str) -> StoredFile | None:
        """Returns the version of a file that lies in the mirror; None where none does."""
        target = self.mirror / relative
        try:
            staged = StoredFile(**orjson.loads(hidden_name(target, VERSION_SUFFIX).read_bytes()))
            return staged if target.stat().st_size == staged.bytes else None
        except (OSError, ValueError, TypeError):
            return None

    def unstage(self, relative: str) -> None:
        """Removes a file from the mirror."""
        target = self.mirror / relative
        for path in (hidden_name(target, VERSION_SUFFIX), target):
            path.unlink(missing_ok=True)

    def put(self, relative: str) -> StoredFile:
        """Puts a file of the mirror into the store, where it appears at once and whole; returns it as it is there.

        Raises:
            StoreError: The store refuses it.
            OSError: The store does not answer.
        """
        path = self.mirror / relative

        def put() -> StoredFile:
            self.store.put_file(str(path), self.path_of(relative))
            return self._checked(relative, path.stat().st_size)

        return _retried(self.url_to(relative), put)

    def read(self, relative: str) -> bytes | None:
        """Returns the content of a small file; None where there is none."""

        def read() -> bytes:
            content: bytes = self.store.cat_file(self.path_of(relative))
            return content

        try:
            return _retried(self.url_to(relative), read)
        except FileNotFoundError:
            return None

    def read_all(self, relatives: Sequence[str]) -> dict[str, bytes]:
        """Returns the contents of small files that exist, many at a time."""
        paths = {self.path_of(relative): relative for relative in relatives}

        def read() -> dict[str, bytes | Exception]:
            if not paths:
                return {}
            contents = self.store.cat(list(paths), on_error="return")
            for content in contents.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
            found: dict[str, bytes | Exception] = contents
            return found

        contents = _retried(self.url, read)
        return {paths[path]: content for path, content in contents.items() if isinstance(content, bytes)}

    def write(self, relative: str, content: bytes) -> None:
        """Writes a small file, replacing what is there."""

        def write() -> None:
            self.store.pipe_file(self.path_of(relative), content)

        _retried(self.url_to(relative), write)

    def create(self, relative: str, content: bytes) -> bool:
        """Writes a small file unless there is one; returns whether it did.

        Of several processes that create it at once, one succeeds; in stores without conditional writes, one at least.
        """

        def create() -> bool:
            try:
                self.store.pipe_file(self.path_of(relative), content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if "PreconditionFailed" not in repr(error.__cause__):
                    raise
                return False
            return True

        if self.find(relative) is not None:
            return False
        return _retried(self.url_to(relative), create) or self.read(relative) == content  # an attempt that was lost

    def remove(self, relative: str) -> None:
        """Removes a file, which need not exist."""

        def remove() -> None:
            self.store.rm_file(self.path_of(relative))

        with suppress(FileNotFoundError):
            _retried(self.url_to(relative), remove)

    def _check_access(self) -> None:
        """Checks that the folder can be listed.

        Raises:
            StoreError: It cannot.
        """
        _retried(self.url, lambda: self.store.ls(self.path_of("")))

    @property
    def is_here(self) -> bool:
        """Whether this is a folder of this machine, with itself as its mirror."""
        return self.url.startswith("file://")

    @property
    def store(self) -> Any:
        """The file system of the store, from fsspec."""
        return _opened(self.url.partition("://")[0])

    def path_of(self, relative: str) -> str:
        """Returns the path by which the file system of the store knows a file, or this folder."""
        import fsspec.core

        path: str = fsspec.core.url_to_fs(self.url_to(relative) if relative else self.url)[1]
        return path

    def _checked(self, relative: str, n_bytes: int) -> StoredFile:
        there = self.find(relative)
        if there is None or there.bytes != n_bytes:
            found = "nothing" if there is None else f"{there.bytes} bytes"
            raise OSError(errno.EIO, f"{n_bytes} bytes were put, and {found} is there", self.url_to(relative))
        return there


class _ChangedError(OSError):
    """A file changed while it was read."""


class _NoAnswerError(OSError):
    """A store did not do what was asked of it, however often it was asked."""


class _DeniedError(StoreError):
    """Access is denied, to one file or to all."""


class _Download:
    """Stages one file; called again after an error."""

    def __init__(self, folder: StoreFolder, relative: str) -> None:
        self._folder = folder
        self._relative = relative
        self._unlike_checksum: str | None = None

    def __call__(self) -> StoredFile:
        folder, relative = self._folder, self._relative
        target, url = folder.mirror / relative, folder.url_to(relative)
        before = folder.find(relative)
        if before is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
        hidden_name(target, VERSION_SUFFIX).unlink(missing_ok=True)
        with publish(target) as temporary:
            folder.store.get_file(folder.path_of(relative), str(temporary))
            if folder.find(relative) != before:
                raise _ChangedError(f"{url} changed while it was staged")
            n_bytes = temporary.stat().st_size
            if before.bytes not in (None, n_bytes):
                raise OSError(errno.EIO, f"{n_bytes} of {before.bytes} bytes arrived", url)
            self._check_content(temporary, before.checksum)
            if before.mtime_ns is not None:
                os.utime(temporary, ns=(before.mtime_ns, before.mtime_ns))
        staged = StoredFile(n_bytes, before.mtime_ns, before.version)
        publish_json(hidden_name(target, VERSION_SUFFIX), staged.identity())
        return before

    def _check_content(self, path: Path, checksum: str) -> None:
        """Compares the content with the checksum of the store; two downloads that are equal outvote an ETag."""
        algorithm, _, expected = checksum.partition(":")
        if not checksum or (algorithm == "etag" and self._folder.url in _without_md5):
            return
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256" if algorithm == "sha256" else "md5").hexdigest()
        if found == expected:
            return
        if algorithm == "etag" and found == self._unlike_checksum:
            _without_md5.add(self._folder.url)
            _log.info(
                "the ETags of %s are no checksums, as with encryption by KMS; only sizes are checked", self._folder.url
            )
            return
        self._unlike_checksum = found
        raise OSError(errno.EIO, "what arrived has another checksum", self._folder.url_to(self._relative))


@functools.cache
def _opened(scheme: str) -> Any:
    """Returns the file system of a store, one in a process; it remembers no listings."""
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False, **({"auto_mkdir": True} if scheme == "file" else {}))


def folder_here(folder: Path) -> StoreFolder:
    """Returns a folder of this machine as if a store had it; nothing has to be staged or put."""
    return StoreFolder(f"file://{folder.absolute()}", folder.absolute())


def _retried(url: str, call: Callable[[], T]) -> T:
    """Calls again after an error that may pass, with growing pauses.

    Raises:
        FileNotFoundError: There is nothing.
        StoreError: The store refuses the credentials or the access.
        OSError: The last attempt failed as well.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except (FileNotFoundError, MlfilterError, _NoAnswerError):  # the last two: of a call within this one
            raise
        except Exception as error:  # each store has exceptions of its own, for throttling, lost connections and others
            if (refusal := _refusal(error, url)) is not None:
                raise refusal from None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            last = error
        if attempt < ATTEMPTS - 1:
            _log.info("%s: %s; trying again", url, _shown(last))
            time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0))
    if isinstance(last, _ChangedError):
        raise last
    raise _NoAnswerError(errno.EIO, f"{_shown(last)}, {ATTEMPTS} times", url) from None


def _refusal(error: Exception, url: str) -> StoreError | None:
    """Returns what to raise where another attempt is in vain; None where it is not."""
    response = getattr(error.__cause__ or error, "response", None)
    code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, Mapping) else ""
    status = str(getattr(error, "status", getattr(error, "code", "")))
    has_none = type(error).__name__.endswith(("CredentialsError", "ProfileNotFound", "TokenRetrievalError"))
    if code in BAD_CREDENTIALS or has_none or status == "401":
        return StoreError(f"{url}: the store refuses the credentials ({_shown(error)}); renew them and run again")
    if isinstance(error, PermissionError) or status == "403":
        return _DeniedError(f"{url}: access is denied ({_shown(error)}); fix the permissions or the credentials")
    return None


def _shown(error: BaseException) -> str:
    return masked(in_one_line(error))


def _described(info: Mapping[str, Any]) -> StoredFile:
    version = next((str(info[name]).strip('"') for name in VERSIONS if info.get(name)), "")
    size = info.get("size")
    return StoredFile(size if size is None else int(size), _mtime_ns(info), version, _checksum(info, version))


def _mtime_ns(info: Mapping[str, Any]) -> int | None:
    for value in (info[name] for name in TIMES if info.get(name)):
        try:
            if isinstance(value, str):
                value = datetime.fromisoformat(value) if value[:1].isdigit() else parsedate_to_datetime(value)
            if isinstance(value, datetime):
                value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
            return int(value) * 1_000_000_000
        except (TypeError, ValueError):
            continue
    return None


def _checksum(info: Mapping[str, Any], version: str) -> str:
    """Returns the checksum that a store gives: `sha256:`, `md5:`, or `etag:` for what is mostly an MD5."""
    lfs, md5 = info.get("lfs"), info.get("md5Hash") or (info.get("content_settings") or {}).get("content_md5")
    if isinstance(lfs, Mapping) and lfs.get("sha256"):
        return f"sha256:{lfs['sha256']}"
    if md5:
        return f"md5:{(base64.b64decode(md5) if isinstance(md5, str) else bytes(md5)).hex()}"
    is_md5 = "ETag" in info and len(version) == 32 and all(digit in "0123456789abcdef" for digit in version)
    return f"etag:{version}" if is_md5 and "StorageClass" in info else ""
