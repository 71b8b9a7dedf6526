"""Keyed hashes by which values are found that nobody may read. No I/O.

HMAC-SHA-256 under the name key of a ring, cut to 128 bits. Another ring has another name key, so the same value has
another hash there, and no two scopes can be joined by them.
"""

import hmac
from typing import NoReturn

_DOMAIN = b"recording-pipeline/blind/1\x00"
SIZE = 16
"""Bytes of a hash: chance collisions of 10^9 values stay below 1 in 10^20."""


class BlindKey:
    """What makes the hashes of one ring. `repr` shows nothing of it, and it can't be pickled."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def digest(self, domain: str, value: str) -> bytes:
        """Hash a value; `domain` says of what kind it is."""
        message = b"".join((_DOMAIN, domain.encode(), b"\x00", value.encode(errors="surrogatepass")))
        return hmac.digest(self._secret, message, "sha256")[:SIZE]

    def __repr__(self) -> str:
        return "BlindKey()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a blind key is not written anywhere")
