import functools
import itertools
import json
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, processors, trainers
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre
from transformers import AutoTokenizer, CanineTokenizer, PreTrainedTokenizerFast

from mlfilter_core.encoder.long_texts import CHARS_PER_TOKEN, N_TELLING, TruncatingTokenizer, find_cuts
from mlfilter_core.encoder.model_files import ModelFiles
from mlfilter_core.encoder.word_splits import split_into_words
from tests.conftest import tiny_tokenizer
from tests.mlfilter_core.encoder.hard_texts import ENGLISH, PROSE, hard_texts
from tests.mlfilter_core.encoder.whole_texts import bpe_of_whole_texts

WEB_PAGES = Path(__file__).parents[4] / "shared" / "data" / "fineweb_edu_1000.jsonl"
ADDED = [
    AddedToken("<mask>", lstrip=True, special=True, normalized=False),
    AddedToken("[MASK]", special=True, normalized=False),
    AddedToken("the", rstrip=True, normalized=False),
    AddedToken("of", lstrip=True, rstrip=True, normalized=True),
    AddedToken("ing", normalized=True),
    AddedToken("and", single_word=True, normalized=True),
    AddedToken("is", single_word=True, rstrip=True, normalized=False),
]
SPACES = [AddedToken(" " * n, normalized=True) for n in range(2, 9)]  # as ModernBERT's
QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3 = QWEN_2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TRAINERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "BPE": (models.BPE, trainers.BpeTrainer),
    "Unigram": (models.Unigram, trainers.UnigramTrainer),
    "WordPiece": (models.WordPiece, trainers.WordPieceTrainer),
}


def space_charsmap(spaces: bytes) -> bytes:
    """SentencePiece's table of replacements, a double array and its values, that makes spaces of some characters."""
    units = [0] * 512
    units[0] = 256 << 10
    for character in spaces:
        units[256 ^ character] = (256 ^ character ^ 511) << 10 | 1 << 8 | character
    units[511] = 1 << 31
    return struct.pack("<513I", 4 * len(units), *units) + b" \0"


def train(
    kind: str,
    normalizer: Any,
    pre_tokenizer: Any,
    added: list[AddedToken] = ADDED,
    template: str | None = None,
    unknown: str = "<unk>",
) -> Tokenizer:
    model, trainer = TRAINERS[kind]
    tokenizer = Tokenizer(model() if kind == "Unigram" else model(unk_token=unknown))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    options: dict[str, Any] = {"unk_token": unknown} if kind == "Unigram" else {}
    if kind == "BPE":
        options["initial_alphabet"] = pre.ByteLevel.alphabet()
    special = [unknown, "<s>", "</s>"]
    tokenizer.train_from_iterator(
        PROSE * 5, trainer(vocab_size=600, special_tokens=special, show_progress=False, **options)
    )
    tokenizer.add_tokens(added)
    if template is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in special]
        )
    return tokenizer


def split_by(regex: str) -> Any:
    split = pre.Split(Regex(regex), "isolated")
    return pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentence_pieces() -> Any:
    return pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()])


MASKS = ADDED[:2]
BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    "bert": lambda: train(
        "WordPiece", norm.BertNormalizer(), pre.BertPreTokenizer(), ADDED[:5], template="<s> $A </s>"
    ),
    "gpt2": lambda: train("BPE", None, pre.ByteLevel(add_prefix_space=False)),
    "roberta": lambda: train("BPE", None, pre.ByteLevel(add_prefix_space=True), MASKS, "<s> $A </s>"),
    "modernbert": lambda: train(
        "BPE", norm.NFC(), pre.ByteLevel(add_prefix_space=False), ADDED + SPACES, "<s> $A </s>"
    ),
    "qwen2": lambda: train("BPE", norm.NFC(), split_by(QWEN_2), template="$A </s>"),
    "llama3": lambda: train("BPE", None, split_by(LLAMA_3), template="<s> $A"),
    "xlm-roberta": lambda: train(
        "Unigram",
        norm.Sequence([norm.Precompiled(space_charsmap(b"\n\t")), norm.NFKC(), norm.Replace(Regex(" {2,}"), " ")]),
        sentence_pieces(),
        MASKS,
        "<s> $A </s>",
    ),
    "albert": lambda: train(
        "Unigram",
        norm.Sequence(
            [norm.Replace("``", '"'), norm.NFKD(), norm.StripAccents(), norm.Lowercase(), norm.Strip(), norm.Nmt()]
        ),
        pre.Metaspace(),
    ),
    "deberta": lambda: train(
        "Unigram",
        norm.Sequence([norm.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), norm.NFC(), norm.Strip(left=False)]),
        pre.Sequence([pre.Punctuation(), pre.Metaspace()]),
        template="<s> $A </s>",
    ),
    "gemma": lambda: in_words(bpe_of_whole_texts(norm.Replace(" ", "\u2581"), pre.Split(" ", "merged_with_previous"))),
    "llama2": lambda: in_words(
        bpe_of_whole_texts(norm.Sequence([norm.Prepend("\u2581"), norm.Replace(" ", "\u2581")]), None)
    ),
    "mistral": lambda: in_words(bpe_of_whole_texts(None, pre.Metaspace(split=False))),
}


