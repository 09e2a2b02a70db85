"""On which device of this machine a job is tried whose workers may be elsewhere."""

from mlfilter_core.errors import ConfigError
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import PlannedWorkers


def device_here(device: str, workers: PlannedWorkers, findings: Findings) -> str | None:
    """Returns the job's device, where it is here; `cpu` for one that the workers' machines may have.

    Returns:
        None where there is no such device, which is noted as a problem.
    """
    from mlfilter_core.compute.devices import pick_device

    try:
        pick_device(device)
    except ConfigError as error:
        if not workers.are_elsewhere:
            findings.add_problem(str(error))
            return None
        findings.add_warning(f"{error}; what is measured here is the processor, and Slurm's nodes may have it")
        return "cpu"
    return device
