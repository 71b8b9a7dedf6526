"""S-12, the process that is looked at: given a data key as KMS gives it, it uses it, and is sealed off. For tests only.

On standard input comes what the key service says, one JSON document a line. It never keeps the key: it knows the digest
of its plaintext, by which it looks for it in every object that is alive. Then it waits to be looked at from outside.
"""

import base64
import binascii
import gc
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio

from pipeline.adapters.clock import SystemClock
from pipeline.adapters.disk import Disk
from pipeline.crypt.artifact import Header, Sealer
from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.segments import DataKey, SegmentType
from pipeline.erasure.letgo import close_ring
from pipeline.errors import KeyUnavailableError
from pipeline.ids import Kind, new_artifact_id
from pipeline.keyports import GeneratedKey
from tests.unit.keyring_fakes import ARN, A, context

KEY_BYTES = 32


class Answers:
    """`KeyService` that reads each answer from standard input, as an HTTP client reads it from a socket."""

    async def generate_data_key(self, key_arn: str, *_asked: Any) -> GeneratedKey:
        answer = json.loads(sys.stdin.readline())
        return GeneratedKey(base64.b64decode(answer["Plaintext"]), b"wrapped", key_arn)

    async def decrypt(self, *_asked: Any) -> bytes:
        return base64.b64decode(json.loads(sys.stdin.readline())["Plaintext"])


def alive() -> Iterator[Any]:
    """Give every object that anything refers to, from all that the collector knows."""
    waiting: list[Any] = gc.get_objects()
    seen = {id(each) for each in waiting}
    while waiting:
        each = waiting.pop()
        yield each
        for referred in gc.get_referents(each):
            if id(referred) not in seen:
                seen.add(id(referred))
                waiting.append(referred)


def holders(digest: bytes) -> list[str]:
    """Name the kinds of live objects that are the key, raw or in base64, or a data key at all."""
    return sorted(type(each).__name__ for each in alive() if isinstance(each, DataKey) or _is_key(each, digest))


def _is_key(each: Any, digest: bytes) -> bool:
    if isinstance(each, bytes | bytearray | memoryview) and len(each) == KEY_BYTES:
        return hashlib.sha256(each).digest() == digest
    if isinstance(each, str | bytes) and len(each) == 44:
        try:
            return hashlib.sha256(base64.b64decode(each, validate=True)).digest() == digest
        except (ValueError, binascii.Error):
            return False
    return False


async def live(digest: bytes) -> dict[str, Any]:
    """Use the key, be sealed off, and tell what is alive of it before and after."""
    with tempfile.TemporaryDirectory() as folder:
        ring = KeyRing(
            instance_id=A,
            context=context(A),
            current_arn=ARN,
            previous_arn=None,
            directory=f"{folder}/keys",
            files=Disk(),
            service=Answers(),  # type: ignore[arg-type]
            clock=SystemClock(),
            cache=timedelta(seconds=300),
            seal_grace=timedelta(seconds=900),
            random=random.random,
        )
        await _use(ring)
        before = holders(digest)
        await close_ring(ring)
        refused = ""
        try:
            await ring.active()
        except KeyUnavailableError as error:
            refused = error.code
        gc.collect()
        return {"before": before, "after": holders(digest), "refused": refused}


async def _use(ring: KeyRing) -> None:
    key = await ring.active()
    await ring.tags(Kind.VOICE, "source")
    now = datetime.now(UTC)
    sealer = Sealer(key, Header(Kind.VOICE, A, new_artifact_id(now), key.key_id, now).pack())
    for _ in range(3):
        sealer.seal(SegmentType.EVENT, b"{}", 0)


if __name__ == "__main__":
    told = bytes.fromhex(sys.stdin.readline())
    print(json.dumps(anyio.run(live, told)), flush=True)  # noqa: T201
    sys.stdin.readline()
