"""Small corpora for the plan."""

from pathlib import Path

from mlfilter_core.files.task_files import TaskFile


def corpus_of(folder: Path, contents: dict[str, bytes]) -> list[TaskFile]:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return [TaskFile(name, name.partition(".")[0], folder) for name in sorted(contents)]
