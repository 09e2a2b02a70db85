"""Texts in several scripts, and texts that tokenizers get wrong when they are cut."""

import random

ENGLISH = "The chlorophyll in the leaves absorbs red and blue light, which isn't what we'd see of them. "
PROSE = [
    ENGLISH,
    "Größenübergänge für Müßiggänger\närgern Öl-Übersetzer.\r\n\r\nDon't THEY'LL 12345 3.14 a_b x--\n\nЯ пишу, λέξη.\n",
    "光合作用是植物的过程、很重要。\n中华人民共和国的首都是北京。\n\n「日本語の文章です。」光合成について。\n",
    "ภาษาไทยไม่มีช่องว่าง ระหว่างคำ นี้\n한국어 문장입니다. 식물의\nहिन्दी में लिखा वाक्य। कि क\nسلم عليكم و שלום עולם\n",
]
# Pieces that combine, split, vanish or are added tokens.
HARD = [
    *(" ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\x00", "\x1c"),
    *("\u0301", "e\u0301\u0323", "\u1100\u1161\u11a8", "\uac00\u11a8", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    *(
        "\u0e33",
        "\u0e17\u0e35\u0e48",
        "\u0d4e ",
        "\u0600 ",
        "\u0140\n",
        "\u037a",
        "\ufdfa",
        "\u00bd",
        "\u2474",
        "\u0130",
    ),
    *(
        "。",
        "。\n",
        "。\n\n",
        "、",
        "\uff0c",
        "中",
        "北京",
        "'s",
        "'T",
        "``",
        "''",
        "...",
        '"',
        "\u2581",
        "x",
        "y z",
        "q\nw",
    ),
    *(
        " [MASK] ",
        "[MASK",
        "<mask>",
        "  <mask>  ",
        "<mas",
        "ing ",
        "the ",
        " of ",
        "of",
        "and ",
        "\nand",
        "is. ",
        "New York",
    ),
]


def hard_texts(n: int, seed: int, pieces: int) -> list[str]:
    """Returns texts of random pieces."""
    chance = random.Random(seed)

    def piece() -> str:
        start = chance.randrange(80)
        return chance.choice(HARD) if chance.random() < 0.7 else chance.choice(PROSE)[start : start + 12]

    return ["".join(piece() for _ in range(pieces)) for _ in range(n)]