def in_words(backend: Tokenizer) -> Tokenizer:
    tokenizer = wrap(backend)
    split_into_words(tokenizer)
    return tokenizer.backend_tokenizer


@functools.cache
def build(name: str) -> Tokenizer:
    return BUILDERS[name]()


@pytest.fixture(params=["minilm", *BUILDERS])
def backend(request: pytest.FixtureRequest, minilm: ModelFiles) -> Tokenizer:
    """A tokenizer that does not truncate."""
    if request.param != "minilm":
        return build(request.param)
    tokenizer = Tokenizer.from_file(str(minilm.folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def wrap(backend: Tokenizer, kind: Any = PreTrainedTokenizerFast, pad_token: str = "</s>") -> Any:
    return kind(tokenizer_object=backend, pad_token=pad_token)


def assert_equals_transformers(tokenizer: Any, texts: list[str], max_length: int, *first_chars: int) -> None:
    all_tokens = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    wanted = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    for n_chars in first_chars or (None,):
        input_ids, is_cut = TruncatingTokenizer(tokenizer, max_length, n_chars).tokenize(texts)
        assert [ids.tolist() for ids in input_ids] == wanted, n_chars
        assert is_cut.tolist() == [n > max_length for n in all_tokens], n_chars
        assert {ids.dtype for ids in input_ids} == {np.dtype(np.int32)}


def assert_cuts_keep_the_tokens(backend: Tokenizer, texts: list[str]) -> int:
    """Tries every place where a text could be cut, and returns how many there are."""
    cuts = find_cuts(backend)
    assert cuts is not None
    n_cuts = 0
    for text in texts:
        whole = backend.encode(text, add_special_tokens=False).ids
        parts = [text[: cut.end()] for cut in cuts.finditer(text)]
        n_cuts += len(parts)
        for part, encoding in zip(parts, backend.encode_batch(parts, add_special_tokens=False), strict=True):
            assert encoding.ids == whole[: len(encoding.ids)], (part[-20:], text[len(part) :][:20])
    return n_cuts


def test_the_tokens_before_every_cut_are_the_first_of_the_whole(backend: Tokenizer) -> None:
    assert assert_cuts_keep_the_tokens(backend, [*PROSE, *hard_texts(300, seed=0, pieces=30)]) > 1000


def test_every_first_part_gives_the_tokens_of_the_whole(backend: Tokenizer) -> None:
    texts = [*PROSE, *hard_texts(6, seed=1, pieces=25)]
    for max_length in (4, 11):
        assert_equals_transformers(wrap(backend), texts, max_length, *range(1, max(map(len, texts)) + 1))


def test_every_max_length_says_exactly_whether_a_text_was_cut(backend: Tokenizer) -> None:
    for max_length in range(3, 60):
        assert_equals_transformers(wrap(backend), [ENGLISH, "x", "", *PROSE], max_length)


def test_texts_without_a_cut_are_read_whole(backend: Tokenizer) -> None:
    texts = [
        "x" * 100_000,
        "中" * 20_000,
        " " * 30_000 + "a b",
        "\n" * 30_000 + "a b",
        "\u0301" * 5000,
        "a" + " " * 50_000,
    ]
    assert_equals_transformers(wrap(backend), texts, 16)


def test_a_cut_may_follow_every_character_that_is_named(backend: Tokenizer) -> None:
    cuts = find_cuts(backend)
    assert cuts is not None
    named = [character for character in map(chr, range(0xD800)) if cuts.match(f"{character} a")]
    assert {*"Az09!]\u00ff\u044f\u05ea\u0e01\u3042\u4e00\uac00"} < {*named}
    tried = [character for i, character in enumerate(named) if character < "\u3400" or i % 97 == 0]
    for before, after in itertools.product(("", "b", " ", "\u0301", "。"), (" a", "\na", "\n\n!", "。a", "。\n中")):
        parts = [before + character for character in tried if cuts.match(character + after)]
        alone = backend.encode_batch(parts, add_special_tokens=False)
        whole = backend.encode_batch([part + after for part in parts], add_special_tokens=False)
        assert all(a.ids == b.ids[: len(a.ids)] for a, b in zip(alone, whole, strict=True)), (before, after)


def test_the_normal_forms_of_what_a_cut_follows_end_alike() -> None:
    cuts = find_cuts(build("gpt2"))
    assert cuts is not None
    for character in filter(lambda character: cuts.match(f"{character} a"), map(chr, range(0xD800))):
        for normal in (unicodedata.normalize("NFKC", character), unicodedata.normalize("NFKD", character)):
            kinds = [unicodedata.category(part)[0] for part in normal]
            assert normal == character or (kinds[0] == "L" and {*kinds} <= {"L", "M"}), character


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("New York", normalized=False),
        AddedToken("new york", normalized=True),
        AddedToken("york\u00a0c", normalized=True),  # a space when normalized
        AddedToken("york ", normalized=True),
    ],
)
def test_no_cut_goes_through_an_added_token(token: AddedToken) -> None:
    backend = train("WordPiece", norm.Sequence([norm.NFKC(), norm.Lowercase()]), pre.BertPreTokenizer(), [token])
    text = "x a New York city new york york  yorkk c\n" * 3
    cuts = find_cuts(backend)
    assert cuts is not None and cuts.search("York city") is None and cuts.search("city\nof") is not None
    assert assert_cuts_keep_the_tokens(backend, [text]) > 0


