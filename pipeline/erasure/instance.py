"""`erase instance`: crypto-shredding. Everything of an instance becomes unreadable here, and then goes.

Each step is durable before the next, and is passed over when it is done already:

1. remembered in the configuration directory, with the reason; audited;
2. the instance's configuration is removed, and the service lets go of all that it has of it in memory;
3. what there is, is written down, for nobody could tell afterwards;
4. every wrapped data key is removed: from here on nothing can be opened, and no legal hold can call it back;
5. that it does not open is tried; the grants are retired;
6. artifacts, journal and all else are removed, receipts folded into their log;
7. the receipt is written and signed; audited.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from pipeline.backup.made import all_made
from pipeline.config import remove_instance
from pipeline.crypt.grants import GrantFolder, end_grant
from pipeline.crypt.keyring import KeyRing
from pipeline.erasure.bench import LeftError, Workbench, erased_lines
from pipeline.erasure.forbidden import refuse_for_instance
from pipeline.erasure.letgo import NoKeys, close_ring
from pipeline.erasure.places import KEPT, Places
from pipeline.erasure.progress import Erasure, Inventory
from pipeline.erasure.receipt import common, copies_in_backups, stamp, write_receipt
from pipeline.erasure.records import Scopes, scopes_of
from pipeline.errors import KeyUnavailableError, RefuseError, SegmentForgedError
from pipeline.ids import InstanceId, KeyId, RecordingId
from pipeline.instances import Instance, file_name, parse, render
from pipeline.interim.commit import Commit
from pipeline.interim.logs import LogLine
from pipeline.interim.states import ArtifactName, State
from pipeline.jobs import Ask, Progress
from pipeline.legalholds import load_legal_holds

VERB = "erase-instance"
METHOD = "cryptographic erase"
_AT_ONCE = 200
"""Artifacts that are removed by one commit."""
_NO_TIME = timedelta(0)


class InstanceErasure:
    """The job."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    async def __call__(self, ask: Ask, progress: Progress) -> Mapping[str, Any]:
        """See `jobs.Handler`."""
        with ExitStack() as stack:
            await self._bench.only_one(stack)
            erasure = await self._begun(ask)
            if erasure.ended_at is None:
                erasure = await self._erased(erasure, progress)
            return erasure.receipt

    # --- steps

    async def _begun(self, ask: Ask) -> Erasure:
        """Remember that it has begun, unless it has; refuse what must not begin."""
        bench = self._bench
        known = await anyio.to_thread.run_sync(bench.erasures.get, ask.job_id)
        if known is not None and known.keys_destroyed_at is not None:
            return known
        refuse_for_instance(load_legal_holds(bench.config_dir), ask.instance)
        if known is not None:
            return known
        forced = bool(ask.details.get("force"))
        places = self._places(ask.instance)
        held = [
            name for name in await anyio.to_thread.run_sync(_listed, places) if name.standing is not State.DELIVERED
        ]
        if held and not forced:
            raise RefuseError(f"{len(held)} undelivered recordings of it are held. Deliver them first, or give --force")
        tenant = bench.tenants.get(ask.instance)
        instance = None if tenant is None else tenant.instance
        erasure = Erasure(
            job_id=ask.job_id,
            what="instance",
            instance_id=ask.instance_id,
            alias=None if instance is None else instance.alias,
            account_id=None if instance is None else instance.account_id,
            reason=ask.reason,
            asked_by=ask.asked_by,
            asked_at=ask.asked_at,
            begun_at=bench.clock.now(),
            forced=forced,
            configuration=None if instance is None else render(instance),
        )
        details = {"jobId": str(ask.job_id), "askedBy": ask.asked_by, "reason": ask.reason, "undelivered": len(held)}
        await bench.record(
            bench.trail.changed(ask.instance, "InstanceErasureBegun", **details),
            bench.trail.on_node("InstanceErasureBegun", instanceId=str(ask.instance_id), **details),
        )
        await self._put(erasure)
        return erasure

    async def _erased(self, erasure: Erasure, progress: Progress) -> Erasure:
        instance_id = InstanceId(erasure.instance_id)
        places = self._places(instance_id)
        await self._let_go(instance_id)
        scopes = self._scopes(erasure)
        if erasure.inventory is None:
            inventory = await self._inventory(places, scopes)
            erasure = await self._put(msgspec.structs.replace(erasure, inventory=inventory))
        if erasure.keys_destroyed_at is None:
            refuse_for_instance(load_legal_holds(self._bench.config_dir), instance_id)
        await anyio.to_thread.run_sync(places.destroy_keys)
        await anyio.to_thread.run_sync(self._bench.records.destroy_keys, scopes)
        if erasure.keys_destroyed_at is None:
            now = self._bench.clock.now()
            erasure = await self._put(msgspec.structs.replace(erasure, keys_destroyed_at=now))
        await self._prove(erasure, places)
        grants = await self._retire_grants(erasure, places)
        await self._clear_artifacts(erasure, places, progress)
        await anyio.to_thread.run_sync(places.clear_others)
        await self._bench.records.remove(scopes)
        if left := [*await anyio.to_thread.run_sync(places.left), *await self._bench.records.left(scopes)]:
            raise LeftError(f"{len(left)} files of it are there still, as {left[0]}; it goes on")
        return await self._receipted(erasure, scopes, grants)

    async def _let_go(self, instance_id: InstanceId) -> None:
        """Let nothing of the instance come in, and nothing of it be known to the service."""
        bench = self._bench
        tenant, shelves = bench.tenants.get(instance_id), bench.shelves.of(instance_id)
        await anyio.to_thread.run_sync(remove_instance, bench.config_dir, instance_id)
        await bench.configure()
        if bench.tenants.get(instance_id) is not None:
            raise LeftError("its configuration is in force still; it goes on once it is not")
        if tenant is not None:
            await close_ring(tenant.ring)
        kept = {id(shelf.ring) for shelf in bench.shelves}
        for shelf in shelves.values():
            if shelf.ring is not None and id(shelf.ring) not in kept:
                await close_ring(shelf.ring)
        await bench.hands.let_instance_go(instance_id)

    async def _inventory(self, places: Places, scopes: Scopes) -> Inventory:
        found = await anyio.to_thread.run_sync(places.inventory)
        more = await anyio.to_thread.run_sync(self._bench.records.keys, scopes)
        rows = await self._bench.records.count(scopes)
        return msgspec.structs.replace(
            found, data_keys=(*found.data_keys, *more), counts=found.counts | {"records": rows}
        )

    async def _prove(self, erasure: Erasure, places: Places) -> None:
        """Try to open: a ring that is read anew must know none of the data keys."""
        inventory = erasure.inventory or Inventory()
        if erasure.configuration is None or not inventory.data_keys:
            return
        instance = _instance(erasure)
        ring = KeyRing(
            instance_id=instance.instance_id,
            context=instance.recordings_context,
            current_arn=instance.kms_key_arn,
            previous_arn=instance.previous_kms_key_arn,
            directory=places.key_folder,
            files=self._bench.files,
            service=NoKeys(),
            clock=self._bench.clock,
            cache=_NO_TIME,
            seal_grace=_NO_TIME,
            random=lambda: 0.5,
        )
        await ring.load()
        for key in inventory.data_keys:
            try:
                await ring.opening(KeyId(key.key_id))
            except SegmentForgedError:
                continue
            except KeyUnavailableError:
                pass
            raise LeftError(f"data key {key.key_id} has a file again; it is removed again")

    async def _retire_grants(self, erasure: Erasure, places: Places) -> dict[str, str]:
        """Give back the right to use the KMS keys. A refusal is noted and stops nothing: no data key is left."""
        bench, told = self._bench, dict[str, str]()
        folder = GrantFolder(bench.files, places.key_folder)
        records = await anyio.to_thread.run_sync(folder.read)
        if erasure.configuration is None:
            return dict.fromkeys(records, "left: no configuration tells how to reach the KMS key")
        instance = _instance(erasure)
        for arn in records:
            try:
                await end_grant(await bench.keys(instance, arn), folder, arn)
            except (KeyUnavailableError, RefuseError) as error:
                told[arn] = f"not retired: {error}"
            else:
                told[arn] = "retired"
        return told

    async def _clear_artifacts(self, erasure: Erasure, places: Places, progress: Progress) -> None:
        """Remove media, told as ERASED; receipts go into their log."""
        names = await anyio.to_thread.run_sync(_listed, places)
        for at in range(0, len(names), _AT_ONCE):
            await progress(at, len(names))
            media = []
            for name in names[at : at + _AT_ONCE]:
                if name.standing is State.DELIVERED:
                    await self._fold(name)
                else:
                    media.append(name)
            await self._remove(erasure, media)

    async def _fold(self, name: ArtifactName) -> None:
        store = self._bench.hands.store
        raw = await anyio.to_thread.run_sync(store.receipt, name)
        log = f"{self._bench.root}/receipts/{name.instance_id}/{self._bench.clock.now().date()}.jsonl"
        await store.fold({name: raw}, log)

    async def _remove(self, erasure: Erasure, names: list[ArtifactName]) -> None:
        """As `InterimStore.drop`, many at once."""
        lines: list[LogLine] = []
        renames: list[tuple[str, str]] = []
        for name in names:
            lines += erased_lines(self._bench.trail, _known(erasure), name, "unknown", RecordingId(name.artifact_id))
            path = self._bench.hands.store.path(name)
            renames.append((path, f"{path}.tmp"))
        unlinks = tuple(gone for _, gone in renames)
        await self._bench.commits.commit(Commit(lines=tuple(lines), renames=tuple(renames), unlinks=unlinks))

    async def _receipted(self, erasure: Erasure, scopes: Scopes, grants: Mapping[str, str]) -> Erasure:
        bench, now = self._bench, self._bench.clock.now()
        inventory = erasure.inventory or Inventory()
        instance_id = InstanceId(erasure.instance_id)
        made = await anyio.to_thread.run_sync(all_made, bench.config_dir)
        key_files = f"store/keys/{instance_id}/"
        backups = await anyio.to_thread.run_sync(
            copies_in_backups, bench.files, made, lambda path: path.startswith(key_files)
        )
        receipt = common(erasure, method=METHOD, ended_at=now) | {
            "what": "everything held here of one instance",
            "cipher": "AES-256-GCM (Cobblestone-256); nothing of it was ever stored in clear here",
            "dataKeys": [
                {"keyId": str(key.key_id), "createdAt": stamp(key.created_at), "kmsKeyArns": list(key.kms_key_arns)}
                for key in inventory.data_keys
            ],
            "keysDestroyedAt": stamp(erasure.keys_destroyed_at),
            "counts": inventory.counts,
            "undelivered": sum(inventory.counts.get(state, 0) for state in ("open", "sealed", "poison")),
            "forced": erasure.forced,
            "cleared": ["keys", "artifacts", "journal", "missing", "holds", "lost+found", "records", "configuration"],
            "grants": dict(grants),
            "sharedWithOthers": list(scopes.shared),
            "kept": [{"place": place, "holds": what} for place, what in KEPT],
            "copies": [*_objects(inventory), *backups],
            "verification": {
                "by": f"the recording pipeline itself, asked by {erasure.asked_by}",
                "how": "the key ring, read anew, knows none of the data keys; nothing is left in the places cleared",
                "at": stamp(now),
            },
        }
        written = await anyio.to_thread.run_sync(write_receipt, bench.files, bench.root, erasure, receipt, bench.sign)
        outcome = receipt | {"receipt": written.path, "receiptSha256": written.sha256}
        details = {"jobId": str(erasure.job_id), "receiptSha256": written.sha256, "dataKeys": len(inventory.data_keys)}
        await bench.record(
            bench.trail.changed(instance_id, "InstanceErased", **details),
            bench.trail.on_node("InstanceErased", instanceId=str(instance_id), **details),
        )
        return await self._put(msgspec.structs.replace(erasure, ended_at=now, receipt=outcome, configuration=None))

    # --- inside

    def _scopes(self, erasure: Erasure) -> Scopes:
        """Tell which other classes' data are this instance's alone."""
        known = _known(erasure)
        return Scopes((), (), ()) if known is None else scopes_of(known, self._bench.tenants.instances())

    def _places(self, instance: InstanceId) -> Places:
        return Places(self._bench.root, self._bench.files, instance)

    async def _put(self, erasure: Erasure) -> Erasure:
        await anyio.to_thread.run_sync(self._bench.erasures.put, erasure)
        return erasure


def _listed(places: Places) -> list[ArtifactName]:
    return sorted(places.artifacts(), key=lambda name: (name.artifact_id, name.standing is State.DELIVERED))


def _known(erasure: Erasure) -> Instance | None:
    return None if erasure.configuration is None else _instance(erasure)


def _instance(erasure: Erasure) -> Instance:
    assert erasure.configuration is not None
    return parse(erasure.configuration, name=file_name(InstanceId(erasure.instance_id)))


def _objects(inventory: Inventory) -> list[dict[str, Any]]:
    return [
        {
            "place": bucket,
            "holds": f"{count} delivered objects, by their receipts here, encrypted under the bucket's own KMS key",
            "until": "their owner removes them, every version of them",
        }
        for bucket, count in sorted(inventory.buckets.items())
    ]
