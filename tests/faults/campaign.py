"""The length of the fault tests, and the file of their figures.

`make faults` runs all of them at full length, and writes their counts to benchmarks/results/faults.json.
"""

import json
import os
from pathlib import Path
from typing import Any

IS_LONG = os.environ.get("MLFILTER_FAULTS") == "long"
SEED = int(os.environ.get("MLFILTER_FAULTS_SEED", "1"))
RESULT = os.environ.get("MLFILTER_FAULTS_RESULT")


def amount(short: int, long: int) -> int:
    """Returns the number of repetitions of a test: few in CI, many by hand."""
    return long if IS_LONG else short


def record(name: str, **figures: Any) -> None:
    """Adds the figures of one test to the file of results, if there is one."""
    print(name, figures)
    if RESULT is None:
        return
    path = Path(RESULT)
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = figures
    path.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
