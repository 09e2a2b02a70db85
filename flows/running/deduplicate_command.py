"""The deduplicate command, which runs a deduplication job or shows what other thresholds would remove."""

import shutil
from collections.abc import Callable
from typing import Annotated

import typer

from flows.running.script import ConfigPath, Overrides, Quiet, Verbose, run_and_print
from flows.running.start import reporting_to, run_job
from flows.running.tables import print_table
from mlfilter_core.config.deduplication import DeduplicationJob
from mlfilter_core.config.job_files import parse_overrides
from mlfilter_core.job_kinds import JobKind, load_job_of_kind
from mlfilter_core.wording import count, share

N_CHARACTERS = 70  # of the beginning of a text


def deduplicate_command(kind: JobKind) -> Callable[..., None]:
    """Returns the deduplicate command, which with `--dry-run` only shows what thresholds would remove."""

    def command(
        config: ConfigPath,
        set_: Overrides = None,
        quiet: Quiet = False,
        verbose: Verbose = False,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run", help="Show what thresholds from 0.80 to 0.99 would remove, with pairs at each; write none."
            ),
        ] = False,
    ) -> None:
        def run() -> None:
            job = load_job_of_kind(config, kind, parse_overrides(set_ or []))
            assert isinstance(job, DeduplicationJob), "the class of its kind"
            if not dry_run:
                run_job(job)
                return
            with reporting_to(lambda report: None):
                run_job(job, may_be_over=False, dry_run=True)
            _preview(job)

        run_and_print(run, quiet, verbose)

    command.__doc__ = kind.summary
    return command


def _preview(job: DeduplicationJob) -> None:
    """Prints what each threshold would remove, then the least similar pair that it takes for duplicates."""
    from mlfilter_core.deduplication.preview import preview
    from mlfilter_core.deduplication.work import trial_of

    work = trial_of(job)
    shown = preview(work.request)
    shutil.rmtree(work.request.compared.divided.folder, ignore_errors=True)
    rows = [
        [f"{each.threshold:.2f}", count(each.duplicates), share(each.duplicates, each.documents), count(each.groups)]
        for each in shown
    ]
    print_table([["threshold", "duplicates", "of all", "groups"], *rows], n_names=1)
    for each in shown:
        if each.edge:
            print(f"\n{each.threshold:.2f}: {each.edge[0]['cosine'] or 'the same text'}")
            for document in each.edge:
                text = " ".join(document["text"].split())[:N_CHARACTERS]
                print(f"  {document['document_id']}: {text}")
