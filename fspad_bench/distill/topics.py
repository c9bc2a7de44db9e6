"""Topics of a target's own conversations: how a user's message opens; the target writes the rest.

- A kind has a share of the conversations and a few openings. The target continues an opening as the
  user.
- Kinds with `material` embed texts that the target wrote, so their long inputs are its own too:
  answers of other conversations, or texts generated outside the chat template. The latter are as
  full of names and turns of phrase as the texts the target was pretrained on.
- No words of an evaluation's prompts stand here; the overlap report of every data set looks for any
  that got in.
- The tables decide the data: their hash is part of a data set's recipe (see
  `conversations.recipe`).
"""

from __future__ import annotations

from typing import NamedTuple

TEXT = "{text}"
QUESTION = "{question}"


class Kind(NamedTuple):
    """One kind of conversation.

    - `share`: its share of the conversations.
    - `openings`: beginnings of the user's message, which the target completes. With `material` an
      opening is a whole message around `{text}`; with `asks` the target completes that too.
    - `length`: maximal length of an answer, in tokens.
    - `temperature`: of all answers of the kind; None draws it for each conversation.
    - `material`: least and greatest number of embedded texts.
    - `words`: number of words that are taken of each text.
    - `texts`: how texts written for this kind begin; without them the texts are answers of other
      conversations.
    """

    share: float
    openings: tuple[str, ...]
    length: int = 256
    temperature: float | None = None
    material: tuple[int, int] | None = None
    words: int = 400
    texts: tuple[str, ...] = ()
    asks: bool = False


# No opening ends with a space, because a token of a word includes the space before it.
NEWS = (
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
        temperature=0.7,  # coherent, and without the loops of greedy texts: good material
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
MATERIAL = ("chat", "report")  # kinds whose answers are embedded in other conversations
FOLLOW_UPS = 0.35  # share of the conversations without material that have a second turn
