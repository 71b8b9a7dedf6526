"""Shelves: the scopes that are served, each with its own key ring.

A shelf that can't be served says why to whoever asks, and stops no other. Two instances may name one domain: they share
its shelf, if they agree about its KMS key.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

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


@dataclass(slots=True)
class Shelf:
    """One scope, served."""

    place: Placed
    keys: RingKeys | None
    ring: KeyRing | None
    trouble: str | None = None
    """Why it can't be served, as configured."""
    _loaded: bool = False
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    @property
    def scope(self) -> Scope:
        """What it is the shelf of."""
        return self.place.scope

    async def active(self) -> DataKey:
        """Give the data key for new records. Raises as `opened`."""
        ring = await self.opened()
        with self._denied():
            return await ring.active()

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
        """Give the ring, read once.

        Raises:
            RecordsUnservedError: the shelf can't be served as configured.
            RecordsDeniedError: the customer's KMS key can't be used, and the class denies then.
            KeyUnavailableError, KeyBusyError: the KMS key can't be used now.
            StoreIoError: the ring's files can't be read.

        """
        if self.ring is None or self.trouble is not None:
            raise RecordsUnservedError(
                self.trouble or "the service has no KMS key of its own: set records.service_key_arn"
            )
        if not self._loaded:
            async with self._lock:
                if not self._loaded:
                    await self.ring.load()
                    self._loaded = True
        if self.scope.policy.key_change is KeyChange.IMMUTABLE and self.ring.unusable and not self.ring.is_usable:
            raise RecordsUnservedError(
                "none of its data keys belongs to the configured KMS key, and this class allows no change of key:"
                " configure the former one, or make the resource anew"
            )
        return self.ring

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


class Shelves:
    """Every shelf, by instance, class and name; replaced as a whole when the configuration is read again."""

    def __init__(self, make_ring: MakeRing) -> None:
        self._make_ring = make_ring
        self._shelves: dict[InstanceId, dict[tuple[str, str], Shelf]] = {}
        self._by_owner: dict[InstanceId, Shelf] = {}

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

    def __iter__(self) -> Iterator[Shelf]:
        """Give each shelf once, whoever shares it."""
        return iter(list({id(each): each for of_one in self._shelves.values() for each in of_one.values()}.values()))

    def adopt(self, instances: Iterable[Instance], service: ServiceKey) -> None:
        """Serve these from now on. A ring is kept while its KMS keys are the same; one that is left out is dropped."""
        before, self._by_owner = self._by_owner, {}
        shelves: dict[InstanceId, dict[tuple[str, str], Shelf]] = {}
        for instance in instances:
            mine = shelves.setdefault(instance.instance_id, {})
            for key, place in instance.places.items():
                mine[key] = self._shelf(instance, place, service, before)
        self._shelves = shelves
        rings = {id(shelf.ring) for shelf in self}
        for shelf in before.values():
            if shelf.ring is not None and id(shelf.ring) not in rings:
                shelf.ring.drop()

    def _shelf(
        self, instance: Instance, place: Placed, service: ServiceKey, before: Mapping[InstanceId, Shelf]
    ) -> Shelf:
        keys, owner = service.keys_of(place), place.scope.owner
        known = self._by_owner.get(owner)
        if known is not None:
            if known.keys != keys:
                known.trouble = "two instances name it with different KMS keys"
            if known.place == place:
                return known
            return Shelf(place, keys, known.ring, known.trouble, known._loaded)  # noqa: SLF001
        earlier = before.get(owner)
        if earlier is not None and earlier.keys == keys and keys is not None:
            shelf = Shelf(place, keys, earlier.ring, None, earlier._loaded)  # noqa: SLF001
        else:
            shelf = Shelf(place, keys, None if keys is None else self._make_ring(instance, place, keys))
        self._by_owner[owner] = shelf
        return shelf
