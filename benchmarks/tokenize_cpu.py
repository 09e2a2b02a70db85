"""Tokens that one core tokenizes in a second: kinds of tokenizers, languages, lengths; beside transformers' own call.

Tokenizers are trained here on the texts, of each kind that encoders have, as none can be downloaded: WordPiece (BERT),
byte-level BPE with the words of GPT-2 (ModernBERT) and of Qwen, BPE over whole texts with bytes as a fallback (Gemma),
Unigram (XLM-RoBERTa). English and German are web documents from `--corpus` and `--german`, or the example corpus,
repeated; code is Python's standard library; Chinese is made up of words of common characters.

Rates are of CPU time, so that other load of the machine matters little. Token ids are compared before they are timed.

    python benchmarks/tokenize_cpu.py --json benchmarks/results/tokenize_cpu.json
"""

import itertools
import json
import os
import random
import struct
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from embed_cpu import REAL_CORPUS, read_texts
from measure import alternate, parser, publish
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mlfilter_core.encoder.long_texts import TruncatingTokenizer
from mlfilter_core.encoder.word_splits import split_into_words

GERMAN_CORPUS = REAL_CORPUS.with_name("fineweb2_deu_200.jsonl")
MAX_LENGTHS = (512, 8192)
N_TOKENS = 30_000  # of a vocabulary, as BERT has; the texts are too few for 250,000
MAX_CHARS = 100_000  # of a document: longer ones are rare
# The pattern of Qwen 2 and 3.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
N_WARM_UP = 15  # calls, in which our tokenizer learns how much of a text it needs
SPECIAL = ["<unk>", "<s>", "</s>"]


def main() -> None:
    """Trains the tokenizers and times them."""
    options = parser(__doc__)
    options.add_argument(
        "--corpus", type=Path, default=REAL_CORPUS, help="JSONL file with an English text in each line"
    )
    options.add_argument("--german", type=Path, default=GERMAN_CORPUS, help="the same in German")
    options.add_argument("--documents", type=int, default=100, help="documents of each language (default: 100)")
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = options.parse_args()
    # Read when the pool of threads is made: by the first training.
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    texts, origins = texts_of_languages(arguments.corpus, arguments.german, arguments.documents)
    everything = [text for own in texts.values() for text in own]
    figures: dict[str, float] = {}
    for kind in arguments.kinds:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](everything), pad_token="</s>")
        for (language, own), max_length in itertools.product(texts.items(), MAX_LENGTHS):
            measured = speed(tokenizer, own, max_length, arguments.rounds)
            figures |= {f"{kind}_{language}_{max_length}_{key}": value for key, value in measured.items()}
    about = {f"{language} documents": origin for language, origin in origins.items()}
    publish(figures, {**about, "threads": str(arguments.threads)}, arguments.json)


def speed(tokenizer: PreTrainedTokenizerFast, texts: list[str], max_length: int, rounds: int) -> dict[str, float]:
    """Returns the rates of our tokenizer and of transformers', with the same token ids."""
    in_words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    split_into_words(in_words)  # as `load_encoder` does
    truncating = TruncatingTokenizer(in_words, max_length)
    ours: Callable[[], Any] = partial(truncating.tokenize, texts)
    theirs: Callable[[], Any] = partial(tokenizer, texts, truncation=True, max_length=max_length)
    for _ in range(N_WARM_UP):
        ids, _ = ours()
    if [own.tolist() for own in ids] != theirs()["input_ids"]:
        raise RuntimeError(f"the tokens are not those of transformers, at most {max_length}")
    cpu_s = alternate(rounds, {"ours": in_one_thread(ours), "theirs": in_one_thread(theirs)}, time.process_time)
    wall_s = alternate(rounds, {"one": in_one_thread(ours), "all": ours})
    n_tokens = sum(map(len, ids))
    return {
        "tokens_per_s": n_tokens / cpu_s["ours"],
        "vs_transformers": cpu_s["theirs"] / cpu_s["ours"],
        "threads_speedup": wall_s["one"] / wall_s["all"],
    }


def in_one_thread(tokenize: Callable[[], Any]) -> Callable[[], None]:
    """Returns the same work in the calling thread alone; tokenizers read the variable on each call."""

    def run() -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        tokenize()
        os.environ["TOKENIZERS_PARALLELISM"] = "true"

    return run


