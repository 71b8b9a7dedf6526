"""Keys and buckets for one run of a command, by the settings: each opened when first needed, all closed together.

A command keeps its own audit log beside the service's. Every call to a key service is in it before its outcome counts.
"""

import getpass
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import anyio.to_thread

from pipeline.adapters.aws import Service, open_client
from pipeline.adapters.clock import SystemClock
from pipeline.adapters.disk import Disk
from pipeline.adapters.kms import AwsKeyService
from pipeline.adapters.s3 import S3Destination
from pipeline.audit.records import Actor
from pipeline.crypt.keyring import KeyRing
from pipeline.ids import InstanceId
from pipeline.instances import Instance, Storage
from pipeline.interim.logs import AppendLogs, LogLine
from pipeline.ports import KmsCall
from pipeline.settings import Settings
from pipeline.trail import Trail


class Access:
    """What a command may reach, and the audit log that says so."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self.files = Disk()
        self.clock = SystemClock()
        self.trail = Trail(
            str(settings.state_dir),
            actor=Actor("Command", _user()),
            writer=f"command-{secrets.token_hex(8)}",
            clock=self.clock,
        )
        self._settings = settings
        self._stack = stack
        self._logs = AppendLogs(self.files)
        self._limiter = anyio.CapacityLimiter(1)
        self._clients: dict[tuple[Service, str], Any] = {}
        self._rings: dict[InstanceId, KeyRing] = {}
        stack.callback(self._logs.close)

    async def record(self, line: LogLine) -> None:
        """Write an audit record; it is durable when this returns.

        Raises:
            StoreFullError, StoreIoError: it is not; what it was to record must not be done.

        """
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._logs.append, line.path, [line.line], limiter=self._limiter)

    async def keys(self, instance: Instance) -> AwsKeyService:
        """Give the key service as one instance sees it."""
        region = instance.kms_key_arn.split(":")[3]
        client = await self._client("kms", region)
        return AwsKeyService(client, partial(self._audit, instance))

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
            directory=f"{self._settings.state_dir}/keys/{instance.instance_id}",
            files=self.files,
            service=await self.keys(instance),
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
        return S3Destination(await self._client("s3", instance.region), storage)

    async def _client(self, service: Service, region: str) -> Any:
        """Open a client once. An endpoint that is named has its own Region; on AWS it is the key's or the bucket's."""
        endpoint = self._settings.kms if service == "kms" else self._settings.s3
        if endpoint.url is None:
            endpoint = replace(endpoint, region=region)
        key = (service, endpoint.region)
        if key not in self._clients:
            self._clients[key] = await self._stack.enter_async_context(open_client(service, endpoint))
        return self._clients[key]

    async def _audit(self, instance: Instance, call: KmsCall) -> None:
        await self.record(self.trail.key_use(instance, call))


@asynccontextmanager
async def open_access(settings: Settings) -> AsyncIterator[Access]:
    """Open what a command may reach; at the end of the block keys are dropped and connections closed."""
    async with AsyncExitStack() as stack:
        yield Access(settings, stack)


def _user() -> str:
    """Name the operating system's user, for the audit log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        import os

        return f"uid {os.getuid()}"
