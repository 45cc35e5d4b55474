"""Memory that torch can really use on cards one might rent or own: less than the label says.

`measured` rows are the total that torch reported in a public log; ECC and the driver take the difference to the label
(about 8 % on GDDR6 cards with ECC, 1 % on HBM). The other rows are the label less that share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from nbkit.errors import NbkitError


@dataclass(frozen=True)
class Card:
    """One card: its label in GB, the GiB a program can use, and where that number comes from."""

    name: str
    label_gb: int
    usable_gib: float
    compute_capability: tuple[int, int]
    measured: bool
    source: str

    @property
    def bf16(self) -> bool:
        """True from compute capability 8.0 on."""
        return self.compute_capability >= (8, 0)


CARDS: tuple[Card, ...] = (
    Card("T4", 16, 14.74, (7, 5), True, "Unsloth notebook logs"),
    Card("V100-16GB", 16, 15.78, (7, 0), True, "github.com/kchengiva/Shift-GCN issue 34"),
    Card("V100-32GB", 32, 31.73, (7, 0), True, "github.com/kvcache-ai/ktransformers issue 526"),
    Card("RTX 3060", 12, 11.75, (8, 6), True, "github.com/smy20011/dreambooth-gui issue 78"),
    Card("RTX 3090", 24, 23.70, (8, 6), True, "github.com/Lightning-AI/lit-llama issue 137"),
    Card("RTX 4080", 16, 15.5, (8, 9), False, "label less 3 %"),
    Card("RTX 4090", 24, 23.52, (8, 9), True, "github.com/Soul-AILab/SoulX-FlashTalk issue 5"),
    Card("RTX 5090", 32, 31.36, (12, 0), True, "github.com/TrajectoryCrafter/TrajectoryCrafter issue 20"),
    Card("L4", 24, 22.03, (8, 9), True, "github.com/ArcInstitute/evo2 issue 190; Unsloth notebook logs say 22.16"),
    Card("A10G", 24, 22.18, (8, 6), True, "Unsloth notebook logs"),
    Card("RTX A6000", 48, 44.2, (8, 6), False, "label less 8 %"),
    Card("L40S", 48, 44.42, (8, 9), True, "github.com/stepfun-ai/Step-Video-T2V issue 8"),
    Card("A100-40GB", 40, 39.56, (8, 0), True, "Unsloth notebook logs"),
    Card("A100-80GB", 80, 79.32, (8, 0), True, "Unsloth notebook logs"),
    Card("H100-80GB", 80, 79.11, (9, 0), True, "github.com/vllm-project/vllm issue 27508"),
)


def card(name: str) -> Card:
    """The card of that name; case, spaces and dashes do not matter.

    Raises: NbkitError (exit code 2) that lists the known names.
    """
    known = {_plain(one.name): one for one in CARDS}
    plain = _plain(name)
    if plain in known:
        return known[plain]
    near = [key for key in known if plain and key.startswith(plain)][:1] or get_close_matches(plain, known, n=1)
    guess = f"did you mean {known[near[0]].name}? " if near else ""
    raise NbkitError(f"No card named {name!r} in nbkit's table.", hint=f"{guess}known: {_names(CARDS)}", exit_code=2)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _names(cards: Iterable[Card]) -> str:
    return ", ".join(one.name for one in cards)
