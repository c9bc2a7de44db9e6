"""HTTP to a served engine: JSON, server-sent events, and every failure as one clear error.

- Retried, with growing pauses: status 429 and 5xx, and a connection that is reset before anything
  of the answer has come. Nothing else is: a second answer would be another sample.
- The bearer token is sent and shown nowhere: what a server says is shown without it, and no error
  keeps what caused it, which may hold headers.
- A server on this machine is asked directly; others through the proxy that the environment names.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx2

from fspad_bench.serving.bearer import NAMES, Bearer
from fspad_bench.serving.processes import is_here
from fspad_bench.util.address import check_no_secret
from fspad_bench.util.errors import BenchError

CONNECT_SECONDS = 10.0
LONGEST_PAUSE = 30.0
SHOWN = 300  # characters of a server's own message
ENCODING = "utf-8"  # of JSON and of events, whatever a header says
LARGEST_EVENT = 1 << 26  # bytes; log-probabilities of a large vocabulary are long


class Retry(Exception):
    """A failure that may pass: the error that it is if it does not, and when to try again."""

    def __init__(self, error: BenchError, after: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after


class Client:
    """A connection to one server. May be used by several threads."""

    def __init__(
        self, url: str, *, token: str | None = None, timeout: float = 120.0, retries: int = 3
    ) -> None:
        self.url = _checked(url)
        if not timeout > 0 or retries < 0:
            raise BenchError(
                f"a timeout of {timeout:g} s and {retries} retries",
                "give a timeout above 0 and 0 retries or more",
            )
        self.timeout = timeout
        self.retries = retries
        self.sleep: Callable[[float], None] = time.sleep
        self._bearer = Bearer(token)
        self._http = self._opened()

    def _opened(self) -> httpx2.Client:
        """Return the connections. Raises BenchError for a proxy that cannot be used."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
        authorities = _authorities()
        direct = None
        if is_here(httpx2.URL(self.url).host):
            direct = httpx2.HTTPTransport(verify=authorities, limits=limits)
        try:
            return httpx2.Client(
                base_url=self.url,
                headers=self._bearer.headers,
                verify=authorities,
                timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, CONNECT_SECONDS)),
                limits=limits,
                transport=direct,
            )
        except (ValueError, ImportError, httpx2.InvalidURL):  # its text may hold a password
            raise BenchError(
                f"the proxy that the environment names for {self.url} cannot be used",
                "give HTTP_PROXY, HTTPS_PROXY or ALL_PROXY an http address, or name the server in "
                "NO_PROXY",
            ) from None

    @property
    def shown(self) -> str:
        """Return the server's address as messages and records show it."""
        return self.url

    def get(self, path: str) -> str:
        """Return the text of a page. Raises BenchError."""
        return self._tried(lambda: self._got(path))

    def get_json(self, path: str) -> Any:
        """Return the JSON of a page. Raises BenchError."""
        return self._parsed(self.get(path))

    def optional(self, path: str) -> str:
        """Return the text of a page that not every server has, empty without it."""
        try:
            return self._got(path)
        except (BenchError, Retry):
            return ""

    def events(
        self, path: str, body: Mapping[str, Any], on_send: Callable[[], None]
    ) -> Iterator[dict[str, Any]]:
        """Post a body and yield the JSON events of the answer; a whole answer is a single one.

        `on_send` is called before each try. Raises BenchError.
        """
        for attempt in range(self.retries + 1):
            on_send()
            begun = False
            try:
                for event in self._posted(path, body):
                    begun = True
                    yield event
                return
            except Retry as retry:
                if begun or attempt == self.retries:
                    raise self._given_up(retry, attempt) from None
                self._pause(attempt, retry.after)

    def _tried(self, send: Callable[[], str]) -> str:
        for attempt in range(self.retries + 1):
            try:
                return send()
            except Retry as retry:
                if attempt == self.retries:
                    raise self._given_up(retry, attempt) from None
                self._pause(attempt, retry.after)
        raise AssertionError

    def _given_up(self, retry: Retry, attempt: int) -> BenchError:
        tries = f" (tried {attempt + 1} times)" if attempt else ""
        return BenchError(f"{retry.error.message}{tries}", retry.error.hint)

    def _pause(self, attempt: int, after: float | None) -> None:
        wait = 0.5 * 2**attempt * random.uniform(0.75, 1.25)
        self.sleep(min(LONGEST_PAUSE, wait if after is None else after))

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Turn every way in which an exchange can fail into a BenchError or a Retry."""
        try:
            yield
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, UnicodeError) as error:
            raise self._failure(error) from None

    def _got(self, path: str) -> str:
        with self._exchange():
            response = self._http.get(path)
            response.encoding = ENCODING
            self._check_status(response, path)
            return response.text

    def _posted(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        content = _encoded(body)
        headers = {"Content-Type": "application/json"}
        with (
            self._exchange(),
            self._http.sse(
                path,
                method="POST",
                content=content,
                headers=headers,
                max_event_size=LARGEST_EVENT,
            ) as source,
        ):
            source.response.encoding = ENCODING
            self._check_status(source.response, path)
            if "json" in source.response.headers.get("Content-Type", ""):
                source.response.read()
                yield self._event(source.response.text)
                return
            for event in source:  # to its very end, or else the connection cannot be used again
                if event.data and event.data != "[DONE]":
                    yield self._event(event.data)

    def _event(self, text: str) -> dict[str, Any]:
        event = self._parsed(text)
        if not isinstance(event, dict):
            raise self._foreign(text)
        if event.get("error"):
            raise BenchError(f"{self.shown} answered: {self.said(text)}", "see the server's log")
        return event

    def _parsed(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise self._foreign(text) from None

    def _foreign(self, text: str) -> BenchError:
        return BenchError(
            f"{self.shown} does not speak the OpenAI API: {self.said(text)!r}",
            "give the address of an engine's server, such as http://127.0.0.1:8000",
        )

    def _check_status(self, response: httpx2.Response, path: str) -> None:
        status = response.status_code
        if status < 300:
            return
        response.read()
        said = self.said(response.text)
        if status in (401, 403):
            raise BenchError(
                f"{self.shown} refuses the bearer token ({status})",
                f"set {NAMES[0]} to the server's key",
            )
        if status == 404:
            raise BenchError(f"{self.shown} has no {path}: {said}", "is it the right server?")
        error = BenchError(
            f"{self.shown} answered {status}: {said}", "see the server's log and its arguments"
        )
        if status == 429 or status >= 500:
            raise Retry(error, _seconds(response.headers.get("Retry-After")))
        raise error

    def _failure(self, error: Exception) -> Exception:
        """Return the error that a failed exchange is."""
        if isinstance(error, httpx2.LocalProtocolError):  # its text holds what was to be sent
            return BenchError(f"a request to {self.shown} cannot be sent", "check the address")
        if isinstance(error, UnicodeError | httpx2.InvalidURL):
            return BenchError(f"'{self.url}' is not an address", "http://HOST:PORT")
        if isinstance(error, httpx2.DecodingError):
            return BenchError(
                f"the answer of {self.shown} cannot be decompressed: {self.said(str(error))}",
                "see the server, or what stands between",
            )
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return BenchError(f"no server answers at {self.shown}", "is it running there?")
        if isinstance(error, httpx2.TimeoutException):
            return BenchError(
                f"{self.shown} was silent for {self.timeout:g} s", "allow it more time"
            )
        if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
            broken = f"the answer of {self.shown} broke off: {self.said(str(error))}"
            return Retry(BenchError(broken, "see the server's log"))
        return BenchError(f"{self.shown}: {self.said(str(error))}", "check the address")

    def said(self, text: str) -> str:
        """Return the message in a server's answer, shortened, without the token."""
        try:
            value = json.loads(text)
            value = value.get("error", value.get("detail", value))
            text = str(value["message"] if isinstance(value, dict) else value)
        except (ValueError, AttributeError, KeyError, RecursionError):
            pass
        return self.hidden(text.strip())[:SHOWN]

    def hidden(self, text: str) -> str:
        """Return a server's text without the token, half characters (surrogates) as escapes."""
        return self._bearer.hide(text.encode(ENCODING, "backslashreplace").decode(ENCODING))


def _encoded(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON. Raises BenchError for what JSON cannot say."""
    try:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except (ValueError, TypeError, RecursionError):
        raise BenchError(
            "a request holds what JSON cannot say, such as NaN or half of a character",
            "check the prompt, the sampling settings and the extra fields",
        ) from None


def _checked(url: str) -> str:
    """Return a server's address without the path of its API. Raises BenchError for no address."""
    check_no_secret(url)
    try:
        parsed = httpx2.URL(url)
        parsed.host.encode("idna")  # as the connection does
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise BenchError(f"'{url}' is not an address: {error}", "http://HOST:PORT") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BenchError(f"'{url}' is not the address of a server", "http://HOST:PORT")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


@cache
def _authorities() -> ssl.SSLContext:
    """Return the certificates that servers are known by, which take a while to read."""
    return httpx2.create_ssl_context()


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:  # a date
        return None
