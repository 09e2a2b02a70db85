"""Checks one filtered file: its provenance, and what is here of its annotations, dropped documents and other runs."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlfilter_core.config.annotation import ANNOTATED_DIR
from mlfilter_core.config.filtering import DROPPED_DIR, FILTERED_DIR
from mlfilter_core.corpus.own_outputs import PROVENANCE_FOLDER
from mlfilter_core.files.identity import is_same_file
from mlfilter_core.filtering.filter_request import OUTPUT_SUFFIXES
from mlfilter_core.filtering.kept_counts import KeptCounts
from mlfilter_core.filtering.scored_files import scored_files
from mlfilter_core.verification.corpus_limits import CorpusLimits, FilterTally
from mlfilter_core.verification.discrepancies import FileCheck, Findings, Place
from mlfilter_core.verification.filtered_content import FilteredContent, WrittenFile
from mlfilter_core.verification.output_kinds import Output, OutputKind, RelatedFiles, VerifyRequest, without_suffix
from mlfilter_core.verification.stated_facts import StatedFacts, StatedFilter, reading
from mlfilter_core.verification.stated_limits import StatedLimits

AGAIN = "filter again"
PROVENANCE_DIR = f"{FILTERED_DIR}/{PROVENANCE_FOLDER}"
NO_ANNOTATIONS = "against their annotated files, which are not in this folder"


def provenance_of(relative: str) -> str:
    """Returns the place of a filtered file's provenance, relative to the output folder."""
    return f"{PROVENANCE_DIR}/{relative.removeprefix(f'{FILTERED_DIR}/')}.json"


def find_filtered(relative: str) -> Output | None:
    """Returns the filtered file that a file is, describes, or was written beside as its dropped documents."""
    top, _, name = relative.partition("/")
    if relative.startswith(f"{PROVENANCE_DIR}/"):
        name = relative.removeprefix(f"{PROVENANCE_DIR}/").removesuffix(".json")
    elif top not in (FILTERED_DIR, DROPPED_DIR) or not name.endswith(OUTPUT_SUFFIXES):
        return None
    return Output(f"{FILTERED_DIR}/{name}", without_suffix(name, OUTPUT_SUFFIXES))


def evidence_of(relative: str) -> tuple[str, ...]:
    """Returns the files that `read_filtered` reads."""
    return relative, provenance_of(relative)


def read_filtered(relative: str, request: VerifyRequest) -> StatedFacts:
    """Returns what a filtered file states.

    Raises:
        UnreadableOutputError: The file or its provenance is missing, or the provenance is broken.
    """
    path, provenance = request.output_dir / relative, request.output_dir / provenance_of(relative)
    with reading(provenance):
        n_bytes = path.stat().st_size
        made = json.loads(provenance.read_bytes())
        report, dropped = made["report"], made["dropped"]
        n_bytes += int(dropped["bytes"]) if dropped else 0
        return StatedFacts(n_bytes, int(report["kept"]), filtered=StatedFilter(made["request"], report))


def check_filtered(relative: str, request: VerifyRequest, related: RelatedFiles) -> FileCheck:
    """Checks one filtered file with its dropped documents; never raises for what is wrong with it.

    Args:
        relative: The filtered file, below the output folder; it may be missing.
        request: Request of the verification.
        related: Candidates for its annotated file and for the embeddings.
    """
    check = _Check(relative, request, related, Findings(request.output_dir / relative, AGAIN))
    with check.findings.collecting():
        check.run()
    return check.result()


