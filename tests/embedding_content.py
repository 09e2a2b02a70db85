"""The content of a file of embeddings, to compare two of them to the bit."""

import json
from pathlib import Path
from typing import Any

import h5py


def content(path: Path) -> dict[str, Any]:
    """The exact content of a file of embeddings, and the rejected lines."""
    with h5py.File(path) as file:
        found: dict[str, Any] = {}
        file.visititems(lambda name, node: found.update({name: node}) if isinstance(node, h5py.Dataset) else None)
        rows = {name: (str(node.dtype), node[()].tobytes() if node.dtype != object else list(node[()]))
                for name, node in found.items()}  # fmt: skip
        facts = {name: json.loads(value) for name, value in file["train"].attrs.items() if name != "format_version"}
    facts["encoder"].pop("why_max_batch_tokens")
    return {**rows, **facts, "rejected": (path.parent / "rejected.jsonl").read_text()}
