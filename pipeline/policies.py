"""The policies that an instance needs, least privilege, ready to be put in place. Pure.

Statements for a KMS key's own policy, to be added beside those of its administrators; and whole documents for IAM. A
statement names its principals, actions and resources in full: `*` stands at the end of an object's prefix only. The use
of a KMS key for data keys is bound to the encryption context of one instance, that of a bucket's to S3 and that bucket.
Delivery rights are in the key's policy, because S3 takes no grant token.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline.crypt.grants import OPERATIONS
from pipeline.errors import RefuseError
from pipeline.ids import RECORDINGS
from pipeline.instances import Instance, KeyAccess, Storage
from pipeline.records.scopes import Placed

Statement = dict[str, Any]

USES = ("kms:Decrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo")
DELIVERY_USES = ("kms:Decrypt", "kms:GenerateDataKey")
"""GenerateDataKey for every object; Decrypt for the parts of a multipart upload, and to read what was delivered."""
ANEW_USES = ("kms:Encrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo")
"""What S3's UpdateObjectEncryption needs besides: for `pipeline keys reencrypt` alone."""
FORMER_USES = ("kms:Decrypt", "kms:ReEncryptFrom")
"""Of a key that a bucket's objects were encrypted under before: to read them, and to encrypt them anew."""
_GRANT_LOOKS = ("kms:DescribeKey", "kms:ListGrants")
_OBJECT_ACTIONS = ("s3:AbortMultipartUpload", "s3:GetObject", "s3:GetObjectVersion", "s3:PutObject")
_ANEW_ACTIONS = ("s3:UpdateObjectEncryption",)
_BUCKET_ACTIONS = ("s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:ListBucketVersions")
_VERSION = "2012-10-17"
SESSION_POLICY_CHARACTERS = 2048
"""AWS STS API reference, AssumeRole: `Policy`."""
_SESSION_KMS = (
    *USES,
    "kms:Encrypt",
    "kms:CreateGrant",
    "kms:DescribeKey",
    "kms:ListGrants",
    "kms:RetireGrant",
    "kms:RevokeGrant",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One policy, and where it belongs."""

    name: str
    belongs_to: str
    """ARN of the KMS key or of the role that it is attached to."""
    kind: str
    """`key-policy-statements`, `iam-policy` or `trust-policy`."""
    statements: Sequence[Statement]

    def document(self) -> dict[str, Any]:
        """Write it as IAM reads it."""
        return {"Version": _VERSION, "Statement": list(self.statements)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What the service uses besides the instances' keys and buckets."""

    queues_in: Sequence[str] = ()
    """URLs of queues that events arrive on."""
    queue_out: str | None = None
    bus: str | None = None
    region: str = ""
    canary: bool = False
    """Whether this instance's bucket takes the canary, too."""


def documents(instance: Instance, service: str, beside: Beside) -> list[Document]:
    """Write every policy that one instance needs; `service` is the role (or user) that the service is.

    Where a role is taken on for the instance, keys and buckets are that one's, and the service may take it on.
    """
    principal = instance.role_arn or service
    made = [_key_statements(instance, principal, arn) for arn in _data_keys(instance)]
    made += [
        Document(
            name="delivery-key",
            belongs_to=arn,
            kind="key-policy-statements",
            statements=delivery_statements(principal, instance, arn),
        )
        for arn in _delivery_keys(instance)
    ]
    made += [
        Document(
            name="former-bucket-key",
            belongs_to=arn,
            kind="key-policy-statements",
            statements=[former_statement(principal, instance, arn)],
        )
        for arn in _former_keys(instance)
    ]
    made += [
        Document(
            name="record-key",
            belongs_to=arn,
            kind="key-policy-statements",
            statements=record_statements(principal, instance, arn),
        )
        for arn in _record_keys(instance)
        if _places_under(instance, arn)
    ]
    statements = [
        *(_without_principal(each) for document in made for each in document.statements),
        *_bucket_statements(instance, canary=beside.canary),
    ]
    own = _event_statements(instance, beside)
    if instance.role_arn is None:
        return [*made, _iam("service-role", service, [*statements, *own])]
    made.append(_iam("instance-role", instance.role_arn, statements))
    made.append(_iam("service-role", service, [_assuming(instance, None), *own]))
    trust = _assuming(instance, service)
    made.append(Document(name="trust", belongs_to=instance.role_arn, kind="trust-policy", statements=[trust]))
    return made


def session_policy(instance: Instance, *, canary: bool) -> str:
    """Write what a session of the instance's role may do at most: use this instance's keys and buckets.

    It narrows what the role may, so it names actions and resources, and leaves conditions to the role's own policy.

    Raises:
        RefuseError: it is longer than STS takes.

    """
    keys = sorted({*_data_keys(instance), *_delivery_keys(instance), *_former_keys(instance), *_record_keys(instance)})
    statements: list[Statement] = [{"Effect": "Allow", "Action": list(_SESSION_KMS), "Resource": keys}]
    for bucket, stores in sorted(_by_bucket(instance).items()):
        arn = _bucket_arn(instance.kms_key_arn, bucket)
        written = [f"{arn}/{prefix}/*" for prefix in _prefixes(instance, bucket, stores, canary=canary)]
        for actions, resources in (
            ((*_OBJECT_ACTIONS, *_ANEW_ACTIONS), written),
            (_BUCKET_ACTIONS, [arn]),
            (("s3:DeleteObject",), [f"{arn}/*/pipeline-probe-*"]),
        ):
            statements.append({"Effect": "Allow", "Action": list(actions), "Resource": resources})
    text = json.dumps({"Version": _VERSION, "Statement": statements}, separators=(",", ":"))
    if len(text) > SESSION_POLICY_CHARACTERS:
        message = f"its session policy would have more than {SESSION_POLICY_CHARACTERS} characters, which STS refuses"
        raise RefuseError(f"{message}; use fewer or shorter prefixes", field="storage")
    return text


def _assuming(instance: Instance, principal: str | None) -> Statement:
    conditions = {} if instance.external_id is None else {"StringEquals": {"sts:ExternalId": instance.external_id}}
    statement = _allow("TakeOnRole", principal, ("sts:AssumeRole",), [instance.role_arn or ""], conditions)
    return statement if principal is None else {name: statement[name] for name in statement if name != "Resource"}


def granting_statements(
    principal: str, account: str, key_arn: str, context: Mapping[str, str], *, suffix: str = ""
) -> list[Statement]:
    """Let the service look at a key, and grant itself its use."""
    return [
        _asking(principal, account, key_arn, _GRANT_LOOKS, suffix),
        _granting(principal, key_arn, context, OPERATIONS, f"DataKeysByGrant{suffix}"),
    ]


def use_statements(
    principal: str, account: str, key_arn: str, context: Mapping[str, str], *, suffix: str = ""
) -> list[Statement]:
    """Let the service look at a key, and use it by its policy alone."""
    return [
        _asking(principal, account, key_arn, ("kms:DescribeKey",), suffix),
        _using(principal, key_arn, context, OPERATIONS, f"DataKeys{suffix}"),
    ]


def _granting(
    principal: str, key_arn: str, context: Mapping[str, str], operations: Collection[str], sid: str
) -> Statement:
    """Allow one grant: of these operations at most, to this principal, for this encryption context and no other."""
    conditions = {
        "StringEquals": {
            "kms:GranteePrincipal": principal,
            "kms:RetiringPrincipal": principal,
            "kms:GrantConstraintType": "EncryptionContextEquals",
            **_bound(context),
        },
        "ForAllValues:StringEquals": {"kms:GrantOperations": sorted(operations), **_no_more(context)},
    }
    return _allow(sid, principal, ("kms:CreateGrant",), [key_arn], conditions)


def _using(
    principal: str, key_arn: str, context: Mapping[str, str], operations: Collection[str], sid: str
) -> Statement:
    """Allow the use of a key, for this encryption context and no other."""
    conditions = {"StringEquals": _bound(context), "ForAllValues:StringEquals": _no_more(context)}
    uses = [each for each in USES if each.removeprefix("kms:") in operations]
    return _allow(sid, principal, uses, [key_arn], conditions)


def record_statements(principal: str, instance: Instance, key_arn: str) -> list[Statement]:
    """Let the service use a customer's key for records: for each class and scope that has it, its own context."""
    by_grant, suffix = instance.key_access is KeyAccess.GRANT, _suffix(key_arn)
    looks = _GRANT_LOOKS if by_grant else ("kms:DescribeKey",)
    statements = [_asking(principal, _account(principal), key_arn, looks, f"Records{suffix}")]
    make = _granting if by_grant else _using
    for number, place in enumerate(_places_under(instance, key_arn), 1):
        scope = place.scope
        operations = scope.policy.grant_operations
        sid = f"Records{suffix}{number}"
        statements.append(make(principal, key_arn, scope.context, operations, sid))
    return statements


def delivery_statements(principal: str, instance: Instance, key_arn: str) -> list[Statement]:
    """Let the service write and read objects under a bucket's key, by S3 only and in that bucket only."""
    buckets = {each.bucket for each in instance.storage.values() if each.kms_key_arn == key_arn}
    suffix, conditions = _suffix(key_arn), _by_s3(principal, instance, key_arn, buckets)
    return [
        _asking(principal, _account(principal), key_arn, ("kms:DescribeKey",), f"Delivery{suffix}"),
        _allow(f"Delivery{suffix}", principal, DELIVERY_USES, [key_arn], conditions),
        _allow(f"EncryptAnew{suffix}", principal, ANEW_USES, [key_arn], conditions),
    ]


def former_statement(principal: str, instance: Instance, key_arn: str) -> Statement:
    """Let the service read objects under a key that was a bucket's before, and encrypt them anew, by S3 only."""
    conditions = _by_s3(principal, instance, key_arn, {each.bucket for each in instance.storage.values()})
    return _allow(f"Former{_suffix(key_arn)}", principal, FORMER_USES, [key_arn], conditions)


# --- inside


def _by_s3(principal: str, instance: Instance, key_arn: str, buckets: Collection[str]) -> dict[str, Any]:
    return {
        "StringEquals": {
            "kms:CallerAccount": _account(principal),
            "kms:ViaService": f"s3.{instance.region}.{_domain(key_arn)}",
            # With a Bucket Key, which every object of ours has, S3 names the bucket.
            "kms:EncryptionContext:aws:s3:arn": [_bucket_arn(key_arn, bucket) for bucket in sorted(buckets)],
        }
    }


def _key_statements(instance: Instance, principal: str, key_arn: str) -> Document:
    make = granting_statements if instance.key_access is KeyAccess.GRANT else use_statements
    statements = make(principal, _account(principal), key_arn, instance.recordings_context, suffix=_suffix(key_arn))
    return Document(name="data-key", belongs_to=key_arn, kind="key-policy-statements", statements=statements)


def _bucket_statements(instance: Instance, *, canary: bool) -> list[Statement]:
    """Say what is asked of the buckets: writes that create, proofs, reading back, and the remains of uploads."""
    statements: list[Statement] = []
    for number, (bucket, stores) in enumerate(sorted(_by_bucket(instance).items()), 1):
        arn = _bucket_arn(instance.kms_key_arn, bucket)
        own = sorted({each.prefix for each in stores})
        owner = {"StringEquals": {"aws:ResourceAccount": stores[0].bucket_owner}}
        written = [f"{arn}/{prefix}/*" for prefix in _prefixes(instance, bucket, stores, canary=canary)]
        probes = [f"{arn}/{prefix}/pipeline-probe-*" for prefix in own]
        statements += [
            _allow(f"Objects{number}", None, _OBJECT_ACTIONS, written, owner),
            _allow(f"Anew{number}", None, _ANEW_ACTIONS, written, owner),
            # Without ListBucket S3 answers 403 instead of 404 for an object that is not there yet.
            _allow(f"Bucket{number}", None, _BUCKET_ACTIONS, [arn], owner),
            _allow(f"Probes{number}", None, ("s3:DeleteObject",), probes, owner),
        ]
    return statements


def _prefixes(instance: Instance, bucket: str, stores: Sequence[Storage], *, canary: bool) -> list[str]:
    """List the prefixes that are written to in a bucket: of recordings, the canary, the audit log's proofs."""
    found = {each.prefix for each in stores} | ({"canary"} if canary else set())
    return sorted(found | ({f"audit/{instance.instance_id}"} if bucket == _audit_bucket(instance) else set()))


def _audit_bucket(instance: Instance) -> str | None:
    """Name the bucket that takes the audit log's checkpoints, digests and files: that of the first kind."""
    return next((instance.storage[kind].bucket for kind in RECORDINGS if kind in instance.storage), None)


def _event_statements(instance: Instance, beside: Beside) -> list[Statement]:
    statements = []
    if beside.queues_in:
        arns = [_queue_arn(instance.kms_key_arn, url, beside.region) for url in beside.queues_in]
        actions = ("sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:ReceiveMessage")
        statements.append(_allow("EventsIn", None, actions, arns, {}))
    if beside.queue_out is not None:
        arn = _queue_arn(instance.kms_key_arn, beside.queue_out, beside.region)
        statements.append(_allow("EventsOut", None, ("sqs:SendMessage",), [arn], {}))
    if beside.bus is not None:
        statements.append(
            _allow("EventBus", None, ("events:PutEvents",), [_bus_arn(instance, beside.bus, beside.region)], {})
        )
    return statements


def _allow(
    sid: str, principal: str | None, actions: Sequence[str], resources: Sequence[str], conditions: Mapping[str, Any]
) -> Statement:
    statement: Statement = {"Sid": sid, "Effect": "Allow"}
    if principal is not None:
        statement["Principal"] = {"AWS": principal}
    statement |= {"Action": list(actions), "Resource": resources[0] if len(resources) == 1 else list(resources)}
    return statement | ({"Condition": dict(conditions)} if conditions else {})


def _asking(principal: str, account: str, key_arn: str, actions: Sequence[str], suffix: str) -> Statement:
    """Allow what looks at a key and uses no key material: such calls carry no encryption context."""
    return _allow(f"Asking{suffix}", principal, actions, [key_arn], {"StringEquals": {"kms:CallerAccount": account}})


def _without_principal(statement: Statement) -> Statement:
    return {name: value for name, value in statement.items() if name != "Principal"}


def _iam(name: str, role: str, statements: Sequence[Statement]) -> Document:
    return Document(name=name, belongs_to=role, kind="iam-policy", statements=statements)


def _bound(context: Mapping[str, str]) -> dict[str, str]:
    return {f"kms:EncryptionContext:{name}": value for name, value in context.items()}


def _no_more(context: Mapping[str, str]) -> dict[str, list[str]]:
    return {"kms:EncryptionContextKeys": sorted(context)}


def _data_keys(instance: Instance) -> list[str]:
    arns = (instance.kms_key_arn, instance.previous_kms_key_arn)
    return [arn for arn in arns if arn is not None]


def _record_keys(instance: Instance) -> list[str]:
    arns = {arn for each in instance.records for arn in (each.kms_key_arn, each.previous_kms_key_arn)}
    return sorted(arn for arn in arns if arn is not None)


def _places_under(instance: Instance, key_arn: str) -> list[Placed]:
    """List the scopes of records that are sealed under a customer's key."""
    places = (place for _, place in sorted(instance.places.items()))
    return [
        place
        for place in places
        if key_arn in {place.kms_key_arn, place.previous_kms_key_arn} and place.scope.policy.grant_operations
    ]


def _delivery_keys(instance: Instance) -> list[str]:
    return sorted({storage.kms_key_arn for storage in instance.storage.values()})


def _former_keys(instance: Instance) -> list[str]:
    """List the keys that are a bucket's no more, and that what it holds may need."""
    return sorted(set(instance.former_bucket_key_arns) - set(_delivery_keys(instance)))


def _by_bucket(instance: Instance) -> dict[str, list[Storage]]:
    found: dict[str, list[Storage]] = {}
    for storage in instance.storage.values():
        found.setdefault(storage.bucket, []).append(storage)
    return found


def _suffix(key_arn: str) -> str:
    """Give the end of a key's id, to tell statements of several keys apart: letters and digits, as a Sid has them."""
    return "".join(filter(str.isalnum, key_arn.rpartition("/")[2]))[-8:]


def _account(principal: str) -> str:
    return principal.split(":")[4]


def _partition(arn: str) -> str:
    return arn.split(":")[1]


def _domain(arn: str) -> str:
    return "amazonaws.com.cn" if _partition(arn) == "aws-cn" else "amazonaws.com"


def _bucket_arn(like: str, bucket: str) -> str:
    return f"arn:{_partition(like)}:s3:::{bucket}"


def _queue_arn(like: str, url: str, region: str) -> str:
    """Read a queue's ARN from its URL: `https://sqs.<region>.amazonaws.com/<account>/<name>`.

    Raises:
        RefuseError: it ends in no account and name.

    """
    parts = urlsplit(url)
    host, path = (parts.hostname or "").split("."), parts.path.strip("/").split("/")
    if len(path) < 2:
        raise RefuseError("a queue's address that ends in no account and name", field="queue_url")
    there = host[1] if len(host) > 2 and host[0] == "sqs" else region
    return f"arn:{_partition(like)}:sqs:{there}:{path[-2]}:{path[-1]}"


def _bus_arn(instance: Instance, bus: str, region: str) -> str:
    if bus.startswith("arn:"):
        return bus
    return f"arn:{_partition(instance.kms_key_arn)}:events:{region}:{instance.account_id}:event-bus/{bus}"
