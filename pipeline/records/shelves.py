"""Shelves: the scopes that are served, each with its own key ring.

A shelf that can't be served says why to whoever asks, and stops no other. Two instances may name one domain: they share
its shelf, if they agree about its KMS key.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import anyio

from pipeline.crypt.blind import BlindKey
from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.segments import DataKey
from pipeline.errors import HoldCode, KeyUnavailableError, NoSuchRecordError, RecordsDeniedError, RecordsUnservedError
from pipeline.ids import InstanceId, KeyId
from pipeline.instances import Instance
from pipeline.records.policy import KeyChange, OnRevoke
from pipeline.records.scopes import DEFAULT, Placed, Scope


@dataclass(frozen=True, slots=True)
class RingKeys:
    """The KMS keys of one scope's ring, by full ARN."""

    current: str
    previous: str | None
    is_customers: bool


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """The operator's own KMS key, as configured."""

    current: str | None = None
    previous: str | None = None

    def keys_of(self, place: Placed) -> RingKeys | None:
        """Choose the keys of a scope; `None` if it needs the service's key and there is none."""
        allows_change = place.scope.policy.key_change is not KeyChange.IMMUTABLE
        if place.kms_key_arn is not None:
            before = place.previous_kms_key_arn or (self.current if allows_change else None)
            return RingKeys(place.kms_key_arn, before if before != place.kms_key_arn else None, is_customers=True)
        if self.current is None:
            return None
        return RingKeys(self.current, place.previous_kms_key_arn or self.previous, is_customers=False)


Grant = Callable[[], Awaitable[None]]
"""Have the right to use the scope's KMS key, as configured."""


class ScopeRing:
    """The key ring of one scope, whoever shares it. It outlives a change of its KMS keys."""

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self.sealing: Counter[KeyId] = Counter()
        """Changes under way that were sealed under a data key, and are not in the engine yet."""
        self._followed: RingKeys | None = None
        self._lock = anyio.Lock()

    async def follow(self, keys: RingKeys, grant: Grant) -> None:
        """Read the ring under these KMS keys, if it was not. Raises as `Shelf.opened`."""
        if self._followed == keys:
            return
        async with self._lock:
            if self._followed != keys:
                await grant()
                await self.ring.follow(keys.current, keys.previous)
                self._followed = keys


@dataclass(slots=True)
class Shelf:
    """One scope, served."""

    place: Placed
    keys: RingKeys | None
    of_scope: ScopeRing | None
    grant: Grant
    trouble: str | None = None
    """Why it can't be served, as configured."""

    @property
    def scope(self) -> Scope:
        """What it is the shelf of."""
        return self.place.scope

    @property
    def ring(self) -> KeyRing | None:
        """Its ring, if it has any; it may not have been read yet."""
        return None if self.of_scope is None else self.of_scope.ring

    async def active(self) -> DataKey:
        """Give the data key for new records. Raises as `opened`."""
        ring = await self.opened()
        with self._denied():
            return await ring.active()

    @asynccontextmanager
    async def sealing(self) -> AsyncIterator[DataKey]:
        """Give the data key for new records; it is not destroyed before the block ends. Raises as `opened`."""
        key = await self.active()
        assert self.of_scope is not None
        uses = self.of_scope.sealing
        uses[key.key_id] += 1
        try:
            yield key
        finally:
            uses[key.key_id] -= 1

    async def opening(self, key_id: KeyId) -> DataKey:
        """Give a data key to open records with. Raises as `opened`, and `SegmentForgedError` if there is none."""
        ring = await self.opened()
        with self._denied():
            return await ring.opening(key_id)

    async def blind(self) -> list[BlindKey]:
        """Give what makes keyed hashes: the first to write, all to look for. Raises as `opened`."""
        ring = await self.opened()
        with self._denied():
            return await ring.blind_keys()

    async def opened(self) -> KeyRing:
        """Give the ring, read under the KMS keys that are configured.

        Raises:
            RecordsUnservedError: the shelf can't be served as configured.
            RecordsDeniedError: the customer's KMS key can't be used, and the class denies then.
            KeyUnavailableError, KeyBusyError: the KMS key can't be used now.
            StoreIoError: the ring's files can't be read.

        """
        if self.of_scope is None or self.keys is None or self.trouble is not None:
            raise RecordsUnservedError(
                self.trouble or "the service has no KMS key of its own: set records.service_key_arn"
            )
        with self._denied():
            await self.of_scope.follow(self.keys, self.grant)
        ring = self.of_scope.ring
        if self.scope.policy.key_change is KeyChange.IMMUTABLE and ring.unusable and not ring.is_usable:
            raise RecordsUnservedError(
                "none of its data keys belongs to the configured KMS key, and this class allows no change of key:"
                " configure the former one, or make the resource anew"
            )
        return ring

    @contextmanager
    def _denied(self) -> Iterator[None]:
        """Tell of a customer's key that is refused as the class's policy says."""
        try:
            yield
        except KeyUnavailableError as error:
            customers = self.keys is not None and self.keys.is_customers
            if (
                customers
                and self.scope.policy.on_revoke is OnRevoke.DENY
                and error.code is not HoldCode.KEY_UNREACHABLE
            ):
                raise RecordsDeniedError(error.code, str(error)) from error
            raise


