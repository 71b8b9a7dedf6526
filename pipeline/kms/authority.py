"""One call from its first byte to its answer: who, what, may they, do it, record it. Synchronous, no network.

A call is answered only when its trail record was taken by the operating system; if that fails the answer is
KMSInternalException and carries nothing.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec

from pipeline.errors import HaltError
from pipeline.kms import rootkey, whoami
from pipeline.kms.access import Call
from pipeline.kms.asks import Ask, read_ask
from pipeline.kms.config import KmsConfig
from pipeline.kms.operations import OPERATIONS, Operation
from pipeline.kms.refusal import KmsRefusalError
from pipeline.kms.signature import HttpCall, Verifier
from pipeline.kms.trail import Trail, record_of
from pipeline.kms.vault import Clock, Vault, open_vault

_TARGET = "TrentService."
INTERNAL = KmsRefusalError("KMSInternalException", "The request failed for a reason of this server.", status=500)
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the caller."""

    status: int
    body: bytes
    request_id: str


class Authority:
    """Answers calls. Made by `open_authority`."""

    def __init__(self, vault: Vault, verifier: Verifier, trail: Trail, now: Clock) -> None:
        self.vault = vault
        self.trail = trail
        self._verifier = verifier
        self._now = now

    def answer(self, http: HttpCall, *, broken: KmsRefusalError | None = None) -> Answer:
        """Answer one call, and record it, whatever becomes of it.

        Args:
            broken: why its body could not be read; nothing of the request is believed then.
        """
        progress = _Progress(http, str(uuid4()), self._now())
        # What is recorded if something unforeseen is raised, and passed on.
        progress.refusal = INTERNAL
        members = None
        try:
            if broken is not None:
                raise broken
            members = self._perform(http, progress)
            progress.refusal = None
        except KmsRefusalError as refusal:
            progress.refusal = refusal
        except sqlite3.Error:
            # The disk took nothing: the change was not made, in memory neither.
            progress.refusal = INTERNAL
        finally:
            taken = self._record(progress)
        failure = progress.refusal if taken else INTERNAL
        if failure is not None:
            return refused(failure, progress.request_id)
        return Answer(200, b"" if members is None else _ENCODER.encode(members), progress.request_id)

    def answer_sts(self, http: HttpCall) -> tuple[int, bytes]:
        """Answer a call to STS: status and XML body."""
        return whoami.answer(http, self._verifier)

    def _perform(self, http: HttpCall, progress: "_Progress") -> dict[str, Any] | None:
        target = http.header("x-amz-target") or ""
        name = target.removeprefix(_TARGET)
        operation = OPERATIONS.get(name) if target.startswith(_TARGET) else None
        if operation is not None:
            progress.operation, progress.name = operation, name
        identity = self._verifier.verify(http)
        progress.call = Call(progress.name or "", identity, self.vault, self.vault.now())
        if operation is None:
            raise KmsRefusalError("UnknownOperationException", "The operation is not one that this server offers.")
        progress.ask = read_ask(operation.ask, http.body)
        return operation.perform(progress.call, progress.ask)

    def _record(self, progress: "_Progress") -> bool:
        record = record_of(
            operation=progress.name,
            read_only=progress.operation is not None and progress.operation.read_only,
            call=progress.call,
            ask=progress.ask,
            refusal=progress.refusal,
            request_id=progress.request_id,
            source=progress.http.source,
            agent=progress.http.header("user-agent") or "",
            region=self.vault.region,
            at=progress.at,
        )
        try:
            self.trail.write(record, progress.at)
        except OSError:
            return False
        return True


@dataclass(slots=True)
class _Progress:
    """How far a call has come, for its record."""

    http: HttpCall
    request_id: str
    at: datetime
    name: str | None = None
    operation: Operation | None = None
    call: Call | None = None
    ask: Ask | None = None
    refusal: KmsRefusalError | None = None


def refused(refusal: KmsRefusalError, request_id: str) -> Answer:
    """Write a refusal as AWS JSON 1.1 does."""
    body = {"__type": refusal.code, "message": refusal.message}
    return Answer(refusal.status, _ENCODER.encode(body), request_id)


def utc_now() -> datetime:
    """Read the clock."""
    return datetime.now(UTC)


@contextlib.contextmanager
def open_authority(config: KmsConfig, now: Clock = utc_now) -> Iterator[Authority]:
    """Open the data directory and get the root key.

    Raises: HaltError.
    """
    root = rootkey.read(config.root_key)
    with open_vault(config.data_dir, config.region, root, now, config.grant_propagation) as vault:
        try:
            trail = Trail(config.data_dir / "trail")
        except OSError as error:
            raise HaltError(
                f"The trail below {config.data_dir} can't be written: {os.strerror(error.errno or 0)}."
            ) from error
        try:
            yield Authority(vault, Verifier(config.identities, config.region, now), trail, now)
        finally:
            trail.close()
