"""EAGLE's draft network with EAGLE-2's dynamic tree: features predicted from feature and embedding, one vector for
both feature and logits (arXiv 2401.15077, 2406.16858)."""

from __future__ import annotations

from fspad_bench.drafts.drafter import HeadDrafter


class Eagle(HeadDrafter):
    """Options are `HeadDrafter`'s."""

    arm = "eagle"
