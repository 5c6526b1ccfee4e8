"""Every seed of a run, derived from `params.seed` and the names of what it is for.

Seeds that hang together by arithmetic (seed, seed + 1, ...) can give related streams, and change when the
order of work changes. A hash of names gives each fact and purpose a stream of its own.
"""

import hashlib


def derive(seed: int, *names: str) -> int:
    """Seed for the purpose that `names` spell out, such as `derive(0, "noise", fact_id)`.

    Returns the first 8 bytes (big-endian) of SHA-256 of "seed/name/name", cut to 63 bits: an integer in
    [0, 2**63) that torch, numpy and random all take.
    """
    text = "/".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") & (2**63 - 1)
