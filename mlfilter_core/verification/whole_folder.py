"""Problems that only the outputs of a folder together show: missing ones, and different settings."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlfilter_core.verification.discrepancies import FileCheck, Place
from mlfilter_core.verification.output_kinds import Output, OutputKind
from mlfilter_core.wording import plural, shown

N_SHOWN = 3


def missing_outputs(
    kind: OutputKind, outputs: Sequence[Output], origins: Iterable[Place], origin_kind: OutputKind
) -> Iterator[FileCheck]:
    """Yields the folders of which only some files have an output of a kind that is made from them.

    A folder without any, such as labelled documents for training, was not meant to have them.

    Args:
        kind: The kind.
        outputs: Its outputs.
        origins: Places of the files that such outputs are made from.
        origin_kind: Their kind.
    """
    present = {output.name for output in outputs}
    stems: dict[str, set[str]] = defaultdict(set)
    for place in origins:
        stems[place.folder].add(place.stem)
    for folder, own in sorted(stems.items()):
        missing = sorted(own - present)
        if missing and len(missing) < len(own):
            files = f"{len(missing):,} of {len(own):,} {origin_kind.plural} have no {kind.plural}"
            yield FileCheck(folder, (f"{files}: {_some(missing)}; {kind.again}",))


def missing_origins(
    kind: OutputKind, outputs: Sequence[Output], origins: Iterable[Place], origin_kind: OutputKind
) -> Iterator[FileCheck]:
    """Yields what some outputs of a kind were made from and others lack; arguments as for `missing_outputs`."""
    present = {place.stem for place in origins}
    missing = sorted(output.name for output in outputs if output.name not in present)
    if missing and len(missing) < len(outputs):
        files = f"{len(missing):,} of {len(outputs):,} {kind.plural} have no {origin_kind.plural}"
        folder = outputs[0].path.partition("/")[0]
        yield FileCheck(folder, (f"{files} any more: {_some(missing)}; {origin_kind.again}, or remove them",))


def differing_settings(kind: OutputKind, places: Iterable[Place]) -> Iterator[FileCheck]:
    """Yields the folders whose outputs were made with different settings, with each value and its files."""
    by_folder: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        by_folder[place.folder].append(place)
    for folder, own in sorted(by_folder.items()):
        names = sorted({name for place in own for name in place.settings})
        problems = [problem for name in names if (problem := _difference(name, own))]
        if problems:
            yield FileCheck(folder, tuple(f"settings differ: {problem}; {kind.again}" for problem in problems))


def _difference(name: str, places: Sequence[Place]) -> str | None:
    stems: dict[str, list[str]] = defaultdict(list)
    values: dict[str, Any] = {}
    for place in places:
        if name in place.settings:
            key = json.dumps(place.settings[name], sort_keys=True)
            values[key] = place.settings[name]
            stems[key].append(place.stem)
    if len(stems) < 2:
        return None
    by_frequency = sorted(stems, key=lambda key: (-len(stems[key]), key))
    return f"{name} is " + ", ".join(
        f"{_value(values[key])} in {plural(len(stems[key]), 'file')} ({_some(sorted(stems[key]))})"
        for key in by_frequency[:N_SHOWN]
    )


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else shown(value)


def _some(stems: Sequence[str]) -> str:
    return ", ".join(stems[:N_SHOWN]) + (", ..." if len(stems) > N_SHOWN else "")
