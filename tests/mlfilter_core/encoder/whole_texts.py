"""BPE tokenizers that give a whole text to their model as one word, as those of Gemma and Llama 2."""

import json
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

SPACE = "\u2581"
TEXTS = [
    "The chlorophyll in the leaves absorbs red and blue light, which isn't what we'd see.\n\n    if x:\n        y",
    "Größenübergänge für Müßiggänger\närgern Öl-Übersetzer. 12345 3.14 a_b x--  two  spaces   three",
]


def bpe_of_whole_texts(normalizer: Any, pre_tokenizer: Any, words: str | None = None, **options: Any) -> Tokenizer:
    """Returns a tokenizer that was trained on words, but splits into none.

    Args:
        normalizer: Normalizer of the tokenizer.
        pre_tokenizer: Pre-tokenizer of the tokenizer.
        words: Pattern of the words for training; None are those that begin with spaces.
        options: Options of the model; characters without a token become bytes.
    """
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", SPACE)
    pattern = words or f"{SPACE}*[^{SPACE}\n]+|{SPACE}+|\n+"
    learned.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    learned.train_from_iterator(TEXTS * 5, trainer)
    model = json.loads(learned.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    merges = [tuple(pair) for pair in model["merges"]]
    settings = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, **options}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, **settings))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    return tokenizer
