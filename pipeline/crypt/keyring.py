"""The data keys of one instance and one data class: at rest wrapped by KMS, in memory for a short time.

Reads and writes through ports only and never retries; a caller that is told to defer comes back.

* A data key is given out only after its ring file is durable. Loss of the ring is loss of all that is undelivered.
* A plaintext key opens for `cache` after the last *successful* GenerateDataKey or Decrypt; use does not extend that.
  From 80 % of that time on it is asked for again, by one caller at a time, while the others go on with what is there.
* KMS refuses: every data key under that KMS key is dropped for opening and for new artifacts at once. KMS does not
  answer: they go on until their time is over. In both cases what was begun is sealed on for `seal_grace` from then.
* A ring file that disagrees with the configuration, or whose wrapped key is not its own, is not used: what needs it
  waits (`KEY_MISMATCH`), nothing turns to poison, and new artifacts take a fresh key. It is tried again after `load`.

Keys are dropped, not wiped: the cryptography library and KMS's answers keep copies that Python can't overwrite.
"""

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import anyio
import anyio.to_thread

from pipeline.crypt import ringfile
from pipeline.crypt.blind import BlindKey
from pipeline.crypt.duty import KEY_LIFE
from pipeline.crypt.gate import Call, Gates, RingState, is_refusal
from pipeline.crypt.keycopies import Copy, KeyCopies, Use
from pipeline.crypt.namekeys import NameKeys
from pipeline.crypt.ringfile import RingFile, Wrapped
from pipeline.crypt.ringfiles import RingFiles
from pipeline.crypt.segments import KEY_SIZE, DataKey
from pipeline.errors import HoldCode, KeyBusyError, KeyUnavailableError, SegmentForgedError
from pipeline.ids import RECORDINGS_CLASS, InstanceId, KeyId, Kind
from pipeline.keyports import KeyService
from pipeline.ports import Clock, FileSystem

_REFRESH_FROM = 0.8
_REFRESH_SPREAD = 0.1
"""The refresh begins at 80 to 90 % of the time, by chance, so that instances don't ask in step."""


