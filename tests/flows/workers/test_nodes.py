import pytest

from flows.workers.nodes import DIED, FAILED, SLOW, STILLBORN, Nodes


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def nodes(said: list[str]) -> Nodes:
    """Nodes of a run that has used six."""
    nodes = Nodes(said.append)
    for node in "abcdef":
        nodes.see(node)
    return nodes


def test_a_node_is_excluded_at_the_third_fault_with_what_happened(nodes: Nodes, said: list[str]) -> None:
    nodes.blame("a", DIED, "x.jsonl")
    nodes.blame("b", DIED, "y.jsonl")
    nodes.blame("a", DIED, "x.jsonl")
    assert (nodes.excluded, said, nodes.remarks()) == ((), [], [])
    nodes.blame("a", SLOW, "z.jsonl")
    assert nodes.excluded == ("a",)
    line = (
        "node a is not used again in this run: a worker died (2 times: x.jsonl); "
        "a worker was far slower than others (1 time: z.jsonl)"
    )
    assert said == nodes.remarks() == [line]
    nodes.blame("a", FAILED, "w.jsonl")
    assert said == [line]


def test_a_task_with_trouble_on_two_nodes_is_the_cause_and_no_node_is_blamed_for_it(
    nodes: Nodes, said: list[str]
) -> None:
    for _ in range(3):
        nodes.blame("a", DIED, "poison.jsonl")
    assert nodes.excluded == ("a",)
    nodes.blame("b", DIED, "poison.jsonl")
    assert nodes.excluded == ()
    assert said[-1] == "node a is used again: poison.jsonl has the same trouble on another node"
    for _ in range(3):
        nodes.blame("c", DIED, "poison.jsonl")
    assert (nodes.excluded, nodes.remarks()) == ((), [])


def test_no_more_than_a_third_of_the_nodes_are_excluded(nodes: Nodes, said: list[str]) -> None:
    for node in "abc":
        for n in range(4):
            nodes.blame(node, STILLBORN, f"Slurm job {n}{node}")
    assert nodes.excluded == ("a", "b")
    kept = "node c is used in spite of what happened there"
    assert said[2:] == [
        f"{kept}, as too few others are left: a job ended before its workers connected (3 times: Slurm job 0c, "
        "Slurm job 1c, Slurm job 2c)"
    ]
    assert nodes.remarks()[2].startswith(f"{kept}: a job ended before its workers connected (4 times: Slurm job 0c")
    assert nodes.remarks()[2].endswith("Slurm job 2c, ...)")


@pytest.mark.parametrize(("seen", "excluded"), [("", ()), ("a", ()), ("b", ("a",)), ("ab", ("a",))])
def test_the_only_node_on_which_workers_have_started_is_not_excluded(
    seen: str, excluded: tuple[str, ...], said: list[str]
) -> None:
    nodes = Nodes(said.append)
    for node in seen:
        nodes.see(node)
    for n in range(3):
        nodes.blame("a", STILLBORN, f"Slurm job {n}")
    assert nodes.excluded == excluded
    assert len(said) == 1


def test_a_node_that_was_used_for_lack_of_others_is_excluded_once_there_are_others(said: list[str]) -> None:
    nodes = Nodes(said.append)
    nodes.see("a")
    for n in range(3):
        nodes.blame("a", DIED, f"{n}.jsonl")
    nodes.see("b")
    assert nodes.excluded == ()
    nodes.blame("a", DIED, "3.jsonl")
    assert nodes.excluded == ("a",)
    assert nodes.remarks() == said[1:]


def test_nodes_that_are_used_again_are_not_excluded_a_second_time(nodes: Nodes, said: list[str]) -> None:
    for n in range(3):
        nodes.blame("a", FAILED, f"{n}.jsonl")
    nodes.readmit("sbatch refuses")
    assert nodes.excluded == ()
    assert said[-1] == "node a is used again: sbatch refuses"
    nodes.blame("a", FAILED, "3.jsonl")
    assert nodes.excluded == ()
    assert nodes.remarks()[0].startswith("node a is used in spite of what happened there: a task failed and then")
