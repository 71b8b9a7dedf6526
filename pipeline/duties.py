"""What each job does. Part of the composition root: it chooses adapters, and connects what only jobs need."""

from functools import partial

from pipeline import keychange, rekey
from pipeline.adapters.disk import locked
from pipeline.backup.store import LOCK as BACKUP_LOCK
from pipeline.erasure import instance, recording
from pipeline.erasure.bench import Workbench
from pipeline.erasure.letgo import Hands
from pipeline.erasure.records import RecordsErasure
from pipeline.ids import InstanceId, KeyId
from pipeline.jobs import Handler, Progress
from pipeline.node import Node
from pipeline.records import sweepjob
from pipeline.records.keychange import VERB as RECORD_KEYS
from pipeline.records.keychange import RecordKeyChangeJob
from pipeline.records.rows import RecordEngine
from pipeline.records.sweeping import Sweeper
from pipeline.tenants import Tenant


def handlers(node: Node, hands: Hands, engine: RecordEngine, sweeper: Sweeper) -> dict[str, Handler]:
    """Give what each verb of a job does."""
    rekeying, bench = _rekey(node, hands), _bench(node, hands, engine)

    async def give_others_another_key(tenant: Tenant, key_id: KeyId, progress: Progress, reason: str) -> None:
        await rekeying.one(tenant, key_id, progress, reason=reason)

    return {
        keychange.VERB: keychange.KeyChangeJob(node.tenants, node.configure, node.clock),
        rekey.VERB: rekeying.job,
        RECORD_KEYS: RecordKeyChangeJob(node.shelves, engine, node.configure),
        sweepjob.VERB: sweepjob.SweepJob(sweeper),
        instance.VERB: instance.InstanceErasure(bench),
        recording.VERB: recording.RecordingErasure(bench, give_others_another_key, node.settings.store.journal_days),
    }


def _signed(node: Node, instance_id: InstanceId, text: str) -> str:
    """Sign a text as the instance's audit log signs its checkpoints."""
    return node.audit_keys.signer(str(instance_id)).note(text)


def _rekey(node: Node, hands: Hands) -> rekey.Rekey:
    return rekey.Rekey(
        store=hands.store,
        recorder=hands.recorder,
        journal=hands.journal,
        replay=hands.replay,
        tenants=node.tenants,
        files=node.files,
        commits=node.commits,
        trail=node.trail,
        wait_again=hands.dispatcher.add_all,
    )


def _bench(node: Node, hands: Hands, engine: RecordEngine) -> Workbench:
    return Workbench(
        root=node.root,
        config_dir=node.settings.config_dir,
        files=node.files,
        commits=node.commits,
        trail=node.trail,
        clock=node.clock,
        tenants=node.tenants,
        hands=hands,
        configure=node.configure,
        keys=node.reached_keys,
        alone=partial(locked, f"{node.root}/{BACKUP_LOCK}"),
        shelves=node.shelves,
        records=RecordsErasure(node.root, node.files, engine),
        sign=partial(_signed, node),
    )
