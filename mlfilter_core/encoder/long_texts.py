"""The first `max_length` tokens of a text, from a part of the text that is long enough.

Hugging Face's tokenizers read the whole text, then drop all but its first tokens
(https://github.com/huggingface/tokenizers/issues/1573). Here the text is cut first, at a place where the tokens of
the part before the cut are certainly the first tokens of the whole text: between a letter and a space, for example. If
the part has more than `max_length` tokens, these are the result. If not, a longer part is tried.

Such a cut is safe for the tokenizers that `find_cuts` accepts. The part ends with a letter, digit or punctuation
mark; the rest begins with a gap, which is a space, line feeds or a full stop. Stage by stage:

1. Added tokens are searched from the left; the longest of those that start at one place is taken. No added token
   contains an end and a gap. So none starts in the part and ends in the rest, and those in the part are found either
   way. (A token may strip white space, but only from the rest. Next to a token that must be a single word, a gap is a
   boundary like the end of the text.)
2. The normalizer gives the same for the part, whatever follows. It works on single characters, apart from normal
   forms, graphemes and runs of white space, and none of these extends across the cut.
3. The pre-tokenizer ends a word at the cut: it splits from left to right, and treats a gap like the end of the text.
4. The model gets one word at a time, and the post-processor gets the truncated tokens.
"""

import json
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from mlfilter_core.encoder.word_splits import WORDS

# Characters for each wanted token in the first part that is tried; the next has twice as many, and so on. The fastest
# of 4 to 8 for 128, 256 and 512 tokens (MiniLM, FineWeb-Edu): nearly all documents need one try. Chinese has some 1.5
# characters in a token, so the first part shrinks while nearly all texts need one try, and grows where more need two.
CHARS_PER_TOKEN = 6
SHRINK, GROW = 0.85, 1.2
FEW_TOO_SHORT, MANY_TOO_SHORT = 1 / 128, 1 / 32  # shares of the long texts; a second try costs twice the first
N_TELLING = 32  # texts, below which a share tells little
# Arbitrary: so few that the length is soon found, and enough for all cores.
TEXTS_AT_A_TIME = 256

# Letters and digits in every version of Unicode, whose normal forms are letters and digits again, perhaps with marks
# after them. Their neighbours are not: the NFKC of U+0140 is "l·", and U+0D4E is one grapheme with a space after it.
_ALNUM = (
    "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff"  # Latin
    "\u0391-\u03a1\u03a3-\u03a9\u03b1-\u03c9\u0410-\u044f"  # Greek, Cyrillic
    "\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\u0905-\u0939\u0e01-\u0e2e"  # Hebrew, Arabic, Devanagari, Thai
    "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"  # kana, Han, Hangul
)
_STOP = "\u3002"  # the full stop of Chinese and Japanese, which have few spaces
_MARKS = string.punctuation + _STOP
# Where a text may be cut: between an end and a gap, if a letter or printable ASCII follows. Each row has the ends as a
# character class, samples of them that `find_cuts` tests with a tokenizer, and the gap. A row is not safe for every
# tokenizer: GPT-4's has a punctuation mark and the line feeds after it in one word.
_PLACES = (
    *((_ALNUM, _ALNUM.replace("-", ""), gap) for gap in (" ", "\n", "\n\n", _STOP, f"{_STOP}\n", f"{_STOP}\n\n")),
    *((re.escape(_MARKS), _MARKS, gap) for gap in (" ", "\n", "\n\n")),
)

# Parts of tokenizers for which stages 2, 3 and 4 are true: Replace and Split only with the patterns below, BPE only
# without dropout.
_NORMALIZERS = (
    *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt"),
    *("Precompiled", "Prepend", "Replace", "Strip", "StripAccents"),
)
_PRE_TOKENIZERS = (
    *("BertPreTokenizer", "ByteLevel", "Digits", "Metaspace"),
    *("Punctuation", "Split", "Whitespace", "WhitespaceSplit"),
)
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
# White space may be replaced by these, and punctuation by punctuation: both still end words.
_REPLACED_SPACES = ({"String": " "}, {"Regex": " {2,}"}, {"Regex": r"\s+"}, {"Regex": r"\s{2,}|[\n\r\t]"})
_FOR_SPACES = ("", " ", "\u2581")
# Patterns of Qwen 2, Llama 3 and GPT-4, Qwen 3.5, GPT-4o, and of words that begin with a space; GPT-2's is in
# ByteLevel. No alternative matches an end with the gap after it, and `(?!\S)` treats a space like the end of the text.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPLIT_REGEXES = (
    rf"{_WORD}|\p{{N}}|{_OTHER}|{_SPACE}",
    rf"{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|{_SPACE}",
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}",
    WORDS,
)


