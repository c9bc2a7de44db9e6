"""A suffix automaton of texts that grow token by token (Blumer et al. 1985).

- A state stands for all substrings that end at the same positions. `length[s]` is that of the
  longest of them, `link[s]` the state of its longest suffix that ends at further positions, and
  `follow[s]` maps each token that ever followed to the state of the longer string.
- Appending a token takes amortised constant time, and at most `REACH` steps more for the counts.
- `count[s]` is how often the strings of a state occurred, `latest[s]` how many tokens there were
  when they ended last. Both are exact but where more than `REACH` repeated suffixes, longer ones,
  end with an occurrence: in text that loops. There they are too small.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

ROOT = 0
REACH = 64


class Match(NamedTuple):
    """A state, and the length of the suffix of a text that it stands for here."""

    state: int
    length: int


NO_MATCH = Match(ROOT, 0)


class SuffixAutomaton:
    """All substrings of the texts so far. `separate` ends a text: no substring crosses its end."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.length = [0]
        self.link = [-1]
        self.follow: list[dict[int, int]] = [{}]
        self.count = [0]
        self.latest = [0]
        self.last = ROOT
        self.size = 0
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token to the end of the text."""
        self.size += 1
        if token in self.follow[self.last]:  # only at the start of another text
            self.last = self._state_after(self.last, token)
        else:
            self.last = self._new_end(token)
        self._count_suffixes()

    def separate(self) -> None:
        """Start another text."""
        self.last = ROOT

    def repeated_suffix(self) -> Match:
        """Return the longest suffix of the text that occurred before."""
        state = max(ROOT, self.link[self.last])
        return Match(state, self.length[state])

    def advance(self, match: Match, token: int) -> Match:
        """Return the longest match of another text's suffix, from that before its last `token`."""
        state, length = match
        while state != ROOT and token not in self.follow[state]:
            state = self.link[state]
            length = self.length[state]
        longer = self.follow[state].get(token)
        return NO_MATCH if longer is None else Match(longer, length + 1)

    def shorter(self, match: Match) -> Match:
        """Return the longest suffix of a match that occurred elsewhere too."""
        state = max(ROOT, self.link[match.state])
        return Match(state, self.length[state])

    def _new_end(self, token: int) -> int:
        """Create the state of the whole text, and return it."""
        end = self._new_state(self.length[self.last] + 1, {})
        state = self.last
        while state >= 0 and token not in self.follow[state]:
            self.follow[state][token] = end
            state = self.link[state]
        self.link[end] = ROOT if state < 0 else self._state_after(state, token)
        return end

    def _state_after(self, state: int, token: int) -> int:
        """Return the state whose longest string is that of `state` with `token` behind it.

        Where that string shares a state with longer ones, it gets one of its own.
        """
        longer = self.follow[state][token]
        if self.length[longer] == self.length[state] + 1:
            return longer
        own = self._new_state(self.length[state] + 1, dict(self.follow[longer]))
        self.link[own] = self.link[longer]
        self.link[longer] = own
        self.count[own] = self.count[longer]
        self.latest[own] = self.latest[longer]
        while state >= 0 and self.follow[state].get(token) == longer:
            self.follow[state][token] = own
            state = self.link[state]
        return own

    def _new_state(self, length: int, follow: dict[int, int]) -> int:
        self.length.append(length)
        self.link.append(-1)
        self.follow.append(follow)
        self.count.append(0)
        self.latest.append(0)
        return len(self.length) - 1

    def _count_suffixes(self) -> None:
        """Count the occurrence of the text's suffixes, the `REACH` longest states of them."""
        state = self.last
        for _ in range(REACH):
            if state <= ROOT:
                break
            self.count[state] += 1
            self.latest[state] = self.size
            state = self.link[state]
