"""The instances this node serves, each with its own key ring; replaced as a whole when their files are read again."""

from collections.abc import Callable, Iterator, Mapping

from pipeline.crypt.keyring import KeyRing
from pipeline.ids import InstanceId
from pipeline.instances import Instance


class Tenant:
    """One instance and its data keys."""

    def __init__(self, instance: Instance, ring: KeyRing) -> None:
        self.instance = instance
        self.ring = ring


class Tenants:
    """Every instance, by id."""

    def __init__(self, make_ring: Callable[[Instance], KeyRing]) -> None:
        self._make_ring = make_ring
        self._tenants: dict[InstanceId, Tenant] = {}

    def __getitem__(self, instance: InstanceId) -> Tenant:
        return self._tenants[instance]

    def get(self, instance: InstanceId) -> Tenant | None:
        """One instance; None if it is not configured (any more)."""
        return self._tenants.get(instance)

    def __iter__(self) -> Iterator[Tenant]:
        return iter(list(self._tenants.values()))

    def instances(self) -> list[Instance]:
        """Every instance's configuration."""
        return [tenant.instance for tenant in self._tenants.values()]

    def replace(self, instances: Mapping[InstanceId, Instance]) -> None:
        """Serve these from now on, whose rings are new or go by the same KMS keys."""
        self.adopt(self.made(instances))

    def made(self, instances: Mapping[InstanceId, Instance]) -> dict[InstanceId, Tenant]:
        """Make tenants without serving them yet: with the ring that is there, or a new one, which is not loaded.

        A ring that is there is kept also for other KMS keys, which it then has to `follow`: what is open goes on.
        """
        made: dict[InstanceId, Tenant] = {}
        for instance_id, instance in instances.items():
            known = self._tenants.get(instance_id)
            if known is not None and _ring_of(known.instance) == _ring_of(instance):
                made[instance_id] = Tenant(instance, known.ring)
            else:
                made[instance_id] = Tenant(instance, self._make_ring(instance))
        return made

    def adopt(self, tenants: Mapping[InstanceId, Tenant]) -> None:
        """Serve these from now on. What a ring that is left out holds in memory is dropped."""
        rings = {id(tenant.ring) for tenant in tenants.values()}
        for tenant in self._tenants.values():
            if id(tenant.ring) not in rings:
                tenant.ring.drop()
        self._tenants = dict(tenants)


def is_followed(tenant: Tenant) -> bool:
    """Tell whether a tenant's ring goes by the KMS keys that its configuration names."""
    named = (tenant.instance.kms_key_arn, tenant.instance.previous_kms_key_arn)
    return tenant.ring.files.arns == [arn for arn in named if arn is not None]


def _ring_of(instance: Instance) -> tuple[str, ...]:
    """Give what a ring can't change: its encryption context, and the Region whose KMS it asks."""
    return instance.account_id, instance.kms_key_arn.split(":")[3]
