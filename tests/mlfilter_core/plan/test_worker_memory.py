from mlfilter_core.corpus.windows import WINDOW_BYTES
from mlfilter_core.plan.worker_memory import embedding_memory


def test_the_memory_of_a_worker_is_the_formula_of_the_readme() -> None:
    memory = embedding_memory(10**9, 64 << 20)
    assert memory.n_bytes == 10**9 + 8 * 5 * (WINDOW_BYTES + (64 << 20))
    assert "1 GB measured, 4.03 GB for the longest lines allowed" in memory.why
