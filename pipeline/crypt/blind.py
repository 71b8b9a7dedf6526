"""Keyed hashes by which values are found that nobody may read. No I/O.

HMAC-SHA-256 under the name key of a ring, cut to 128 bits. Another ring has another name key, so the same value has
another hash there, and no two scopes can be joined by them.
"""

from typing import NoReturn

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

_DOMAIN = b"recording-pipeline/blind/1\x00"
SIZE = 16
"""Bytes of a hash: chance collisions of 10^9 values stay below 1 in 10^20."""


class BlindKey:
    """What makes the hashes of one ring. `repr` shows nothing of it, and it can't be pickled."""

    __slots__ = ("_begun", "_of_domains")

    def __init__(self, secret: bytes) -> None:
        self._begun = HMAC(secret, SHA256())
        self._begun.update(_DOMAIN)
        self._of_domains: dict[str, HMAC] = {}

    def digest(self, domain: str, value: str) -> bytes:
        """Hash a value; `domain` says of what kind it is."""
        begun = self._of_domains.get(domain)
        if begun is None:
            begun = self._of_domains[domain] = self._begun.copy()
            begun.update(domain.encode() + b"\x00")
        message = begun.copy()  # the key and what all of a domain begin with are hashed once
        message.update(value.encode(errors="surrogatepass"))
        return message.finalize()[:SIZE]

    def __repr__(self) -> str:
        return "BlindKey()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a blind key is not written anywhere")
