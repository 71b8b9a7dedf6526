"""Keys and buckets for one run of a command, by the settings: each opened when first needed, all closed together.

A command writes to the same audit logs as the service. Every call to a key service is in it before its outcome counts.
"""

import os
import pwd
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio.to_thread

from pipeline.adapters.clock import SystemClock
from pipeline.adapters.disk import Disk, holder
from pipeline.adapters.kms import AwsKeyService
from pipeline.adapters.s3 import S3Destination
from pipeline.adapters.sts import Role, own_principal
from pipeline.audit.records import Actor
from pipeline.audit.signing import SigningKeys
from pipeline.crypt.grants import GrantedKeys, GrantFolder
from pipeline.crypt.keyring import KeyRing
from pipeline.embedded import attached
from pipeline.errors import KeyBusyError
from pipeline.ids import InstanceId
from pipeline.instances import Instance, Storage
from pipeline.interim.logs import AppendLogs, LogLine
from pipeline.keyports import KmsCall
from pipeline.node import Clients, role_of
from pipeline.settings import Settings
from pipeline.trail import Trail


class Access:
    """What a command may reach, and the audit log that says so."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self.files = Disk()
        self.clock = SystemClock()
        self.actor = Actor("Command", _user())
        self.writer = f"command-{secrets.token_hex(8)}"
        """Names the other logs of this run: each has one writer."""
        self.trail = Trail(str(settings.state_dir), actor=self.actor, clock=self.clock)
        self._settings = settings
        self._stack = stack
        self._logs = AppendLogs(self.files, least=SigningKeys(settings.config_dir).least)
        self._limiter = anyio.CapacityLimiter(1)
        self._clients: Clients | None = None
        self._rings: dict[InstanceId, KeyRing] = {}
        stack.callback(self._logs.close)

    async def record(self, line: LogLine) -> None:
        """Write an audit record; it is durable when this returns.

        Raises:
            StoreFullError, StoreIoError: it is not; what it was to record must not be done.

        """
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._logs.append, line.path, [line.line], line.hour, limiter=self._limiter)

    @property
    def root(self) -> str:
        """The state directory."""
        return str(self._settings.state_dir)

    async def keys(self, instance: Instance) -> AwsKeyService:
        """Give the key service as one instance sees it."""
        client = await self._reached().get("kms", instance.kms_key_arn.split(":")[3], self._role(instance))
        return AwsKeyService(client, partial(self._audit, instance))

    async def service_keys(self, instance: Instance, key_arn: str) -> AwsKeyService:
        """Give the key service for the operator's own KMS key, used for one instance: no role is taken on for that."""
        client = await self._reached().get("kms", key_arn.split(":")[3])
        return AwsKeyService(client, partial(self._audit, instance))

    async def granted_keys(self, instance: Instance) -> GrantedKeys:
        """Give the key service as the service itself uses it: with the tokens of grants that are new."""
        return GrantedKeys(await self.keys(instance), self.grants(instance), self.clock)

    def grants(self, instance: Instance) -> GrantFolder:
        """Give the grants that are kept for an instance's recordings."""
        return GrantFolder(self.files, self._ring_directory(instance))

    async def grantee(self, instance: Instance) -> str:
        """Tell whom an instance's grants are for: the role that is taken on for it, or what the service is itself."""
        return instance.role_arn or await self.principal()

    async def principal(self) -> str:
        """Tell what the service is: its role or user.

        Raises:
            RefuseError, KeyBusyError: it is not set, and STS does not tell it.

        """
        settings = running_servers(self._settings) if self._settings.embedded else self._settings
        return settings.principal_arn or await own_principal(await self._reached().get("sts"))

    async def ring(self, instance: Instance) -> KeyRing:
        """Give the key ring of an instance's recordings, loaded."""
        known = self._rings.get(instance.instance_id)
        if known is not None:
            return known
        ring = KeyRing(
            instance_id=instance.instance_id,
            context=instance.recordings_context,
            current_arn=instance.kms_key_arn,
            previous_arn=instance.previous_kms_key_arn,
            directory=self._ring_directory(instance),
            files=self.files,
            service=await self.granted_keys(instance),
            clock=self.clock,
            cache=self._settings.keys.cache,
            seal_grace=self._settings.keys.seal_grace,
            random=random.random,
        )
        await ring.load()
        self._rings[instance.instance_id] = ring
        self._stack.callback(ring.drop)
        return ring

    async def destination(self, instance: Instance, storage: Storage) -> S3Destination:
        """Give the bucket that a storage configuration names."""
        return S3Destination(await self._reached().get("s3", instance.region, self._role(instance)), storage)

    def _role(self, instance: Instance) -> Role | None:
        return role_of(instance, self._settings)

    def _ring_directory(self, instance: Instance) -> str:
        return f"{self._settings.state_dir}/keys/{instance.instance_id}"

    def _reached(self) -> Clients:
        """Find the servers. Raises `RefuseError`, `KeyBusyError` if they are the embedded ones and not there."""
        if self._clients is None:
            settings = self._settings
            self._clients = Clients(self._stack, running_servers(settings) if settings.embedded else settings)
        return self._clients

    async def _audit(self, instance: Instance, call: KmsCall) -> None:
        await self.record(self.trail.key_use(instance, call))


def running_servers(settings: Settings) -> Settings:
    """Point settings at the embedded servers, which run as long as the service does.

    Raises:
        RefuseError: no service ever started them.
        KeyBusyError: none runs now.

    """
    known = attached(settings)
    if holder(f"{settings.state_dir}/lock") is None:
        raise KeyBusyError(
            "the embedded key server and bucket run with the service. Start `pipeline serve`, then ask again"
        )
    return known.settings(settings)


@asynccontextmanager
async def open_access(settings: Settings) -> AsyncIterator[Access]:
    """Open what a command may reach; at the end of the block keys are dropped and connections closed."""
    async with AsyncExitStack() as stack:
        yield Access(settings, stack)


def _user() -> str:
    """Name the operating system's user for the audit log, as the system knows it: variables can be set at will."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        return f"uid {os.getuid()}"
