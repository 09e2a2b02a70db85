from mlfilter_core.corpus.windows import WINDOW_BYTES
from mlfilter_core.plan.worker_memory import embedding_memory


def test_the_memory_of_a_worker_is_the_formula_of_the_readme() -> None:
    memory = embedding_memory(10**9, 64 << 20)
    assert memory.n_bytes == 10**9 + 8 * 5 * (WINDOW_BYTES + (64 << 20))
    assert "1 GB measured, 4.03 GB for the longest lines allowed" in memory.why


def test_the_embeddings_of_chunks_take_memory() -> None:
    without, with_chunks = embedding_memory(10**9, 1 << 20), embedding_memory(10**9, 1 << 20, 2.5)
    assert with_chunks.n_bytes - without.n_bytes == 4 * 2.5 * (32 << 20)
    assert "336 MB for the embeddings of chunks" in str(with_chunks)
