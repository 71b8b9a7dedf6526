"""Another KMS key for a ring: each data key is wrapped again under the new one, and proven, before the old one goes.

No data key changes and nothing that is sealed is touched. Every step is durable before the next, and is found done by
whoever comes again: a ring file with a wrapped key under the new KMS key is never asked about twice.

A new wrapped key is proven by opening the ring's name key, which lies sealed under the very data key that is wrapped: a
segment commits to its key, so another data key can't open it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

import anyio
import anyio.to_thread
from msgspec.structs import replace

from pipeline.crypt import ringfile
from pipeline.crypt.keyring import KeyRing, data_key
from pipeline.crypt.ringfile import RingFile, Wrapped
from pipeline.errors import HoldCode, KeyBusyError, KeyUnavailableError, PipelineError, RefuseError
from pipeline.ids import KeyId
from pipeline.keyports import KeyService
from pipeline.ports import Clock

_AT_A_TIME = 8
"""Data keys that are wrapped at the same time: KMS answers in some milliseconds, and in turn."""

Told = Callable[[int, int], Awaitable[None]]
"""Told how many data keys are done, of how many."""


class Side(StrEnum):
    """Which of the two KMS keys can't be used."""

    OLD = "old"
    NEW = "new"


class SideError(PipelineError):
    """A change can't go on before one of its KMS keys can be used again. What was done stays done."""

    reason = "key-change-failed"

    def __init__(self, side: Side, message: str) -> None:
        super().__init__(message)
        self.side = side


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a change is."""

    done: int
    """Data keys that the current KMS key opens."""
    total: int


def standing(ring: KeyRing) -> Standing:
    """Tell how far a change is, by the files as they were read last."""
    done = sum(1 for file in ring.files if file.wrapped_under(ring.files.current_arn) is not None)
    return Standing(done, len(ring.files.key_ids()))


async def rewrap(ring: KeyRing, clock: Clock, told: Told) -> Standing:
    """Wrap every data key of a ring under its current KMS key, too; a new data key under that one is there first.

    Raises:
        SideError: one of the two KMS keys refuses, or a ring file can't be used.
        KeyBusyError: KMS does not answer; go on later.
        StoreFullError, StoreIoError: the disk refuses; go on later.

    """
    await _begin(ring)
    if ring.files.unusable:
        raise SideError(
            Side.OLD,
            f"{len(ring.files.unusable)} ring files can't be used, so their data keys can't be wrapped again. Restore"
            " keys/ from a backup, or let them go; see `pipeline keys status`",
        )
    waiting = [file for file in ring.files if file.wrapped_under(ring.files.current_arn) is None]
    total = len(ring.files.key_ids())
    failures: list[PipelineError] = []
    limiter = anyio.CapacityLimiter(_AT_A_TIME)
    done = total - len(waiting)
    await told(done, total)

    async def work(file: RingFile) -> None:
        nonlocal done
        async with limiter:
            if failures:
                return
            try:
                await _rewrap_one(ring, clock, file)
            except PipelineError as error:
                failures.append(error)
                return
            done += 1
            await told(done, total)

    async with anyio.create_task_group() as group:
        for file in waiting:
            group.start_soon(work, file, name=f"rewrap {file.key_id}")
    if failures:
        raise min(failures, key=lambda error: not isinstance(error, SideError))
    return standing(ring)


async def let_go_of_others(ring: KeyRing) -> int:
    """Remove every wrapped key that the current KMS key did not make; tell from how many files.

    Only where the current one opens the same data key: what was proven when it was added.

    Raises:
        StoreFullError, StoreIoError: the disk refuses; go on later.

    """
    changed = 0
    for file in ring.files:
        own = file.wrapped_under(ring.files.current_arn)
        if own is None or len(file.wrapped) == 1:
            continue
        await _keep(ring, replace(file, wrapped=(own,)))
        changed += 1
    return changed


# --- inside


async def _begin(ring: KeyRing) -> None:
    """Have a data key under the current KMS key: what comes in from now on needs the old one no more."""
    try:
        await ring.active()
    except KeyUnavailableError as error:
        raise SideError(Side.NEW, f"the new KMS key can't be used: {error}") from error


async def _rewrap_one(ring: KeyRing, clock: Clock, file: RingFile) -> None:
    target = ring.files.current_arn
    old = next(found for arn in ring.files.arns if (found := file.wrapped_under(arn)) is not None)
    context, service = ring.files.context, ring.service
    try:
        blob = await service.re_encrypt(old.kms_key_arn, target, old.blob, context)
    except (KeyUnavailableError, RefuseError) as error:
        raise await _blamed(service, old.kms_key_arn, target, error) from error
    asked_at = clock.monotonic()
    try:
        secret = await service.decrypt(target, blob, context)
        key = data_key(KeyId(file.key_id), secret)
        name_key = ringfile.open_name_key(key, file)
    except (KeyUnavailableError, RefuseError) as error:
        raise SideError(Side.NEW, f"what the new KMS key wrapped could not be opened again: {error}") from error
    wrapped = Wrapped(kms_key_arn=target, blob=blob, wrapped_at=clock.now())
    again = replace(file, wrapped=(wrapped, *(each for each in file.wrapped if each.kms_key_arn != target)))
    if await _keep(ring, again):
        ring.remember(key, again, name_key, target, asked_at)


async def _keep(ring: KeyRing, file: RingFile) -> bool:
    """Make a changed file durable; False if its data key was destroyed meanwhile, which must not come back."""
    async with ring.changing:
        if ring.files.get(KeyId(file.key_id)) is None:
            return False
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(ring.files.write, file)
        ring.files.keep(file)
    return True


async def _blamed(
    service: KeyService, old_arn: str, new_arn: str, error: KeyUnavailableError | RefuseError
) -> PipelineError:
    """Find out of which of its two keys KMS spoke: it does not say."""
    if isinstance(error, KeyUnavailableError) and error.code is HoldCode.KEY_MISMATCH:
        return SideError(Side.OLD, f"the old KMS key does not open a wrapped key of its own: {error}")
    for side, arn in ((Side.OLD, old_arn), (Side.NEW, new_arn)):
        try:
            state = (await service.describe(arn)).state
        except KeyBusyError as silent:
            return silent
        except (KeyUnavailableError, RefuseError) as denied:
            return SideError(side, f"the {side} KMS key can't be used: {denied}")
        if state != "Enabled":
            return SideError(side, f"the {side} KMS key is {state}")
    return SideError(
        Side.OLD,
        f"KMS refuses to wrap a data key again: {error}. Allow this service kms:ReEncryptFrom on the old KMS key and"
        " kms:ReEncryptTo on the new one",
    )