class TruncatingTokenizer:
    """A transformers tokenizer that reads no more of a text than it needs."""

    def __init__(self, tokenizer: Any, max_length: int | None, first_chars: int | None = None) -> None:
        """Takes a tokenizer.

        Args:
            tokenizer: The backend of a fast tokenizer is called directly; any other tokenizer reads whole texts.
            max_length: Most tokens of a text, special tokens included; None keeps all.
            first_chars: Characters of the first part that is tried; None takes `CHARS_PER_TOKEN` for each token, and
                adapts it to the texts.
        """
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._first_chars = first_chars or CHARS_PER_TOKEN * (max_length or 1)
        self._is_direct = _is_direct(tokenizer)
        is_cutting = self._is_direct and max_length is not None
        self._cuts = find_cuts(tokenizer.backend_tokenizer) if is_cutting else None
        self._adapts = first_chars is None and self._cuts is not None

    def tokenize(self, texts: Sequence[str]) -> tuple[list[NDArray[np.int32]], NDArray[np.bool_]]:
        """Returns the tokens of each text.

        Returns:
            One int32 (n_tokens,) array for each text, cut to `max_length`; and bool (n_texts,), whether the
            text has more tokens than that.
        """
        input_ids: list[NDArray[np.int32]] = []
        is_cut: list[bool] = []
        for start in range(0, len(texts), TEXTS_AT_A_TIME):
            own_ids, own_is_cut = self._tokenize_some(texts[start : start + TEXTS_AT_A_TIME])
            input_ids += own_ids
            is_cut += own_is_cut
        return input_ids, np.array(is_cut, np.bool_)

    def _tokenize_some(self, texts: Sequence[str]) -> tuple[list[NDArray[np.int32]], list[bool]]:
        input_ids, is_cut = [np.zeros(0, np.int32)] * len(texts), [False] * len(texts)
        encode = self._encode if self._is_direct else self._encode_by_transformers
        rows, first_chars = list(range(len(texts))), self._first_chars
        n_chars = first_chars
        while rows:
            parts = [self._first_part(texts[row], n_chars) for row in rows]
            for row, (ids, has_more) in zip(rows, encode(parts), strict=True):
                input_ids[row], is_cut[row] = np.asarray(ids, np.int32), has_more
            n_long = sum(is_cut[row] or len(part) < len(texts[row]) for row, part in zip(rows, parts, strict=True))
            rows = [
                row for row, part in zip(rows, parts, strict=True) if len(part) < len(texts[row]) and not is_cut[row]
            ]
            if self._adapts and n_chars == first_chars:
                self._adapt(len(rows), n_long)
            n_chars *= 2
        return input_ids, is_cut

    def _adapt(self, n_too_short: int, n_long: int) -> None:
        """Changes the length of the first part, after texts of too many tokens or characters.

        Args:
            n_too_short: Number of these texts whose first part had too few tokens.
            n_long: Number of these texts.
        """
        if n_long < N_TELLING:
            return
        if n_too_short > MANY_TOO_SHORT * n_long:
            self._first_chars = int(self._first_chars * GROW) + 1
        elif n_too_short < FEW_TOO_SHORT * n_long:
            self._first_chars = max(self._max_length or 1, int(self._first_chars * SHRINK))

    def _first_part(self, text: str, n_chars: int) -> str:
        cut = self._cuts.search(text, n_chars) if self._cuts else None
        return text[: cut.end()] if cut else text

    def _encode(self, texts: list[str]) -> Iterator[tuple[list[int], bool]]:
        backend, max_length = self._tokenizer.backend_tokenizer, self._max_length
        # Any call of the tokenizer may have changed these.
        backend.encode_special_tokens = self._tokenizer.split_special_tokens
        backend.no_padding()
        if max_length is None:
            backend.no_truncation()
        else:
            # One token more if there are no special tokens: tokenizers 0.23.1 then stops at the limit, and reports no
            # overflow.
            backend.enable_truncation(max_length + (backend.num_special_tokens_to_add(False) == 0))
        for encoding in backend.encode_batch_fast(texts):
            ids = encoding.ids
            yield ids[:max_length], max_length is not None and (len(ids) > max_length or bool(encoding.overflowing))

    def _encode_by_transformers(self, texts: list[str]) -> Iterator[tuple[list[int], bool]]:
        encoded = self._tokenizer(
            texts,
            truncation=self._max_length is not None,
            max_length=self._max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        for i, ids in enumerate(encoded["input_ids"]):
            # Slow tokenizers do not report whether they dropped tokens.
            yield (
                ids,
                len(ids) == self._max_length and (not encoded.encodings or bool(encoded.encodings[i].overflowing)),
            )


def find_cuts(backend: Any) -> re.Pattern[str] | None:
    """Returns a pattern that matches up to where a text can be cut; None if no place is known to be safe.

    Args:
        backend: A `tokenizers.Tokenizer`.
    """
    if not _is_local(backend):
        return None
    safe = [
        f"[{ends}](?={gap}[!-~{_ALNUM}])" for ends, samples, gap in _PLACES if _is_safe(backend, ends, samples, gap)
    ]
    return re.compile("|".join(safe)) if safe else None


def _is_direct(tokenizer: Any) -> bool:
    kind, plain = type(tokenizer), PreTrainedTokenizerFast
    is_plain = issubclass(kind, plain) and (kind.__call__, kind._encode_plus) == (plain.__call__, plain._encode_plus)
    return is_plain and tokenizer.truncation_side == "right"


def _is_local(backend: Any) -> bool:
    try:
        steps = [*_steps(backend.normalizer), *_steps(backend.pre_tokenizer)]
    except Exception:  # the class that tokenizers raises for parts written in Python
        return False
    return (
        all(map(_is_local_step, steps))
        and type(backend.model).__name__ in _MODELS
        and not getattr(backend.model, "dropout", None)
    )


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yields the steps of a normalizer or pre-tokenizer, in the form of tokenizer.json."""
    waiting = [] if part is None else [json.loads(part.__getstate__())]
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += step.get("normalizers") or step.get("pretokenizers") or []
        else:
            yield step


def _is_local_step(step: dict[str, Any]) -> bool:
    pattern = step.get("pattern", {})
    if step["type"] == "Split" and step["behavior"] == "MergedWithPrevious":  # Gemma's
        return bool(pattern == {"String": " "})
    if step["type"] == "Replace" and step["content"] in _FOR_SPACES:
        return pattern in _REPLACED_SPACES
    if step["type"] == "Replace":
        return {*pattern.get("String", " "), *step["content"]} <= {*string.punctuation}
    if step["type"] == "Split":
        return pattern.get("Regex") in _SPLIT_REGEXES and step["behavior"] == "Isolated"
    return step["type"] in (*_NORMALIZERS, *_PRE_TOKENIZERS)


def _is_safe(backend: Any, ends: str, samples: str, gap: str) -> bool:
    """Whether each sample ends a word before the gap, and no added token contains one of the ends and the gap."""
    tokens = backend.get_added_tokens_decoder().values()
    if any(re.search(f"[{ends}]{gap[0]}", token.content) for token in tokens):
        return False
    normalized_tokens = [_normalize(backend, token.content) for token in tokens if token.normalized]
    for sample in samples:
        before, around = _normalize(backend, sample), _normalize(backend, sample + gap + sample)
        words_before, words_around = _words(backend, before), _words(backend, around)
        if not words_before or words_before != words_around[: len(words_before)] or words_before == words_around:
            return False
        # BertNormalizer puts a space after a Han character, and so before the gap.
        starts = normalized_tokens if before[-1].isspace() else [token.lstrip() for token in normalized_tokens]
        if any(around[len(before)] in token[1:] for token in starts):
            return False
    return True


def _normalize(backend: Any, text: str) -> str:
    return text if backend.normalizer is None else str(backend.normalizer.normalize_str(text))


def _words(backend: Any, normalized: str) -> list[str]:
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)] if backend.pre_tokenizer else []
