"""A draft head of whatever architecture it was trained as, on EAGLE-2's dynamic tree: for ablations.

fspad-bench run --decoder wide=fspad_bench.decoders.arm:Arm -D wide.head=FOLDER --task all
"""

from __future__ import annotations

from fspad_bench.drafts.drafter import HeadDrafter


class Arm(HeadDrafter):
    """Options are `HeadDrafter`'s; its head has to be named."""