@dataclass
class _Check:
    """The check of one filtered file, with its findings so far; attributes as in `FileCheck`."""

    relative: str
    request: VerifyRequest
    related: RelatedFiles
    findings: Findings
    not_checked: list[str] = field(default_factory=list)
    made: Mapping[str, Any] = field(default_factory=dict)
    limits: StatedLimits | None = None
    is_complete: bool = False
    n_bytes: int = 0

    @property
    def name(self) -> str:
        return self.relative.removeprefix(f"{FILTERED_DIR}/")

    @property
    def stem(self) -> str:
        return without_suffix(self.name, OUTPUT_SUFFIXES)

    def run(self) -> None:
        provenance = self.request.output_dir / provenance_of(self.relative)
        try:
            made: dict[str, Any] = json.loads(provenance.read_bytes())
        except (OSError, ValueError) as error:
            self.findings.add("provenance", f"has no readable provenance ({error})", f"{AGAIN}, or remove it")
            return
        self.made, self.limits = made, StatedLimits.of(made["request"])
        self._check_report()
        self._check_others()
        written = self._written_files()
        if written is None or not self.request.read_content:
            return
        annotated = self._find_annotated()
        with ExitStack() as files:
            content = FilteredContent(self.request, made, self.limits, written, self.findings, files)
            with self.findings.collecting():
                if annotated is None or not content.check_against(annotated, self.related.outputs):
                    content.check_alone()
                else:
                    self.is_complete = True
            self.not_checked += content.not_checked
            self.n_bytes = content.n_bytes

    def result(self) -> FileCheck:
        report = self.made.get("report", {})
        n_kept = report.get("kept", 0)
        place = None
        if self.limits is not None:
            tally = FilterTally.of(self.limits, self.is_complete)
            place = Place(FILTERED_DIR, self.stem, _settings(self.made["request"]), tally)
        return FileCheck(
            self.relative,
            self.findings.problems(),
            tuple(self.not_checked),
            n_bytes=self.n_bytes,
            place=place,
            kept=n_kept,
            dropped=report.get("documents", 0) - n_kept,
        )

    def _check_report(self) -> None:
        """Checks that the stated counts add up."""
        report = self.made["report"]
        if not 0 <= report["kept"] <= report["documents"]:
            self.findings.add("kept", f"it states {report['kept']:,} of {report['documents']:,} documents")
        if report["by_group"]:
            stated = KeptCounts(**{name: report[name] for name in KeptCounts.__dataclass_fields__})
            total = sum((KeptCounts(**counts) for counts in report["by_group"].values()), KeptCounts())
            if total != stated:
                self.findings.add("groups", f"it states {stated.describe()}, and its groups {total.describe()}")
        if bool(self.made["dropped"]) != self.made["request"]["write_dropped"]:
            self.findings.add("dropped", "its record of dropped documents contradicts write_dropped")

    def _check_others(self) -> None:
        """Finds files of other runs, which readers of the folders would read too."""
        for folder in (FILTERED_DIR, DROPPED_DIR):
            for suffix in OUTPUT_SUFFIXES:
                other = f"{folder}/{self.stem}{suffix}"
                is_own = suffix == self.name.removeprefix(self.stem) and (
                    folder == FILTERED_DIR or self.made["dropped"] is not None
                )
                if not is_own and (self.request.output_dir / other).exists():
                    self.findings.add("stale", f"{other} is of another run", f"{AGAIN}, or remove what is not wanted")

    def _written_files(self) -> list[WrittenFile] | None:
        """Returns the filtered and the dropped file; None, with a problem, where one is missing."""
        written: list[WrittenFile] = []
        n_dropped = self.made["report"]["documents"] - self.made["report"]["kept"]
        for folder, name, n in (
            (FILTERED_DIR, "output", self.made["report"]["kept"]),
            (DROPPED_DIR, "dropped", n_dropped),
        ):
            recorded = self.made[name]
            if recorded is None:
                continue
            place = f"{folder}/{self.name}"
            if not (self.request.output_dir / place).exists():
                self.findings.add(place, f"{place} is missing, though {provenance_of(self.relative)} exists")
                return None
            self._check_metadata(place, recorded)
            written.append(WrittenFile(place, folder == FILTERED_DIR, n, recorded["sha256"]))
        return written

    def _check_metadata(self, place: str, recorded: Mapping[str, Any]) -> None:
        is_same = is_same_file(self.request.output_dir / place, recorded, read_content=False)
        if is_same is False:
            self.findings.add(place, f"{place} changed since it was written: it has another size")
        elif is_same is None and not self.request.read_content:
            copied = f"{place} was copied or changed since it was written"
            self.findings.add(place, copied, "check without --quick to compare the content")

    def _find_annotated(self) -> Path | None:
        """Returns the annotated file of the documents; None, with a problem or a remark, if it is not here."""
        output_dir = self.request.output_dir
        found = scored_files(output_dir, self.stem)
        for path in found:
            if is_same_file(path, self.made["annotated"], read_content=True):
                return path
        if found:
            names = " or ".join(str(path.relative_to(output_dir)) for path in found)
            self.findings.add("annotated", f"was filtered from another version of {names}")
        elif (output_dir / ANNOTATED_DIR).is_dir():
            gone = f"its annotated file {ANNOTATED_DIR}/{self.made['report']['annotated']} is missing"
            self.findings.add("annotated", gone, "annotate and filter again, or remove it")
        else:
            self.not_checked.append(NO_ANNOTATIONS)
        return None


def _settings(request: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that all filtered files must share, without those of groups, for `CorpusLimits`."""
    return {name: value for name, value in request.items() if name not in ("cuts", "shares")}


FILTERED_FILES = OutputKind(
    "filtered files",
    find_filtered,
    read_filtered,
    check_filtered,
    made_from="annotate",
    again=AGAIN,
    check_together=CorpusLimits,
    evidence=evidence_of,
)
