"""Every class of data and its policy: one row for each, and the only place where classes differ. Pure.

An unknown class is refused, never given a default. Where Amazon Connect documents an encryption context it is used
exactly; elsewhere the names are ours. Recordings have rows too, although they travel by other modules: tests hold
those modules to their rows.
"""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

from pipeline.errors import RefuseError
from pipeline.records.policy import (
    Audit,
    Disused,
    Field,
    Fixed,
    FromConfig,
    Holder,
    IndexKind,
    KeyChange,
    KeyMode,
    Normal,
    OnRevoke,
    Part,
    Policy,
    ScopeKind,
    Transient,
    UntilDeleted,
    UntilDelivered,
)

BASE = frozenset({"DescribeKey", "GenerateDataKey", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "RetireGrant"})
FIXED = BASE - {"ReEncryptFrom", "ReEncryptTo"}
"""Of a class whose key never changes."""
SERVICE_LIFE = timedelta(days=30)
_DAY = timedelta(hours=24)

ACCOUNT = "pipeline:accountId"
INSTANCE = "pipeline:instanceId"
DOMAIN = "pipeline:domain"
RESOURCE = "pipeline:resource"
OBJECT_TYPE = "pipeline:objectType"
CLASS = "pipeline:dataClass"


def _audit(*more: Audit) -> frozenset[Audit]:
    return frozenset({Audit.KEY_USE, *more})


_NUMBERS = Field(
    name="number",
    normal=Normal.NUMBER,
    paths=("CustomerEndpoint.Address", "SystemEndpoint.Address", "AdditionalEndpoints.Address", "Numbers"),
)

