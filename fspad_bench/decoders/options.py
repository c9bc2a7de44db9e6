"""Read the names and options of decoders, as the command line and the pytest plugin take them."""

from __future__ import annotations

from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError


def split_names(text: str) -> list[str]:
    """Split comma-separated names, each kept once. Raises BenchError if there are none."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise BenchError(f"'{text}' contains no name", "`fspad-bench ls` lists the known names")
    return names


def decoder_labels(text: str) -> list[str]:
    """Split comma-separated decoder labels; `all` stands for every registered decoder that can be
    loaded.
    """
    if text == "all":
        return list(registry.usable(registry.DECODERS))
    return split_names(text)


def read_options(assignments: list[str]) -> dict[str, dict[str, str]]:
    """Group options by decoder: `["fspad.depth=3"]` becomes `{"fspad": {"depth": "3"}}`.

    Raises BenchError for text that is not DECODER.OPTION=VALUE, and for two values of one option.
    """
    options: dict[str, dict[str, str]] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        decoder, dot, option = name.rpartition(".")
        if not (equals and dot and decoder and option):
            raise BenchError(
                f"-D {text} is not DECODER.OPTION=VALUE", "write it like -D fspad.depth=3"
            )
        given = options.setdefault(decoder, {})
        if given.setdefault(option, value) != value:
            raise BenchError(
                f"-D {name} is given as {given[option]:.40} and as {value:.40}", "give it once"
            )
    return options
