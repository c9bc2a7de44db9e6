"""Addresses of servers, which records and messages show: none may hold a secret."""

from __future__ import annotations

from fspad_bench.util.errors import BenchError

KEY_HINT = "give http://HOST:PORT, and the server's key in FSPAD_BENCH_API_KEY"


def check_no_secret(url: str) -> None:
    """Raise BenchError for an address with a user, a password, a query or a fragment.

    The error shows nothing of the address.
    """
    if "@" in url:
        raise BenchError(
            "the address of a served engine holds a user or a password, and records hold addresses",
            KEY_HINT,
        )
    if "?" in url or "#" in url:
        raise BenchError(
            "the address of a served engine holds a query, which may be a key, and records hold "
            "addresses",
            KEY_HINT,
        )
