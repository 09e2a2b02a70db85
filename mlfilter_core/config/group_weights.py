"""The weights of groups, as people write them: in a job, or in a YAML or JSON file of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlfilter_core.errors import in_one_line
from mlfilter_core.files.urls import refuse_url


def weights_by_group(written: Any) -> Any:
    """Returns weights by the text of each group, from a mapping or the path of a file with one.

    The values are not checked; what is neither a path nor a mapping is returned as it is.
    Example: `{3: 2, "de": 0.5}` is `{"3": 2, "de": 0.5}`.

    Raises:
        ValueError: The file cannot be read or has no mapping; a group is no text and no whole number, or has two
            weights.
    """
    if isinstance(written, str | Path):
        written = _load(Path(written))
    if not isinstance(written, Mapping):
        return written
    weights: dict[str, Any] = {}
    for group, weight in written.items():
        if isinstance(group, bool) or not isinstance(group, str | int):
            raise ValueError(
                f'the group {group!r} is no text; write it in quotes, such as "no", which is false without'
            )
        if str(group) in weights:
            raise ValueError(f'the group "{group}" has two weights; give it one')
        weights[str(group)] = weight
    return weights


def _load(path: Path) -> Mapping[Any, Any]:
    refuse_url(path)
    try:
        content = OmegaConf.to_container(OmegaConf.load(path.expanduser()), resolve=False)
    except (OSError, RuntimeError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"the file {path} cannot be read: {in_one_line(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"the file {path} has no mapping from groups to weights")
    return content
