"""The bearer token of a served engine: sent as a header, and shown nowhere."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

from fspad_bench.util.errors import BenchError

NAMES = ("FSPAD_BENCH_API_KEY", "OPENAI_API_KEY")
HIDDEN = "***"
SHORTEST_PART = 8  # base64 characters of a token inside of a longer text


def token_from_env() -> str | None:
    """Return the bearer token that the environment holds, None without one."""
    return next((os.environ[name] for name in NAMES if os.environ.get(name, "").strip()), None)


class Bearer:
    """A bearer token, or none. Space around it is no part of it.

    Raises BenchError for a token that no header can hold.
    """

    def __init__(self, token: str | None) -> None:
        self._token = (token or "").strip()
        if not (self._token.isascii() and (self._token + "x").isprintable()):
            raise BenchError(
                f"the bearer token in {' or '.join(NAMES)} cannot be sent: it holds a control "
                "character or one beyond ASCII",
                "give the server's key on one line",
            )
        forms = sorted(_forms(self._token), key=len, reverse=True) if self._token else []
        self._pattern = re.compile("|".join(map(re.escape, forms)), re.IGNORECASE)

    def __repr__(self) -> str:
        return f"Bearer({HIDDEN if self._token else ''})"

    @property
    def headers(self) -> dict[str, str]:
        """Return the header that sends the token, none without one."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def hide(self, text: str) -> str:
        """Return a text without the token, however the text writes it."""
        return self._pattern.sub(HIDDEN, text) if self._token else text


def _forms(token: str) -> Iterator[str]:
    """Yield a token as texts write it: plain, quoted, as HTML, in an address, in base64, in hex."""
    yield token
    escaped = token.replace("\\", "\\\\")
    yield from (escaped, escaped.replace("'", "\\'"))
    yield json.dumps(token)[1:-1]
    yield json.dumps(json.dumps(token)[1:-1])[1:-1]
    yield token.replace("/", "\\/")
    yield html.escape(token)
    yield from (quote(token), quote(token, safe=""), quote_plus(token))
    yield token.encode().hex()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(token.encode()).decode().rstrip("=")
        yield from _inside(token, encode)


def _inside(token: str, encode: Callable[[bytes], bytes]) -> Iterator[str]:
    """Yield the base64 characters that a token has at each place of a longer text."""
    for before in range(3):
        bits = slice(-(-8 * before // 6), 8 * (before + len(token)) // 6)
        part = encode(b"\0" * before + token.encode()).decode()[bits]
        if len(part) >= SHORTEST_PART:
            yield part
