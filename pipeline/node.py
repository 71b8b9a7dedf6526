"""What all parts of the service share, and what depends on the configuration: keys, buckets, the clients to reach them.

Part of the composition root: it chooses adapters.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from pipeline import config
from pipeline.adapters.aws import Service as Api
from pipeline.adapters.aws import open_client
from pipeline.adapters.clock import SystemClock
from pipeline.adapters.disk import Disk
from pipeline.adapters.kms import AwsKeyService
from pipeline.adapters.s3 import S3Destination
from pipeline.adapters.sts import Role, RoleSession, own_principal
from pipeline.audit.records import Actor
from pipeline.audit.signing import SigningKeys
from pipeline.configtrail import ConfigurationTrail
from pipeline.crypt.duty import KEY_LIFE
from pipeline.crypt.grants import GrantedKeys, GrantFolder, make_grant
from pipeline.crypt.keyring import KeyRing
from pipeline.crypt.pace import Pace, PacedKeys
from pipeline.delivery.probe import ProbeAnswer
from pipeline.errors import DeferError, PipelineError, RefuseError
from pipeline.ids import InstanceId, Kind
from pipeline.instances import Instance, KeyAccess, Storage
from pipeline.interim.commit import Commit, GroupCommit
from pipeline.interim.logs import Rotation
from pipeline.interim.volume import Volume
from pipeline.keyports import GeneratedKey, KeyDescription, KeyService, KmsCall
from pipeline.policies import session_policy
from pipeline.records.grants import folder_of, terms_of
from pipeline.records.scopes import Placed
from pipeline.records.shelves import RingKeys, ServiceKey, Shelves
from pipeline.settings import Settings
from pipeline.tenants import Tenant, Tenants, is_followed
from pipeline.trail import Trail

log = structlog.get_logger()

SERVICE = Actor("Service", "pipeline")


class Clients:
    """AWS clients, one per API and Region, opened when first needed and closed together."""

    def __init__(self, stack: AsyncExitStack, settings: Settings) -> None:
        self._stack = stack
        self._endpoints = {
            "kms": settings.kms,
            "s3": settings.s3,
            "sqs": settings.sqs,
            "events": settings.events,
            "sts": settings.sts or settings.kms,
        }
        self._open: dict[tuple[str, str, Role | None], Any] = {}
        self._sessions: dict[Role, RoleSession] = {}

    async def get(self, service: Api, region: str | None = None, role: Role | None = None) -> Any:
        """Give the client of an API. A configured URL serves every Region; AWS itself has one for each.

        With a role the client signs with a session of that role, and no other client does.
        """
        endpoint = self._endpoints[service]
        if endpoint.url is None and region is not None:
            endpoint = replace(endpoint, region=region)
        key = service, endpoint.region, role
        if key not in self._open:
            source = None if role is None else await self._session(role)
            self._open[key] = await self._stack.enter_async_context(open_client(service, endpoint, source=source))
        return self._open[key]

    async def _session(self, role: Role) -> RoleSession:
        if role not in self._sessions:
            self._sessions[role] = RoleSession(await self.get("sts"), role)
        return self._sessions[role]


def role_of(instance: Instance, settings: Settings) -> Role | None:
    """Tell which role is taken on for an instance; None: the service is itself.

    Raises:
        RefuseError: what a session of it may do can't be said to STS.

    """
    if instance.role_arn is None:
        return None
    canary = settings.canary.instance in {instance.alias, str(instance.instance_id)}
    return Role(
        arn=instance.role_arn,
        external_id=instance.external_id,
        session_name=f"pipeline-{instance.instance_id.hex}",
        policy=session_policy(instance, canary=canary),
    )


class FollowingKeys:
    """`KeyService` by the client that is for a KMS key now: a ring outlives the role and the Regions it began with."""

    def __init__(self, keys: Callable[[str], KeyService]) -> None:
        self._keys = keys

    async def generate_data_key(
        self, key_arn: str, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> GeneratedKey:
        """See `KeyService`."""
        return await self._keys(key_arn).generate_data_key(key_arn, context, tokens)

    async def decrypt(
        self, key_arn: str, wrapped: bytes, context: Mapping[str, str], tokens: Sequence[str] = ()
    ) -> bytes:
        """See `KeyService`."""
        return await self._keys(key_arn).decrypt(key_arn, wrapped, context, tokens)

    async def re_encrypt(
        self,
        source_arn: str,
        target_arn: str,
        wrapped: bytes,
        context: Mapping[str, str],
        tokens: Sequence[str] = (),
    ) -> bytes:
        """See `KeyService`."""
        return await self._keys(target_arn).re_encrypt(source_arn, target_arn, wrapped, context, tokens)

    async def describe(self, key_arn: str, tokens: Sequence[str] = ()) -> KeyDescription:
        """See `KeyService`."""
        return await self._keys(key_arn).describe(key_arn, tokens)


class Node:
    """What all parts share, and the parts that depend on the configuration."""

    def __init__(self, settings: Settings, clients: Clients) -> None:
        self.settings = settings
        self.clients = clients
        self.clock = SystemClock()
        self.root = str(settings.state_dir)
        self.volume = Volume(self.root, Disk(), self.clock, ballast_bytes=settings.store.free_bytes)
        self.files = self.volume.files
        self.audit_keys = SigningKeys(settings.config_dir)
        self.commits = GroupCommit(
            self.volume.reserved,
            volume=self.root,
            rotation=Rotation(f"{self.root}/events", settings.events_out.file_bytes),
            least=self.audit_keys.least,
        )
        self.trail = Trail(self.root, actor=SERVICE, clock=self.clock)
        self.told = ConfigurationTrail(
            f"{self.root}/audit/configuration.json", files=self.files, commits=self.commits, trail=self.trail
        )
        self.tells = False
        """Whether changes of the configuration are recorded: as soon as commits are served."""
        self.tenants = Tenants(self._ring)
        self.shelves = Shelves(self._shelf_ring, self._shelf_grant)
        self.refused_files = 0
        """Instance files that could not be used when they were last read."""
        self._there: set[str] | None = None
        """Ids of the instances that have a file, served or not, when those were last read; None: nobody could tell."""
        self._configuring = anyio.Lock()
        self._key_clients: dict[tuple[InstanceId | None, str], Any] = {}
        """By whose keys they are, and Region; None: the service's own."""
        self._service_keys: set[str] = set()
        self._paces: dict[tuple[str, str], Pace] = {}
        self._bucket_clients: dict[InstanceId, Any] = {}
        self._heads: dict[tuple[InstanceId, Kind], bool] = {}

    async def configure(self) -> None:
        """Read the instance files. One that is bad, or whose keys can't be read, leaves what was in force before."""
        async with self._configuring:
            await self._configure()

    async def _configure(self) -> None:
        loaded = await anyio.to_thread.run_sync(config.load_instances, self.settings.config_dir)
        for path, problem in loaded.problems.items():
            log.error("config.refused", file=path.name, field=problem.field, detail=str(problem))
        before = {tenant.instance.instance_id: tenant for tenant in self.tenants}
        if before and not loaded.is_there:
            log.error("config.gone", detail="there is no directory of instances; those that were served still are")
            return
        prepared = {each: instance for each, instance in loaded.instances.items() if await self._prepared(instance)}
        bad = {path.stem for path in loaded.problems} | {str(each) for each in loaded.instances.keys() - prepared}
        serve = {each: tenant for each, tenant in before.items() if str(each) in bad}
        unusable = len(loaded.instances) - len(prepared)
        for instance_id, tenant in self.tenants.made(prepared).items():
            known = before.get(instance_id)
            if await self._has_keys(tenant, known):
                serve[instance_id] = tenant
            elif known is not None:
                serve[instance_id] = known
            unusable += instance_id not in serve or serve[instance_id] is known
        unusable += await self._take_back_untold(serve, before, bad | {str(each) for each in loaded.instances})
        self.refused_files = len(loaded.problems) + unusable
        self._there = bad | {str(each) for each in loaded.instances} if loaded.is_there else None
        self.tenants.adopt(serve)
        await self._adopt_shelves()
        log.info("config.loaded", instances=len(serve), refused=self.refused_files)

    async def begin_telling(self) -> None:
        """Record the settings, and from now on every change of an instance before it counts."""
        self.tells = True
        try:
            await self.told.tell_settings(self.settings)
        except DeferError as error:
            log.error("config.not_recorded", instance=None, reason=error.reason)  # noqa: TRY400 - words say enough

    async def _take_back_untold(
        self, serve: dict[InstanceId, Tenant], before: Mapping[InstanceId, Tenant], there: set[str]
    ) -> int:
        """Record what changes; an instance whose change can't be recorded stays as it was. Tell how many those are.

        `there` are the ids of all that have a file, served or not.
        """
        if not self.tells:
            return 0
        untold = await self.told.tell_instances([tenant.instance for tenant in serve.values()], there)
        for instance_id in untold & before.keys():
            serve[instance_id] = before[instance_id]
        return len(untold)

    def destination(self, instance: Instance, storage: Storage) -> S3Destination:
        """Give a bucket as its storage configuration names it."""
        return S3Destination(self._bucket_clients[instance.instance_id], storage)

    def keys(self, instance: Instance, key_arn: str) -> AwsKeyService:
        """Give the key service for a KMS key, each call told to the instance's audit trail."""
        whose = None if key_arn in self._service_keys else instance.instance_id
        return AwsKeyService(self._key_clients[whose, _region_of(key_arn)], partial(self._tell, instance))

    async def reached_keys(self, instance: Instance, key_arn: str) -> AwsKeyService:
        """Give the same for an instance that is not configured any more."""
        client = await self.clients.get("kms", _region_of(key_arn), role_of(instance, self.settings))
        return AwsKeyService(client, partial(self._tell, instance))

    def is_gone(self, instance: InstanceId) -> bool:
        """Tell whether an instance was removed: it has no file any more, not even a bad one."""
        return self._there is not None and str(instance) not in self._there

    def quota_of(self, instance: InstanceId) -> int | None:
        """Tell how many undelivered bytes an instance may hold."""
        tenant = self.tenants.get(instance)
        return None if tenant is None else tenant.instance.limits.held_bytes

    def head_allowed(self, instance: InstanceId, kind: Kind) -> bool:
        """Tell what the destination's probe found; without one it is tried."""
        return self._heads.get((instance, kind), True)

    # --- inside

    async def _has_keys(self, tenant: Tenant, known: Tenant | None) -> bool:
        """Read a ring's files, if it is new or its KMS keys are others now.

        Without them everything held would look as if its data key were lost.
        """
        if known is not None and known.ring is tenant.ring and is_followed(tenant):
            return True
        try:
            await tenant.ring.follow(tenant.instance.kms_key_arn, tenant.instance.previous_kms_key_arn)
        except PipelineError as error:
            instance = str(tenant.instance.instance_id)
            log.error(  # noqa: TRY400 - what happened is told; where is of no use
                "config.keys_unreadable", instance=instance, reason=error.reason, detail=str(error)
            )
            return False
        return True

    async def _adopt_shelves(self) -> None:
        """Serve the other classes of data of the instances that are served."""
        given = self.settings.records
        made = await anyio.to_thread.run_sync(config.load_service_key, self.settings.config_dir)
        service = ServiceKey(given.service_key_arn or made, given.previous_service_key_arn)
        self._service_keys = {arn for arn in (service.current, service.previous) if arn is not None}
        for arn in self._service_keys:
            self._key_clients[None, _region_of(arn)] = await self.clients.get("kms", _region_of(arn))
        self.shelves.adopt(self.tenants.instances(), service)

    async def _prepared(self, instance: Instance) -> bool:
        """Have the clients for an instance; False if its file says what can't be."""
        try:
            await self._prepare(instance)
        except RefuseError as error:
            name = str(instance.instance_id)
            log.error("config.refused", file=name, field=error.field, detail=str(error))  # noqa: TRY400 - no bug of ours
            return False
        return True

    async def _prepare(self, instance: Instance) -> None:
        instance_id = instance.instance_id
        arns = [
            instance.kms_key_arn,
            instance.previous_kms_key_arn,
            *(each.kms_key_arn for each in instance.storage.values()),
            *(arn for each in instance.records for arn in (each.kms_key_arn, each.previous_kms_key_arn)),
        ]
        role = role_of(instance, self.settings)
        for region in {_region_of(arn) for arn in arns if arn is not None}:
            self._key_clients[instance_id, region] = await self.clients.get("kms", region, role)
        self._bucket_clients[instance_id] = await self.clients.get("s3", instance.region, role)
        for kind in instance.storage:
            raw = config.load_probe(self.settings.config_dir, instance_id, kind)
            if raw is None:
                continue
            try:
                self._heads[instance_id, kind] = msgspec.json.decode(raw, type=ProbeAnswer).head
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                log.warning("config.probe_unreadable", instance=str(instance_id), kind=kind)

    def _paced(self, instance: Instance) -> PacedKeys:
        return PacedKeys(FollowingKeys(partial(self.keys, instance)), self._pace_of)

    def _pace_of(self, key_arn: str) -> Pace:
        """Give the pace of an account's calls in a Region: it has one quota for all of them."""
        region, account = key_arn.split(":")[3:5]
        return self._paces.setdefault((region, account), Pace(self.clock))

    def _ring(self, instance: Instance) -> KeyRing:
        directory = f"{self.root}/keys/{instance.instance_id}"
        service = self._paced(instance)
        return KeyRing(
            instance_id=instance.instance_id,
            context=instance.recordings_context,
            current_arn=instance.kms_key_arn,
            previous_arn=instance.previous_kms_key_arn,
            directory=directory,
            files=self.files,
            service=GrantedKeys(service, GrantFolder(self.files, directory), self.clock),
            clock=self.clock,
            cache=self.settings.keys.cache,
            seal_grace=self.settings.keys.seal_grace,
            random=random.random,
        )

    def _shelf_ring(self, instance: Instance, place: Placed, keys: RingKeys) -> KeyRing:
        scope = place.scope
        return KeyRing(
            instance_id=scope.owner,
            data_class=scope.policy.data_class,
            context=scope.context,
            current_arn=keys.current,
            previous_arn=keys.previous,
            directory=f"{self.root}/{scope.directory}",
            files=self.files,
            service=GrantedKeys(self._paced(instance), folder_of(self.files, self.root, scope), self.clock),
            clock=self.clock,
            cache=self.settings.keys.cache,
            seal_grace=timedelta(0),
            random=random.random,
            life=scope.policy.data_key_life or KEY_LIFE,
        )

    async def _shelf_grant(self, instance: Instance, place: Placed, keys: RingKeys) -> None:
        """Have a grant on a customer's KMS key for this scope and class, where keys are used by grant."""
        scope = place.scope
        if instance.key_access is not KeyAccess.GRANT or not keys.is_customers or not scope.policy.grant_operations:
            return
        folder = folder_of(self.files, self.root, scope)
        if keys.current in await anyio.to_thread.run_sync(folder.read):
            return
        grantee = instance.role_arn or self.settings.principal_arn or await own_principal(await self.clients.get("sts"))
        wanted = terms_of(scope, grantee)
        await make_grant(self.keys(instance, keys.current), folder, self.clock, keys.current, wanted)

    async def _tell(self, instance: Instance, call: KmsCall) -> None:
        await self.commits.commit(Commit(lines=(self.trail.key_use(instance, call),)))


def _region_of(key_arn: str) -> str:
    return key_arn.split(":")[3]
