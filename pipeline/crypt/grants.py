"""Grants on KMS keys: one for each KMS key, scope and data class, kept beside the key ring, and used with its token.

A grant permits our own role exactly `OPERATIONS`, for exactly one encryption context. For minutes after it was made it
may not be known everywhere: until then its token goes with every call, also after a restart, and a refusal counts as
"not yet". Reads and writes through ports only.

On disk: `keys/<instance>/<digest>.grant`, JSON, one file for each KMS key. Nothing in it is believed but the token,
which KMS checks: a KMS key is asked only if it is configured.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, TypeVar

import anyio
import anyio.to_thread
import msgspec
from msgspec import Meta, Struct

from pipeline.errors import GrantTokenError, HoldCode, KeyBusyError, KeyUnavailableError, StoreIoError
from pipeline.keyports import GeneratedKey, GrantService, GrantTerms, KeyDescription, KeyService
from pipeline.ports import Clock, FileSystem
from pipeline.smallfiles import read_whole, write_whole

T = TypeVar("T")

OPERATIONS = ("Decrypt", "DescribeKey", "GenerateDataKey", "ReEncryptFrom", "ReEncryptTo", "RetireGrant")
"""What the journey asks of a KMS key, a change of it included, and the right to give the grant back."""
PROPAGATION_S = 300.0
"""How long a new grant, or a new key, may not be known everywhere (AWS KMS Developer Guide, "Eventual consistency")."""
VERSION = 1
SUFFIX = ".grant"
_SIZE_LIMIT = 16 * 1024
_NOT_YET = frozenset({HoldCode.KEY_ACCESS_DENIED, HoldCode.KEY_NOT_FOUND})
"""What KMS answers while it does not know a new grant or key everywhere."""


def terms(scope: str, data_class: str, context: Mapping[str, str], grantee: str) -> GrantTerms:
    """Say what is to be granted for the data keys of one scope (an instance's id) and data class."""
    return GrantTerms(name=name_of(scope, data_class), grantee=grantee, operations=OPERATIONS, context=dict(context))


def name_of(scope: str, data_class: str) -> str:
    """Give the fixed name of a grant: a repeat of CreateGrant finds the first one by it."""
    return f"pipeline:{scope}:{data_class}:v1"


class GrantRecord(Struct, frozen=True, kw_only=True, rename="camel"):
    """A grant that was made: what is kept of it."""

    version: int = VERSION
    kms_key_arn: str
    grant_id: str
    name: str
    grantee: str
    created_at: Annotated[datetime, Meta(tz=True)]
    token: str

    def __repr__(self) -> str:
        """Show no token."""
        return f"GrantRecord({self.grant_id} on {self.kms_key_arn}, {self.created_at})"


class GrantFolder:
    """The grants of one ring on disk. Synchronous: callers choose the thread."""

    def __init__(self, files: FileSystem, directory: str) -> None:
        self._files = files
        self._directory = directory

    def read(self) -> dict[str, GrantRecord]:
        """Read the grants, by KMS key. One that can't be read is passed over: KMS has it, `create_grant` finds it.

        Raises:
            StoreIoError: the directory itself can't be read.

        """
        found: dict[str, GrantRecord] = {}
        for name in sorted(self._files.names(self._directory)):
            if not name.endswith(SUFFIX):
                continue
            try:
                content = read_whole(self._files, f"{self._directory}/{name}", _SIZE_LIMIT)
                record = msgspec.json.decode(content or b"", type=GrantRecord)
            except (StoreIoError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if record.version == VERSION and name == _file_name(record.kms_key_arn):
                found[record.kms_key_arn] = record
        return found

    def write(self, record: GrantRecord) -> None:
        """Make a grant's record durable. Raises `StoreFullError`, `StoreIoError`."""
        content = msgspec.json.format(msgspec.json.encode(record))
        write_whole(self._files, f"{self._directory}/{_file_name(record.kms_key_arn)}", content)

    def remove(self, kms_key_arn: str) -> None:
        """Forget a grant, durably; nothing happens if there is none. Raises `StoreIoError`."""
        if _file_name(kms_key_arn) in self._files.names(self._directory):
            self._files.unlink(f"{self._directory}/{_file_name(kms_key_arn)}")
            self._files.sync_directory(self._directory)


def _file_name(kms_key_arn: str) -> str:
    # By the whole ARN: a replica of a multi-Region key has the id of the first.
    return hashlib.sha256(kms_key_arn.encode()).hexdigest()[:32] + SUFFIX


async def make_grant(
    service: GrantService, folder: GrantFolder, clock: Clock, key_arn: str, wanted: GrantTerms
) -> GrantRecord:
    """Create the grant, or find the one that is there by its name, and keep it.

    Raises:
        RefuseError: KMS makes no such grant; `KeyUnavailableError`, `KeyBusyError`: not now.
        StoreFullError, StoreIoError: it is made, and not kept here; asking again finds it.

    """
    made = await service.create_grant(key_arn, wanted)
    record = GrantRecord(
        kms_key_arn=key_arn,
        grant_id=made.grant_id,
        name=wanted.name,
        grantee=wanted.grantee,
        created_at=clock.now(),
        token=made.token,
    )
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(folder.write, record)
    return record


async def end_grant(service: GrantService, folder: GrantFolder, key_arn: str) -> GrantRecord | None:
    """Retire the grant that is kept for a KMS key and forget it; None if none is kept. For keys no more needed.

    Raises:
        KeyUnavailableError, KeyBusyError: KMS did not retire it; it is kept, ask again.
        StoreIoError: it is retired, and its record could not be removed.

    """
    record = (await anyio.to_thread.run_sync(folder.read)).get(key_arn)
    if record is None:
        return None
    await service.retire_grant(key_arn, record.grant_id)
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(folder.remove, key_arn)
    return record


class GrantedKeys:
    """`KeyService` over another one: gives the tokens of new grants along, and is patient while they are new.

    What another process grants meanwhile is found when KMS next refuses. Retries nothing else.
    """

    def __init__(self, service: KeyService, folder: GrantFolder, clock: Clock) -> None:
        self._service = service
        self._folder = folder
        self._clock = clock
        self._new: dict[str, tuple[str, float]] | None = None
        """By KMS key: token, and until when it goes along (monotonic)."""
        self._refused: set[str] = set()
        """Tokens that KMS did not know."""

    async def generate_data_key(
        self, key_arn: str, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> GeneratedKey:
        """See `KeyService`."""
        return await self._ask(
            lambda known: self._service.generate_data_key(key_arn, context, [*tokens, *known]), key_arn
        )

    async def decrypt(
        self, key_arn: str, wrapped: bytes, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> bytes:
        """See `KeyService`."""
        return await self._ask(
            lambda known: self._service.decrypt(key_arn, wrapped, context, [*tokens, *known]), key_arn
        )

    async def re_encrypt(
        self,
        source_arn: str,
        target_arn: str,
        wrapped: bytes,
        context: Mapping[str, str],
        tokens: Sequence[str] = (),
    ) -> bytes:
        """See `KeyService`."""
        return await self._ask(
            lambda known: self._service.re_encrypt(source_arn, target_arn, wrapped, context, [*tokens, *known]),
            source_arn,
            target_arn,
        )

    async def describe(self, key_arn: str, tokens: Sequence[str] = ()) -> KeyDescription:
        """See `KeyService`."""
        return await self._ask(lambda known: self._service.describe(key_arn, [*tokens, *known]), key_arn)

    async def _ask(self, call: Callable[[Sequence[str]], Awaitable[T]], *arns: str) -> T:
        if self._new is None:
            await self._read()
        tokens = self._tokens(arns)
        try:
            return await self._with(call, tokens)
        except KeyUnavailableError as error:
            if error.code not in _NOT_YET:
                raise
            await self._read()
            later = self._tokens(arns)
            if set(later) - set(tokens):
                return await self._patiently(call, later)
            if self._is_new(arns):
                raise _not_yet() from error
            raise

    async def _patiently(self, call: Callable[[Sequence[str]], Awaitable[T]], tokens: list[str]) -> T:
        """Ask once more, with the token of a grant that was made meanwhile."""
        try:
            return await self._with(call, tokens)
        except KeyUnavailableError as error:
            if error.code in _NOT_YET:
                raise _not_yet() from error
            raise

    async def _with(self, call: Callable[[Sequence[str]], Awaitable[T]], tokens: list[str]) -> T:
        try:
            return await call(tokens)
        except GrantTokenError:
            if not tokens:
                raise
            self._refused.update(tokens)
            return await call([])

    async def _read(self) -> None:
        try:
            records = await anyio.to_thread.run_sync(self._folder.read)
        except StoreIoError:
            records = {}  # the token only helps for minutes; without it KMS decides
        now, mono = self._clock.now(), self._clock.monotonic()
        known = self._new or {}
        self._new = {}
        for arn, record in records.items():
            if arn in known and known[arn][0] == record.token:
                self._new[arn] = known[arn]
                continue
            # The wall clock may have jumped: never longer than it takes from now on.
            left_s = min(PROPAGATION_S, PROPAGATION_S - (now - record.created_at).total_seconds())
            self._new[arn] = record.token, mono + left_s

    def _tokens(self, arns: Sequence[str]) -> list[str]:
        tokens = [self._new[arn][0] for arn in dict.fromkeys(arns) if self._new and self._is_new([arn])]
        return [token for token in tokens if token not in self._refused]

    def _is_new(self, arns: Sequence[str]) -> bool:
        now = self._clock.monotonic()
        return any(arn in self._new and now < self._new[arn][1] for arn in arns) if self._new else False


def _not_yet() -> KeyBusyError:
    return KeyBusyError("KMS does not know the new grant everywhere yet; it is tried again, for five minutes at most")
