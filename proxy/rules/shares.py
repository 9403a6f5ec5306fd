"""How much of a shared resource one peer may take, when little of it is left.

One peer may take most of it while no other wants it. The last tenth is kept for peers that hold
little: so a new peer finds room, whatever one address does.
"""

from typing import Final, Literal

# Why a connection is not taken: there are too many, its peer has too many, its TLS handshake
# failed, or the process has hardly a descriptor left.
Reason = Literal["limit", "peer", "handshake", "descriptor"]

_KEPT: Final = 0.1  # of the whole
FEW_CONNECTIONS: Final = 100  # that a peer may hold and still get room from the kept part


def has_room(*, used: float, whole: float, held: float, little: float, wanted: float = 1) -> bool:
    """True if a peer that holds `held` of the `used` may have `wanted` more of the `whole`.

    In the part that is kept, only a peer that then holds `little` at most has room.
    """
    if used + wanted > whole:
        return False
    return used + wanted <= whole * (1 - _KEPT) or held + wanted <= little


def why_refused(
    *, used: float, whole: float, held: float, bound: float | None, little: float
) -> Literal["limit", "peer"] | None:
    """Return why a peer that holds `held` of the `used` may not have one more; None if it may.

    `bound` is what each peer may hold, if there is such a bound.
    """
    if bound is not None and held >= bound:
        return "peer"
    if has_room(used=used, whole=whole, held=held, little=little):
        return None
    return "limit" if used >= whole else "peer"
