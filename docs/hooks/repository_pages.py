"""Pages of the site that are elsewhere in the repository, where readers expect them.

A hook of MkDocs: adds the pages, with their links made to fit the site.
"""

import os
import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[2]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "benchmarks.md": "benchmarks/README.md"}
LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    for uri, source in PAGES.items():
        content = LINK.sub(partial(_on_site, source), (REPOSITORY / source).read_text())
        files.append(File.generated(config, uri, content=content))
    return files


def _on_site(source: str, link: re.Match[str]) -> str:
    """Returns a link for the site; only its text if the site lacks the target."""
    text, target, anchor = link[1], link[2], link[3] or ""
    if "://" in target:
        return link[0]
    path = PurePosixPath(os.path.normpath(PurePosixPath(source).parent / target))
    uri = {page: uri for uri, page in PAGES.items()}.get(str(path))
    if uri is None and path.parts[0] == "docs" and (REPOSITORY / path).is_file():
        uri = str(path.relative_to("docs"))
    return f"[{text}]({uri}{anchor})" if uri else text