MakeRing = Callable[[Instance, Placed, RingKeys], KeyRing]
MakeGrant = Callable[[Instance, Placed, RingKeys], Awaitable[None]]


async def no_grant(_instance: Instance, _place: Placed, _keys: RingKeys) -> None:
    """Use KMS keys by their own policies."""


class Shelves:
    """Every shelf, by instance, class and name; replaced as a whole when the configuration is read again."""

    def __init__(self, make_ring: MakeRing, make_grant: MakeGrant = no_grant) -> None:
        self._make_ring = make_ring
        self._make_grant = make_grant
        self._shelves: dict[InstanceId, dict[tuple[str, str], Shelf]] = {}
        self._rings: dict[InstanceId, ScopeRing] = {}

    def get(self, instance: InstanceId, data_class: str, name: str | None = None) -> Shelf:
        """Find a shelf; without a name the only one of its class.

        Raises:
            NoSuchRecordError: the instance has no such class or scope, or several.

        """
        found = self._shelves.get(instance, {})
        if name is not None:
            shelf = found.get((data_class, name))
        else:
            named = [each for (of_class, _), each in found.items() if of_class == data_class]
            shelf = named[0] if len(named) == 1 else found.get((data_class, DEFAULT))
        if shelf is None or not shelf.scope.policy.kept:
            raise NoSuchRecordError("there is no such class or scope", field="class" if name is None else "scope")
        return shelf

    def of(self, instance: InstanceId) -> Mapping[tuple[str, str], Shelf]:
        """Give an instance's shelves, by class and name."""
        return dict(self._shelves.get(instance, {}))

    def owners(self) -> Mapping[bytes, tuple[Shelf, list[InstanceId]]]:
        """Give every shelf as the engine knows it, and the instances that share it."""
        found: dict[bytes, tuple[Shelf, list[InstanceId]]] = {}
        for instance, shelves in self._shelves.items():
            for shelf in shelves.values():
                found.setdefault(shelf.scope.shelf, (shelf, []))[1].append(instance)
        return found

    def __iter__(self) -> Iterator[Shelf]:
        """Give each shelf once, whoever shares it."""
        return iter(list({id(each): each for of_one in self._shelves.values() for each in of_one.values()}.values()))

    def adopt(self, instances: Iterable[Instance], service: ServiceKey) -> None:
        """Serve these from now on. A scope's ring stays; the keys of one that is left out are dropped."""
        first: dict[InstanceId, Shelf] = {}
        shelves: dict[InstanceId, dict[tuple[str, str], Shelf]] = {}
        for instance in instances:
            mine = shelves.setdefault(instance.instance_id, {})
            for key, place in instance.places.items():
                mine[key] = self._shelf(instance, place, service, first)
        self._shelves = shelves
        for owner in set(self._rings) - set(first):
            self._rings.pop(owner).ring.drop()

    def _shelf(self, instance: Instance, place: Placed, service: ServiceKey, first: dict[InstanceId, Shelf]) -> Shelf:
        keys, owner = service.keys_of(place), place.scope.owner
        known = first.get(owner)
        if known is not None and known.keys != keys:
            known.trouble = "two instances name it with different KMS keys"
        if known is not None and known.place == place:
            return known
        if keys is not None and owner not in self._rings:
            self._rings[owner] = ScopeRing(self._make_ring(instance, place, keys))
        grant = partial(self._make_grant, instance, place, keys) if keys is not None else _nothing
        shelf = Shelf(place, keys, self._rings.get(owner) if keys is not None else None, grant)
        if known is None:
            first[owner] = shelf
        else:
            shelf.trouble = known.trouble
        return shelf


async def _nothing() -> None:
    """Grant nothing: there is no KMS key."""