def test_no_cut_goes_through_an_added_token_of_spaces_that_the_normalizer_makes() -> None:
    backend = train("BPE", norm.BertNormalizer(), pre.Metaspace(), [AddedToken("  ", normalized=True)])
    assert_cuts_keep_the_tokens(backend, ["中 a中 b中 中!。\n中" * 4])


REFUSED: dict[str, tuple[str, Any, Any]] = {
    "no pre-tokenizer": ("BPE", None, None),
    "metaspace that does not split": ("Unigram", None, pre.Metaspace(split=False)),
    "as Gemma": ("BPE", norm.Replace(" ", "\u2581"), pre.Split(" ", "merged_with_previous")),
    "as Llama 2": ("BPE", norm.Sequence([norm.Prepend("\u2581"), norm.Replace(" ", "\u2581")]), None),
    "bytes alone": ("BPE", None, pre.ByteLevel(use_regex=False)),
    "unknown regex": ("BPE", None, split_by(r"\w+ \w+|\s+")),
    "words that merge": ("BPE", None, pre.Split(Regex(QWEN_2), "merged_with_next")),
    "letters replaced": ("BPE", norm.Replace("a", " "), pre.Whitespace()),
    "a regex that looks far": ("BPE", norm.Replace(Regex("a(?=.*b)"), "c"), pre.Whitespace()),
    "marks removed": ("BPE", norm.Replace("--", ""), pre.Whitespace()),
    "marks that become letters": ("BPE", norm.Replace("--", "e"), pre.Whitespace()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_whose_words_do_not_end_for_certain_reads_everything(name: str) -> None:
    backend = train(*REFUSED[name], [])
    assert find_cuts(backend) is None
    assert_equals_transformers(wrap(backend), [*PROSE, "中 a" * 50], 7, 9)


@pytest.mark.parametrize(
    ("kind", "normalizer", "pre_tokenizer", "uncut"),
    [
        ("Unigram", norm.Replace(" ", ""), pre.WhitespaceSplit(), "中 a b"),
        ("Unigram", norm.Replace(Regex(" {2,}"), ""), pre.Metaspace(), "中  a"),
        ("Unigram", None, pre.Metaspace(), "中\nab\nc"),
        ("BPE", norm.BertNormalizer(), pre.ByteLevel(), "a 中 中"),  # spaces around Han characters
        ("BPE", None, split_by(QWEN_2), "。\na!\nb"),
    ],
)
def test_a_gap_that_ends_no_word_is_not_cut(kind: str, normalizer: Any, pre_tokenizer: Any, uncut: str) -> None:
    backend = train(kind, normalizer, pre_tokenizer, [])
    cuts = find_cuts(backend)
    assert cuts is not None and cuts.search(uncut) is None
    text = f"{uncut}{uncut} b。\n中!\nab cd\nef。\n\ngh{uncut}" * 2
    assert assert_cuts_keep_the_tokens(backend, [text]) > 0


def test_a_random_model_is_refused() -> None:
    backend = train("BPE", None, pre.ByteLevel(), [])
    assert find_cuts(backend) is not None
    backend.model.dropout = 0.1
    assert find_cuts(backend) is None


def test_a_part_written_in_python_is_refused() -> None:
    class Splitter:
        def pre_tokenize(self, pretok: Any) -> None:
            pretok.split(lambda _, text: [text])

    backend = train("BPE", None, pre.ByteLevel(), [])
    backend.pre_tokenizer = pre.PreTokenizer.custom(Splitter())
    assert find_cuts(backend) is None


class CountingBackend:
    """The real backend, which counts the characters that it is given."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self.n_chars = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self.n_chars += sum(map(len, texts))
        return self.backend.encode_batch_fast(texts)


@pytest.mark.parametrize("text", [ENGLISH * 20_000, PROSE[2] * 20_000, "https://example.org/ " * 10_000])
def test_little_of_a_long_text_is_read(backend: Tokenizer, text: str) -> None:
    cuts = find_cuts(backend)
    if cuts is None or cuts.search(text) is None:
        pytest.skip("this tokenizer ends words at spaces alone, and the text has none")
    tokenizer = wrap(backend)
    truncating = TruncatingTokenizer(tokenizer, 128)
    counting = tokenizer._tokenizer = CountingBackend(backend)
    (ids,), (is_cut,) = truncating.tokenize([text])
    assert len(ids) == 128 and is_cut
    assert 0 < counting.n_chars < 4 * CHARS_PER_TOKEN * 128


def test_as_much_of_texts_is_read_as_their_language_needs() -> None:
    tokenizer = wrap(build("bert"))
    truncating = TruncatingTokenizer(tokenizer, 64)
    counting = tokenizer._tokenizer = CountingBackend(tokenizer.backend_tokenizer)
    whole = Tokenizer.from_str(build("bert").to_str())
    whole.no_truncation()
    for text in ("中。" * 1000, "cake and tea " * 1000, "中。" * 1000):  # a token for each character, then longer ones
        n_read = []
        for _ in range(25):
            counting.n_chars = 0
            input_ids, is_cut = truncating.tokenize([text] * N_TELLING)
            assert is_cut.all() and {len(ids) for ids in input_ids} == {64}
            n_read.append(counting.n_chars / N_TELLING)
        n_needed = 62 * len(text) / len(whole.encode(text, add_special_tokens=False).ids)
        assert n_needed <= min(n_read[10:]) < 1.5 * n_needed
        # Now and then, the part is too short: once in some rounds, all texts are read twice.
        assert sum(n_read[10:]) < 15 * 2.5 * n_needed


def test_a_text_with_long_tokens_is_read_in_growing_parts(minilm: ModelFiles) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm.folder)
    truncating = TruncatingTokenizer(tokenizer, 128)
    counting = tokenizer._tokenizer = CountingBackend(tokenizer.backend_tokenizer)
    (ids,), (is_cut,) = truncating.tokenize(["international government information " * 10_000])
    assert len(ids) == 128 and is_cut
    assert 2 * CHARS_PER_TOKEN * 128 < counting.n_chars < 8 * CHARS_PER_TOKEN * 128


def test_other_calls_of_the_tokenizer_change_nothing(minilm: ModelFiles) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm.folder)
    truncating = TruncatingTokenizer(tokenizer, 16)
    texts = [ENGLISH, "short [MASK]"]
    first = truncating.tokenize(texts)
    tokenizer(texts, padding="max_length", truncation=True, max_length=8, split_special_tokens=True)
    again = truncating.tokenize(texts)
    assert [ids.tolist() for ids in first[0]] == [ids.tolist() for ids in again[0]]
    assert first[1].tolist() == again[1].tolist() == [True, False]


def test_without_a_max_length_every_token_is_kept() -> None:
    tokenizer = tiny_tokenizer()
    input_ids, is_cut = TruncatingTokenizer(tokenizer, None).tokenize(PROSE)
    assert [ids.tolist() for ids in input_ids] == tokenizer(PROSE)["input_ids"]
    assert not is_cut.any()


def test_no_texts_give_no_tokens() -> None:
    input_ids, is_cut = TruncatingTokenizer(tiny_tokenizer(), 8).tokenize([])
    assert input_ids == [] and is_cut.shape == (0,)


class Reversing(PreTrainedTokenizerFast):
    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._encode_plus([one[::-1] for one in text], *args, **kwargs)


def slow(kind: Any = CanineTokenizer) -> Any:
    return kind()


@pytest.mark.parametrize(
    "tokenizer",
    [
        slow(),
        tiny_tokenizer(truncation_side="left"),
        wrap(tiny_tokenizer().backend_tokenizer, Reversing, pad_token="[PAD]"),
    ],
    ids=["slow", "left", "own"],
)
def test_other_tokenizers_do_all_by_themselves(tokenizer: Any) -> None:
    assert_equals_transformers(tokenizer, [ENGLISH * 3, "short", *PROSE], 32, 40)


@pytest.mark.skipif(not WEB_PAGES.exists(), reason=f"{WEB_PAGES} is not there")
@pytest.mark.parametrize("max_length", [32, 256])
def test_web_pages_give_what_transformers_gives(minilm: ModelFiles, max_length: int) -> None:
    with open(WEB_PAGES, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 100)]
    assert_equals_transformers(AutoTokenizer.from_pretrained(minilm.folder), texts, max_length)