class KeyRing:
    """The ring of one instance and one data class.

    Its methods raise `KeyUnavailableError` when KMS refuses the key or a ring file can't be used (the state to hold
    is in its code), and `KeyBusyError` when KMS does not answer. After a failure KMS is left alone for 1 s, later up
    to 30 s; whoever asks meanwhile is told the same. When to ask again is the caller's business.
    """

    def __init__(
        self,
        *,
        instance_id: InstanceId,
        data_class: str = RECORDINGS_CLASS,
        context: Mapping[str, str],
        current_arn: str,
        previous_arn: str | None,
        directory: str,
        files: FileSystem,
        service: KeyService,
        clock: Clock,
        cache: timedelta,
        seal_grace: timedelta,
        random: Callable[[], float],
        life: timedelta = KEY_LIFE,
    ) -> None:
        self.files = RingFiles(
            files,
            directory,
            clock,
            instance_id=instance_id,
            data_class=data_class,
            context=context,
            current_arn=current_arn,
            previous_arn=previous_arn,
            life=life,
        )
        self.service = service
        self._clock = clock
        self._random = random
        self._cache_s = cache.total_seconds()
        self._copies = KeyCopies(seal_grace.total_seconds())
        self._names = NameKeys(self.files, self._copies, self._copy)
        self._active: KeyId | None = None
        self.changing = anyio.Lock()
        """Held while its files change, and while the active key is chosen."""
        self._key_locks: defaultdict[KeyId, anyio.Lock] = defaultdict(anyio.Lock)
        self._gates = Gates(self.files.arns, clock, random)

    async def load(self) -> None:
        """Read the ring files. Asks KMS nothing.

        Raises:
            StoreIoError: the directory can't be read.

        """
        await self.follow(self.files.current_arn, next(iter(self.files.arns[1:]), None))

    async def follow(self, current_arn: str, previous_arn: str | None) -> None:
        """Read the ring files and go by these KMS keys from now on. Asks KMS nothing.

        A key that was opened by a KMS key which is configured no more is asked for again before it opens anything;
        what was begun under it is sealed on meanwhile.

        Raises:
            StoreIoError: the directory can't be read; nothing has changed.

        """
        async with self.changing:
            found = await anyio.to_thread.run_sync(self.files.read)
            self.files.adopt(found, current_arn, previous_arn)
            self._gates.open(self.files.arns)
            now = self._clock.monotonic()
            for copy in self._copies:
                if copy.kms_key_arn not in self.files.arns or self.files.get(copy.key.key_id) is None:
                    copy.revoke(now)
            active = None if self._active is None else self.files.get(self._active)
            if active is None or active.wrapped_under(current_arn) is None:
                self._active = None

    async def active(self) -> DataKey:
        """Give the key for a new artifact: the newest under the current KMS key, or a new one, durable by now.

        Raises:
            KeyUnavailableError, KeyBusyError: no new artifact can be begun now.
            StoreFullError, StoreIoError: the new key's ring file could not be made durable.

        """
        copy = await self._active_copy()
        copy.seals = True
        return copy.key

    async def opening(self, key_id: KeyId) -> DataKey:
        """Give a key to open segments with. Ask again for each artifact, and at least every few seconds.

        Raises:
            KeyUnavailableError, KeyBusyError: nothing under it can be opened now.
            SegmentForgedError: the key is not in this ring.

        """
        return (await self._copy(key_id, Use.OPEN)).key

    async def sealing(self, key_id: KeyId) -> DataKey:
        """Give a key to go on with an artifact that was begun under it. Ask again before each batch.

        Raises:
            KeyUnavailableError, KeyBusyError: the grace is over too.
            SegmentForgedError: the key is not in this ring.

        """
        copy = await self._copy(key_id, Use.SEAL)
        copy.seals = True
        return copy.key

    async def tags(self, kind: Kind, source_id: str) -> list[str]:
        """Give the source tags of a source id: the first to write, all of them to look for.

        There are several only when the name key could not be carried over to a new KMS key.

        Raises:
            KeyUnavailableError, KeyBusyError: as `active`.

        """
        name_keys = await self._names.all(await self._naming_copy())
        return list(dict.fromkeys(ringfile.tag(name_key, kind, source_id) for name_key in name_keys))

    async def item_digest(self, item_id: str) -> str:
        """Give the digest by which a repeated chat item is known.

        Raises:
            KeyUnavailableError, KeyBusyError: as `active`; not while what was begun may be sealed on.

        """
        return ringfile.tag((await self._naming_copy()).name_key, "item", item_id)

    async def blind_keys(self) -> list[BlindKey]:
        """Give what makes keyed hashes: the first to write, all of them to look for, as with `tags`.

        Raises:
            KeyUnavailableError, KeyBusyError: as `active`.

        """
        return [BlindKey(name_key) for name_key in await self._names.all(await self._naming_copy())]

    def is_retired(self, key_id: KeyId) -> bool:
        """Tell whether a key is to be no more the active one, as it may have been a moment ago."""
        return self.files.is_retired(key_id)

    def used(self, key_id: KeyId, artifacts: int, size_bytes: int) -> None:
        """Count what was sealed under a key: all that a scan found, and then each artifact."""
        self.files.used(key_id, artifacts, size_bytes)

    def expire(self) -> None:
        """Drop the keys whose time is over. Every call does it; call it also when nothing else happens."""
        self._copies.expire(self._clock.monotonic())

    def drop(self, key_id: KeyId | None = None) -> None:
        """Drop every key in memory, or one."""
        self._copies.clear(key_id)
        if key_id in {None, self._active}:
            self._active = None

    def ask_now(self) -> None:
        """Ask KMS again at the next call, whatever it answered last: somebody says that it is mended."""
        self._gates.ask_now()

    def retire(self, key_id: KeyId) -> None:
        """Let a key be no more the active one from now on."""
        self.files.retire(key_id)
        if key_id == self._active:
            self._active = None

    @property
    def state(self) -> RingState:
        """How the current KMS key last answered; a refusal outweighs silence."""
        return self._gates.state(self.files.current_arn)

    def answer(self, call: Call) -> RingState:
        """How the current KMS key last answered one call."""
        return self._gates.answer(self.files.current_arn, call)

    async def prove(self) -> None:
        """Ask the current KMS key for what new artifacts need, so that `state` tells how it is now.

        Raises:
            KeyUnavailableError, KeyBusyError: it does not give it.
            StoreFullError, StoreIoError: a new data key's ring file could not be made durable.

        """
        await self._active_copy()

    @property
    def unusable(self) -> Mapping[KeyId, str]:
        """The keys whose ring files are not used, and why."""
        return dict(self.files.unusable)

    @property
    def is_usable(self) -> bool:
        """Whether any of its ring files can be used."""
        return any(True for _ in self.files)

    def key_ids(self) -> list[KeyId]:
        """List the keys of the ring, usable or not."""
        return self.files.key_ids()

    def knows(self, key_id: KeyId) -> bool:
        """Tell whether a key is in the ring, usable or not."""
        return key_id in self.files.key_ids()

    # --- the active key

    async def _active_copy(self) -> Copy:
        self.expire()
        now = self._clock.monotonic()
        copy = self._copies.get(self._active)
        if copy is not None and self.files.is_within_limits(copy.key.key_id):
            is_fresh = now < copy.refresh_at
            if is_fresh or (self.changing.locked() and self._copies.permits(copy, Use.OPEN, now)):
                return copy
        async with self.changing:
            return await self._next()

    async def _next(self) -> Copy:
        """Choose the active key again, under the lock."""
        while (key_id := self.files.newest()) is not None:
            try:
                copy = await self._copy(key_id, Use.OPEN)
            except KeyUnavailableError as error:
                if error.code is HoldCode.KEY_MISMATCH:
                    continue  # it is marked by now: the next one, or a new one
                raise
            if not self.files.is_within_limits(key_id):
                continue  # retired meanwhile
            self._active = key_id
            return copy
        try:
            copy = await self._generate()
        except KeyBusyError:
            # The limits are policy: rather a few minutes more under a key in memory than no recording.
            last = self._copies.get(self._active)
            if last is None or not self._copies.permits(last, Use.OPEN, self._clock.monotonic()):
                raise
            return last
        self._active = copy.key.key_id
        return copy

    async def _generate(self) -> Copy:
        """Make a data key; it is in memory only once its ring file is durable."""
        name_key_id, name_key = await self._names.carried() or (uuid4(), secrets.token_bytes(KEY_SIZE))
        asked_at = self._clock.monotonic()
        with self._asking(Call.GENERATE, self.files.current_arn):
            generated = await self.service.generate_data_key(self.files.current_arn, self.files.context)
            if generated.key_arn != self.files.current_arn or len(generated.plaintext) != KEY_SIZE:
                raise KeyUnavailableError(
                    HoldCode.KEY_INVALID_STATE,
                    "KMS answered with another key than the configured one; nothing was made",
                )
        key = DataKey(KeyId(uuid4()), generated.plaintext)
        now = self._clock.now()
        file = RingFile(
            key_id=key.key_id,
            instance_id=self.files.instance_id,
            data_class=self.files.data_class,
            created_at=now,
            context_sha256=ringfile.context_sha256(self.files.context),
            name_key_id=name_key_id,
            name_key=ringfile.seal_name_key(key, self.files.instance_id, name_key_id, name_key),
            wrapped=(Wrapped(kms_key_arn=self.files.current_arn, blob=generated.wrapped, wrapped_at=now),),
        )
        with anyio.CancelScope(shield=True):  # a file that is there but not known would never be used
            await anyio.to_thread.run_sync(self.files.write, file)
        self.files.keep(file)
        return self.remember(key, file, name_key, self.files.current_arn, asked_at)

    # --- keys in memory

    async def _copy(self, key_id: KeyId, use: Use) -> Copy:
        """Give a key from memory if it may be used so, and ask KMS when it is time to."""
        self.expire()
        now = self._clock.monotonic()
        copy = self._copies.get(key_id)
        lock = self._key_locks[key_id]
        if copy is not None:
            is_fresh = now < copy.refresh_at
            if is_fresh or (lock.locked() and self._copies.permits(copy, use, now)):
                return copy
        async with lock:
            copy = self._copies.get(key_id)
            if copy is not None and self._clock.monotonic() < copy.refresh_at:
                return copy
            try:
                return await self._unwrap(key_id)
            except (KeyUnavailableError, KeyBusyError):
                copy = self._copies.get(key_id)
                if copy is None or not self._copies.permits(copy, use, self._clock.monotonic()):
                    raise
                return copy

    async def _unwrap(self, key_id: KeyId) -> Copy:
        file = self.files.get(key_id)
        if file is None:
            if key_id in self.files.unusable:
                raise KeyUnavailableError(HoldCode.KEY_MISMATCH, self.files.unusable[key_id])
            raise SegmentForgedError("an artifact names a data key that is not in its instance's ring")
        wrapped = next(found for arn in self.files.arns if (found := file.wrapped_under(arn)) is not None)
        asked_at = self._clock.monotonic()
        try:
            with self._asking(Call.DECRYPT, wrapped.kms_key_arn):
                secret = await self.service.decrypt(wrapped.kms_key_arn, wrapped.blob, self.files.context)
            key = data_key(key_id, secret)
            name_key = ringfile.open_name_key(key, file)
        except KeyUnavailableError as error:
            if error.code is HoldCode.KEY_MISMATCH:
                self._set_aside(key_id, str(error))
            raise
        return self.remember(key, file, name_key, wrapped.kms_key_arn, asked_at)

    def _set_aside(self, key_id: KeyId, why: str) -> None:
        self.files.set_aside(key_id, why)
        copy = self._copies.get(key_id)
        if copy is not None:
            copy.revoke(self._clock.monotonic())

    def remember(self, key: DataKey, file: RingFile, name_key: bytes, arn: str, asked_at: float) -> Copy:
        """Keep a key that KMS gave, asked for at that time (monotonic), for as long as it may be used."""
        share = _REFRESH_FROM + _REFRESH_SPREAD * self._random()
        copy = Copy(
            key=key,
            name_key_id=file.name_key_id,
            name_key=name_key,
            kms_key_arn=arn,
            refresh_at=asked_at + self._cache_s * share,
            expires_at=asked_at + self._cache_s,
        )
        self._copies.put(copy)
        return copy

    @contextmanager
    def _asking(self, call: Call, arn: str) -> Iterator[None]:
        """Wrap one call to KMS; a refusal ends the use of every key that this KMS key opened."""
        try:
            with self._gates.asking(call, arn):
                yield
        except KeyUnavailableError as error:
            if is_refusal(call, error.code):
                self._copies.revoke_under(arn, self._clock.monotonic())
            raise

    async def _naming_copy(self) -> Copy:
        """Give the copy whose name key is for writing; also while only what was begun may be sealed on."""
        self.expire()
        copy = self._copies.get(self._active)
        if copy is not None and self._copies.permits(copy, Use.SEAL, self._clock.monotonic()):
            return copy
        return await self._active_copy()


def data_key(key_id: KeyId, secret: bytes) -> DataKey:
    """Make a data key of what KMS unwrapped. Raises `KeyUnavailableError` (`KEY_MISMATCH`) if it can't be one."""
    if len(secret) != KEY_SIZE:
        raise KeyUnavailableError(HoldCode.KEY_MISMATCH, f"what KMS unwrapped for data key {key_id} is no 256-bit key")
    return DataKey(key_id, secret)
