"""FSPAD (arXiv 2408.15562): feature sampling before the draft layer, its feature and logit outputs split after it,
on the same dynamic tree as EAGLE-2. Drafting reads logits from h_logit and feeds back h_feature."""

from __future__ import annotations

from fspad_bench.drafts.drafter import HeadDrafter


class Fspad(HeadDrafter):
    """Options are `HeadDrafter`'s."""

    arm = "fspad"
