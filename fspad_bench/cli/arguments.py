"""Arguments that several verbs share: flags, and readers of values.

Readers are argparse types: they raise ArgumentTypeError, which becomes the usual two-line error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TABLE_FORMATS = ["text", "markdown", "latex", "csv", "json"]
REPORT_FORMATS = ["text", "json", "junit"]
EXPLANATION_FORMATS = ["text", "markdown", "json"]
COMPARISON_FORMATS = ["text", "markdown", "json"]
PICTURES = (".png", ".pdf", ".svg")

MEASURING = "float32 on the CPU, bfloat16 on a GPU"
LEARNING = "bfloat16, or float32 where the CPU has no products in bfloat16"
CERTIFYING = "float32, or float64 of tiny"
"""The default precision of a target that is measured, of one that a draft learns from, and of one
that certifies."""


class Given(argparse.Action):
    """Store a value, and the name of its flag in `given` of the arguments."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = {*namespace.given, self.dest}


def remember_given(parser: argparse.ArgumentParser) -> None:
    """Let the arguments say which flags that store a value the user gave, under `given`."""
    parser.set_defaults(given=set())
    parser.register("action", None, Given)


def add_decoder_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "-D",
        dest="options",
        action="append",
        default=[],
        metavar="DECODER.OPTION=VALUE",
        help="set an option of a decoder; may be repeated",
    )


def add_target(parser: argparse._ActionsContainer, default: str = "smollm2-135m") -> None:
    parser.add_argument(
        "--target", default=default, help="preset, folder or hub id (default: %(default)s)"
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1; cuda:0,cuda:1 to spread a target's layers, cuda:0+cuda:1 to share "
        "each of them; or auto: a GPU if there is one (default: %(default)s)",
    )


def add_dtype(
    parser: argparse._ActionsContainer, choices: Sequence[str], default: str = MEASURING
) -> None:
    parser.add_argument(
        "--dtype", choices=choices, help=f"precision of the target (default: {default})"
    )


def add_penalties(parser: argparse._ActionsContainer) -> None:
    """Add the flags of logits processors; 0, and 1 for repetition, change nothing."""
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        help="drop tokens less likely than this share of the likeliest (default: 0)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="transformers' penalty, of tokens in prompt and output (default: 1, none)",
    )
    parser.add_argument(
        "--presence-penalty",
        type=float,
        default=0.0,
        help="subtracted from the logits of tokens in the output (default: 0)",
    )
    parser.add_argument(
        "--frequency-penalty",
        type=float,
        default=0.0,
        help="the same, for each time that the output holds a token (default: 0)",
    )
    parser.add_argument(
        "--no-repeat-ngram-size",
        type=whole,
        default=0,
        metavar="N",
        help="no N tokens in a row come twice (default: 0, no bound)",
    )


def add_samples(parser: argparse._ActionsContainer, max_new_tokens: int) -> None:
    """Add the flags of a verb that decodes a few bundled samples."""
    parser.add_argument(
        "--task",
        default="mt_bench",
        help="task whose bundled samples are decoded (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=4,
        metavar="N",
        help="number of samples (default: %(default)s)",
    )
    parser.add_argument("--max-new-tokens", type=positive, default=max_new_tokens, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T")


def add_threads(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--threads", type=threads, help="CPU threads (default: torch's choice)")


def add_format(parser: argparse._ActionsContainer, choices: list[str]) -> None:
    parser.add_argument("--format", choices=choices, default="text")


def count(text: str) -> int:
    """Read a count with an optional suffix k or M: `250k`, `1.5M`."""
    factor = {"k": 1e3, "m": 1e6}.get(text[-1:].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    try:
        value = round(float(digits) * factor)
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"not a count: {text}")
    return value


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 0 or more")
    return int(text)


def not_negative(text: str) -> float:
    value = number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 0 or more")
    return value


def above_zero(text: str) -> float:
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from error


def numbers(text: str) -> list[float]:
    """Read comma-separated numbers, each kept once."""
    try:
        return list(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a list of numbers, such as 0,1"
        ) from error


def sizes(text: str) -> tuple[int, ...]:
    """Read comma-separated whole numbers above 0."""
    return tuple(positive(part) for part in text.split(","))


def json_object(text: str) -> dict[str, Any]:
    from fspad_bench.util import text as reading

    value = reading.json_object(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"'{text:.60}' is not a JSON object")
    return value


def picture(text: str) -> Path:
    """Read the name of a picture to draw, in a folder that exists."""
    path = Path(text)
    if path.suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"'{text}' is no picture: give {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"no folder {path.parent} for '{text}'")
    return path


def threads(text: str) -> int:
    from fspad_bench.util.machine import cores

    value = positive(text)
    if value > cores():
        raise argparse.ArgumentTypeError(f"{value} threads, but only {cores()} cores are available")
    return value