def texts_of_languages(english: Path, german: Path, n_documents: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Returns texts of each language, and where they are from."""
    texts, origins = {}, {}
    for language, corpus in (("english", english), ("german", german)):
        texts[language], origins[language] = read_texts(corpus, n_documents)
    texts["chinese"], origins["chinese"] = chinese_texts(n_documents), "made up"
    texts["code"], origins["code"] = source_code(n_documents), "Python's standard library"
    return {name: [text[:MAX_CHARS] for text in own] for name, own in texts.items()}, origins


def source_code(n_documents: int) -> list[str]:
    """Returns modules of Python's standard library, evenly spaced."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    paths = [path for path in paths if path.stat().st_size > 1000]
    return [paths[i * len(paths) // n_documents].read_text("utf-8", "replace") for i in range(n_documents)]


def chinese_texts(n_documents: int) -> list[str]:
    """Returns sentences of words of one to three common characters, with the frequencies of Zipf's law."""
    chance = random.Random(0)
    characters = [bytes([row, cell]).decode("gb2312") for row in range(0xB0, 0xD7) for cell in range(0xA1, 0xFF)]
    chance.shuffle(characters)
    often = list(itertools.accumulate(1 / rank for rank in range(1, 20_001)))
    words = [
        "".join(chance.choices(characters, cum_weights=often[: len(characters)], k=chance.choice((1, 2, 2, 2, 3))))
        for _ in often
    ]
    texts = []
    for _ in range(n_documents):
        n_sentences = max(1, round(chance.lognormvariate(3.2, 0.9)))
        texts.append("".join(sentence(chance, words, often) for _ in range(n_sentences)))
    return texts


def sentence(chance: random.Random, words: list[str], often: list[float]) -> str:
    """Returns clauses with commas, and a full stop; some end a paragraph."""
    lengths = [chance.randint(3, 9) for _ in range(chance.randint(1, 4))]
    clauses = ["".join(chance.choices(words, cum_weights=often, k=length)) for length in lengths]
    return "\uff0c".join(clauses) + chance.choice(("\u3002", "\u3002", "\u3002", "\u3002\n"))


def wordpiece(texts: list[str]) -> Tokenizer:
    """Returns a tokenizer as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(**settings()))
    return ended(tokenizer)


def byte_bpe(texts: list[str]) -> Tokenizer:
    """Returns a tokenizer as ModernBERT's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings())
    )
    return ended(tokenizer)


def byte_bpe_qwen(texts: list[str]) -> Tokenizer:
    """Returns a tokenizer as Qwen 3's."""
    tokenizer = byte_bpe(texts)
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


def bpe_with_bytes(texts: list[str]) -> Tokenizer:
    """Returns a tokenizer as Gemma's: no words, but no token goes across the beginning of one."""
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "\u2581")
    learned.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581*[^\u2581\n]+|\u2581+|\n+"), "isolated")
    learned.train_from_iterator(texts, trainers.BpeTrainer(limit_alphabet=5000, **settings()))
    model = json.loads(learned.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return ended(tokenizer)


def unigram(texts: list[str]) -> Tokenizer:
    """Returns a tokenizer as XLM-RoBERTa's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap()), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(unk_token="<unk>", **settings()))
    return ended(tokenizer)


def charsmap() -> bytes:
    """Returns a table of SentencePiece, a double array and its values, that makes spaces of line feeds and tabs."""
    units = [0] * 512
    units[0] = 256 << 10
    for character in b"\n\t":
        units[256 ^ character] = (256 ^ character ^ 511) << 10 | 1 << 8 | character
    units[511] = 1 << 31
    return struct.pack("<513I", 4 * len(units), *units) + b" \0"


def settings() -> dict[str, Any]:
    """Returns the settings of all trainers."""
    return {"vocab_size": N_TOKENS, "special_tokens": SPECIAL, "show_progress": False}


def ended(tokenizer: Tokenizer) -> Tokenizer:
    """Returns the tokenizer with a token before each text and one after it."""
    special = [(token, tokenizer.token_to_id(token)) for token in SPECIAL[1:]]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    return tokenizer


KINDS: dict[str, Callable[[list[str]], Tokenizer]] = {
    "wordpiece": wordpiece,
    "byte_bpe": byte_bpe,
    "byte_bpe_qwen": byte_bpe_qwen,
    "bpe_with_bytes": bpe_with_bytes,
    "unigram": unigram,
}


if __name__ == "__main__":
    main()
