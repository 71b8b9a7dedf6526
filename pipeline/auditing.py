"""The audit logs' keeper, connected to a node. Part of the composition root."""

from pipeline.audit.keeper import AuditKeeper
from pipeline.audit.signing import Signed
from pipeline.interim.commit import Commit
from pipeline.node import Node
from pipeline.trail import NODE


def kept_audit(node: Node) -> AuditKeeper:
    """Make the keeper of a node's audit logs. Each checkpoint of an instance's is recorded in the node's."""

    async def told(name: str, signed: Signed) -> None:
        checkpoint = signed.checkpoint
        facts = {"log": name, "number": signed.number, "size": checkpoint.size, "root": checkpoint.root.hex()}
        await node.commits.commit(Commit(lines=(node.trail.on_node("CheckpointSigned", **facts),)))

    return AuditKeeper(
        f"{node.root}/audit",
        files=node.files,
        keys=node.audit_keys,
        told=told,
        instances=node.tenants.instances,
        destinations=node.destination,
        clock=node.clock,
        settings=node.settings.audit,
        node=NODE,
    )
