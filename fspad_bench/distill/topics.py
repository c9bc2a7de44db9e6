"""What conversations are about: how a user's message opens, the rest being the target's to write.

A kind is a share of the conversations and a few openings. After an opening the target goes on as the user; kinds with
`material` open with texts that the target wrote, so long inputs are its own too: answers of other conversations, or
what it writes when nobody asked, outside the chat template, which is as full of names and turns as the texts it once
learned from. No word of an evaluation's prompts stands here, and the overlap report of every data set looks for any
that got in otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

TEXT = "{text}"
QUESTION = "{question}"


class Kind(NamedTuple):
    """`openings` that the target completes, or messages over `material` (the number of texts, from and to): whole ones,
    unless it `asks`, which completes these too.

    `length` is the most tokens of an answer; `temperature`, where given, holds for all answers of the kind; `words` is
    how much of each text is taken. `texts` are how its own texts begin; without them they are answers of others.
    """

    share: float
    openings: tuple[str, ...]
    length: int = 256
    temperature: float | None = None
    material: tuple[int, int] | None = None
    words: int = 400
    texts: tuple[str, ...] = ()
    asks: bool = False


NEWS = (  # no opening ends with a space: a word's own stands before it
    "LONDON —",
    "By our staff reporter\n\nThe",
    "On Monday, the",
    "Police in",
    "The company said on Thursday",
    "A court has",
    "After the match,",
    "Two years after",
)
LORE = (
    "The history of",
    "In the spring of",
    "She was born in",
    "The river",
    "This species",
    "The question of who",
    "The album was",
    "According to the law,",
)
GERMAN = (
    "Die Regierung hat",
    "Gestern wurde in der Stadt",
    "Der Trainer sagte nach dem Spiel, dass",
    "In unserem Haus finden Sie",
    "Nach Angaben der Polizei",
    "Das Hotel liegt",
)

KINDS = {
    "chat": Kind(0.24, ("",)),
    "report": Kind(
        0.08,
        (
            "Write a long newspaper article about",
            "Write a detailed report, with names and dates, about",
            "Tell the story of",
            "Write an encyclopedia entry on",
        ),
        length=448,
        temperature=0.7,  # coherent and without the loops of greedy texts: good material
    ),
    "maths": Kind(
        0.12,
        (
            "Solve this word problem step by step. ",
            "A farmer",
            "In a shop,",
            "A train",
            "There are",
            "How many",
            "Tom has",
            "A class of",
        ),
    ),
    "code": Kind(
        0.06,
        (
            "Write a Python function that",
            "Write a program in JavaScript which",
            "What does this code do?\n\n```python\n",
        ),
    ),
    "translation": Kind(
        0.06,
        (
            'Translate the following German text into English:\n"',
            "What does this German sentence mean in English? ",
            "Bitte übersetze ins Englische: ",
            'Put this French sentence into English: "',
            'Please translate from Spanish to English:\n"',
        ),
    ),
    "summary": Kind(
        0.06,
        (
            f"Give me a summary of this article.\n\n{TEXT}",
            f"{TEXT}\n\nSum up the text above in three sentences.",
            f"What are the main points of the following text?\n\n{TEXT}",
            f"Shorten this news story to its most important facts: {TEXT}",
        ),
        material=(1, 3),
    ),
    "passages": Kind(
        0.06,
        (
            f"Here are some passages.\n\n{TEXT}\n\nWith their help, answer this: {QUESTION}",
            f"{TEXT}\n\n{QUESTION}",
            f"Question: {QUESTION}\n\nText:\n{TEXT}\n\nAnswer the question from the text.",
        ),
        material=(3, 6),
        words=110,
    ),
    "article": Kind(
        0.12,
        (
            f"{TEXT}\n\nSum this article up.",
            f"What does this report say, in short?\n\n{TEXT}",
            f"Write a few sentences that tell the news in: {TEXT}",
        ),
        material=(1, 1),
        words=450,
        texts=NEWS,
    ),
    "excerpts": Kind(
        0.12,
        (
            f"Read these excerpts.\n\n{TEXT}\n\nNow tell me:",
            f"{TEXT}\n\nFrom the text above,",
            f"Sources:\n{TEXT}\n\nMy question is this:",
        ),
        material=(2, 5),
        words=100,
        texts=LORE,
        asks=True,
    ),
    "foreign": Kind(
        0.08,
        (
            f"In English, please: {TEXT}",
            f"I do not speak German. What does this say?\n{TEXT}",
            f"{TEXT}\n\nTranslate these lines from German.",
        ),
        material=(1, 1),
        words=30,
        texts=GERMAN,
    ),
}
MATERIAL = ("chat", "report")  # whose answers are texts for others
FOLLOW_UPS = 0.35  # of the conversations without material go on for a second turn