_ROWS = (
    Policy(
        data_class="recordings_interim",
        key_mode=KeyMode.OPTIONAL,
        key_scope=ScopeKind.INSTANCE,
        key_lookup=(Holder.INSTANCE, Holder.SERVICE),
        context_keys=(ACCOUNT, INSTANCE, CLASS),
        grant_operations=BASE,
        grant_constraint="equals",
        data_key_life=_DAY,
        retention=UntilDelivered(),
        on_revoke=OnRevoke.HOLD,
        key_change=KeyChange.REENCRYPT,
        audit=_audit(Audit.MOVES, Audit.OPENINGS),
        kept=False,
    ),
    Policy(
        data_class="recordings_delivered",
        key_mode=KeyMode.REQUIRED,
        key_scope=ScopeKind.S3,
        key_lookup=(Holder.STORAGE,),
        context_keys=("aws:s3:arn",),
        data_key_life=None,
        retention=UntilDeleted(),
        on_revoke=OnRevoke.HOLD,
        key_change=KeyChange.NEW_ONLY,
        audit=_audit(Audit.MOVES),
        kept=False,
    ),
    Policy(
        data_class="contact_metadata",
        key_mode=KeyMode.OWNED,
        key_scope=ScopeKind.INSTANCE,
        key_lookup=(Holder.SERVICE,),
        context_keys=(ACCOUNT, INSTANCE, CLASS),
        data_key_life=SERVICE_LIFE,
        retention=Fixed(months=24, since=("InitiationTimestamp",)),
        index=IndexKind.BLIND,
        fields=(
            _NUMBERS,
            Field(name="customer", normal=Normal.TEXT, paths=("CustomerId", "Attributes.CustomerId")),
            Field(
                name="contact",
                normal=Normal.EXACT,
                paths=("ContactId", "InitialContactId", "PreviousContactId", "RelatedContactId"),
            ),
        ),
        key_change=KeyChange.SERVICE_ROTATES,
        audit=_audit(Audit.OPENINGS),
    ),
    Policy(
        data_class="appintegrations_data",
        key_mode=KeyMode.REQUIRED,
        key_scope=ScopeKind.RESOURCE,
        key_lookup=(Holder.RESOURCE,),
        context_keys=(ACCOUNT, RESOURCE, CLASS),
        grant_operations=FIXED,
        grant_constraint="equals",
        data_key_life=SERVICE_LIFE,
        retention=Fixed(months=1),
        on_revoke=OnRevoke.DENY,
        key_change=KeyChange.IMMUTABLE,
        audit=_audit(Audit.CHANGES),
    ),
    Policy(
        data_class="appintegrations_config",
        key_mode=KeyMode.OWNED,
        key_scope=ScopeKind.ACCOUNT,
        key_lookup=(Holder.SERVICE,),
        context_keys=(ACCOUNT, CLASS),
        data_key_life=SERVICE_LIFE,
        retention=UntilDeleted(),
        key_change=KeyChange.SERVICE_ROTATES,
        audit=_audit(Audit.CHANGES),
    ),
    Policy(
        data_class="cases",
        key_mode=KeyMode.OWNED,
        key_scope=ScopeKind.DOMAIN,
        key_lookup=(Holder.SERVICE,),
        context_keys=(ACCOUNT, DOMAIN, CLASS),
        data_key_life=SERVICE_LIFE,
        retention=UntilDeleted(),
        index=IndexKind.DEDICATED,
        key_change=KeyChange.SERVICE_ROTATES,
        audit=_audit(Audit.CHANGES, Audit.OPENINGS),
    ),
    Policy(
        data_class="case_events",
        key_mode=KeyMode.OWNED,
        key_scope=ScopeKind.DOMAIN,
        key_lookup=(Holder.SERVICE,),
        context_keys=(ACCOUNT, DOMAIN, CLASS),
        data_key_life=SERVICE_LIFE,
        retention=Transient(timedelta(hours=24)),
        key_change=KeyChange.SERVICE_ROTATES,
        audit=_audit(Audit.COUNTS),
        configured_as="cases",
    ),
    Policy(
        data_class="profiles_domain",
        key_mode=KeyMode.OPTIONAL,
        required_when=("data_store", "external_integration"),
        key_scope=ScopeKind.DOMAIN,
        key_lookup=(Holder.DOMAIN, Holder.SERVICE),
        context_keys=(ACCOUNT, DOMAIN, CLASS),
        grant_operations=BASE,
        grant_constraint="equals",
        data_key_life=SERVICE_LIFE,
        retention=FromConfig(1, 1098),
        index=IndexKind.BLIND,
        fields=(
            Field(
                name="phone",
                normal=Normal.NUMBER,
                paths=("PhoneNumber", "HomePhoneNumber", "MobilePhoneNumber", "BusinessPhoneNumber"),
            ),
            Field(
                name="email",
                normal=Normal.TEXT,
                paths=("EmailAddress", "PersonalEmailAddress", "BusinessEmailAddress"),
            ),
            Field(name="account", normal=Normal.TEXT, paths=("AccountNumber",)),
        ),
        on_revoke=OnRevoke.DENY,
        key_change=KeyChange.REENCRYPT,
        locked_after="data_vault",
        audit=_audit(Audit.CHANGES, Audit.OPENINGS),
    ),
    Policy(
        data_class="profiles_object_type",
        key_mode=KeyMode.OPTIONAL,
        required_when=("data_store", "external_integration"),
        key_scope=ScopeKind.OBJECT_TYPE,
        key_lookup=(Holder.OBJECT_TYPE, Holder.DOMAIN, Holder.SERVICE),
        context_keys=(ACCOUNT, DOMAIN, OBJECT_TYPE, CLASS),
        grant_operations=BASE,
        grant_constraint="equals",
        data_key_life=SERVICE_LIFE,
        retention=FromConfig(1, 1098),
        index=IndexKind.BLIND,
        fields=(
            Field(name="phone", normal=Normal.NUMBER, paths=("PhoneNumber", "Keys._phone")),
            Field(name="email", normal=Normal.TEXT, paths=("EmailAddress", "Keys._email")),
            Field(name="account", normal=Normal.TEXT, paths=("AccountNumber", "Keys._account")),
            Field(name="profile", normal=Normal.EXACT, paths=("ProfileId", "Keys._profileId")),
        ),
        on_revoke=OnRevoke.DENY,
        key_change=KeyChange.REENCRYPT,
        locked_after="data_vault",
        audit=_audit(Audit.CHANGES, Audit.OPENINGS),
    ),
    Policy(
        data_class="ai_content",
        key_mode=KeyMode.OPTIONAL,
        key_scope=ScopeKind.RESOURCE,
        key_lookup=(Holder.RESOURCE, Holder.SERVICE),
        context_keys=(ACCOUNT, RESOURCE, CLASS),
        grant_operations=FIXED,
        grant_constraint="equals",
        data_key_life=SERVICE_LIFE,
        retention=UntilDeleted(),
        index=IndexKind.NONE,
        on_revoke=OnRevoke.DENY,
        key_change=KeyChange.IMMUTABLE,
        audit=_audit(Audit.CHANGES, Audit.OPENINGS),
    ),
    Policy(
        data_class="ai_search_index",
        key_mode=KeyMode.OWNED,
        key_scope=ScopeKind.RESOURCE,
        key_lookup=(Holder.SERVICE,),
        context_keys=(ACCOUNT, RESOURCE, CLASS),
        data_key_life=SERVICE_LIFE,
        retention=UntilDeleted(),
        index=IndexKind.DEDICATED,
        on_revoke=OnRevoke.DROP,
        key_change=KeyChange.SERVICE_ROTATES,
        audit=_audit(Audit.OPENINGS),
        configured_as="ai_content",
        kept=False,
    ),
    Policy(
        data_class="voiceid",
        key_mode=KeyMode.REQUIRED,
        key_scope=ScopeKind.DOMAIN,
        key_lookup=(Holder.DOMAIN,),
        context_keys=("aws:voiceid:domain:arn",),
        grant_operations=BASE,
        grant_constraint="equals",
        data_key_life=SERVICE_LIFE,
        retention=UntilDeleted(),
        parts=(
            Part(name="voiceprint", retention=Disused(months=36), shreds=True),
            Part(name="utterances", retention=UntilDeleted(), shreds=True),
            Part(name="audio", retention=Fixed(days=1), shreds=True),
            Part(name="speaker", retention=Disused(months=36), shreds=True),
            Part(name="metadata", retention=UntilDeleted()),
        ),
        index=IndexKind.BLIND,
        fields=(Field(name="speaker", normal=Normal.EXACT, paths=("CustomerSpeakerId",)),),
        on_revoke=OnRevoke.DENY,
        key_change=KeyChange.REENCRYPT,
        audit=_audit(Audit.CHANGES, Audit.OPENINGS),
    ),
    Policy(
        data_class="campaigns",
        key_mode=KeyMode.OPTIONAL,
        key_scope=ScopeKind.INSTANCE,
        key_lookup=(Holder.INSTANCE, Holder.SERVICE),
        context_keys=("aws:accountId", "aws:connect:instanceId"),
        grant_operations=BASE,
        grant_constraint="equals",
        data_key_life=SERVICE_LIFE,
        retention=UntilDeleted(),
        index=IndexKind.BLIND,
        fields=(
            Field(
                name="number",
                normal=Normal.NUMBER,
                paths=(
                    "ChannelSubtypeParameters.Telephony.DestinationPhoneNumber",
                    "DestinationPhoneNumber",
                    "Numbers",
                ),
            ),
        ),
        on_revoke=OnRevoke.DENY,
        key_change=KeyChange.REENCRYPT,
        audit=_audit(Audit.CHANGES, Audit.OPENINGS),
    ),
    Policy(
        data_class="forecasts",
        key_mode=KeyMode.OWNED,
        key_scope=ScopeKind.INSTANCE,
        key_lookup=(Holder.SERVICE,),
        context_keys=(ACCOUNT, INSTANCE, CLASS),
        data_key_life=SERVICE_LIFE,
        retention=UntilDeleted(),
        key_change=KeyChange.SERVICE_ROTATES,
        audit=_audit(Audit.CHANGES),
    ),
)

POLICIES: Mapping[str, Policy] = MappingProxyType({row.data_class: row for row in _ROWS})
"""Every class, by its slug."""


def policy_of(data_class: str) -> Policy:
    """Give a class's row.

    Raises:
        RefuseError: there is no such class.

    """
    policy = POLICIES.get(data_class)
    if policy is None:
        raise RefuseError("there is no such class of data; see `pipeline classes show`", field="class")
    return policy
