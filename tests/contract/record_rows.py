"""What the documents say of each class of the record store, literally: what `test_record_cells` holds the code to."""

import json
from dataclasses import dataclass, field

from tests import markers
from tests.records_fixture import ACCOUNT, arn_of
from tests.unit.keyring_fakes import A

NUMBER = markers.NUMBER
BODY = json.dumps(
    {
        "PhoneNumber": NUMBER,
        "CustomerEndpoint": {"Address": NUMBER},
        "DestinationPhoneNumber": NUMBER,
        "CustomerSpeakerId": "speaker-1",
    }
).encode()
BASE = {"DescribeKey", "GenerateDataKey", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "RetireGrant"}
FIXED = {"DescribeKey", "GenerateDataKey", "Decrypt", "RetireGrant"}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One row of the document."""

    owner: str
    """owned, optional, required."""
    needs: tuple[str, ...] = ()
    scope: str
    context: dict[str, str]
    grant: set[str] = field(default_factory=set)
    days: int | None = None
    """Until a record put now is removed; None: never by time."""
    index: tuple[str, str] | None = None
    revoke: str
    change: str
    lock: str | None = None
    audit: set[str] = field(default_factory=set)
    """Of RecordPut, RecordOpened, RecordDeleted, RecordPuts (counts)."""


def _ours(data_class: str, **more: str) -> dict[str, str]:
    return {"pipeline:accountId": ACCOUNT, **more, "pipeline:dataClass": data_class}


CHANGES, OPENINGS = {"RecordPut", "RecordDeleted"}, {"RecordOpened"}
DOMAIN = {"pipeline:domain": arn_of("profiles_domain", A)}
ROWS = {
    "contact_metadata": Expected(
        owner="owned", scope="instance", context=_ours("contact_metadata", **{"pipeline:instanceId": str(A)}),
        days=731, index=("number", NUMBER), revoke="n/a", change="rotates", audit=OPENINGS,
    ),
    "appintegrations_data": Expected(
        owner="required", scope="resource", grant=FIXED, days=31, revoke="deny", change="immutable", audit=CHANGES,
        context=_ours("appintegrations_data", **{"pipeline:resource": arn_of("appintegrations_data", A)}),
    ),
    "appintegrations_config": Expected(
        owner="owned", scope="account", context=_ours("appintegrations_config"), revoke="n/a", change="rotates",
        audit=CHANGES,
    ),
    "cases": Expected(
        owner="owned", scope="domain", context=_ours("cases", **{"pipeline:domain": arn_of("cases", A)}),
        revoke="n/a", change="rotates", audit=CHANGES | OPENINGS,
    ),
    "case_events": Expected(
        owner="owned", scope="domain", context=_ours("case_events", **{"pipeline:domain": arn_of("cases", A)}),
        revoke="n/a", change="rotates", audit={"RecordPuts", "RecordDeleteds"},
    ),
    "profiles_domain": Expected(
        owner="optional", needs=("data_store", "external_integration"), scope="domain",
        context=_ours("profiles_domain", **DOMAIN), grant=BASE, days=366, index=("phone", NUMBER), revoke="deny",
        change="reencrypt", lock="data_vault", audit=CHANGES | OPENINGS,
    ),
    "profiles_object_type": Expected(
        owner="optional", needs=("data_store", "external_integration"), scope="object type",
        context=_ours("profiles_object_type", **DOMAIN, **{"pipeline:objectType": "CTR"}), grant=BASE, days=366,
        index=("phone", NUMBER), revoke="deny", change="reencrypt", lock="data_vault", audit=CHANGES | OPENINGS,
    ),
    "ai_content": Expected(
        owner="optional", scope="resource", grant=FIXED, revoke="deny", change="immutable", audit=CHANGES | OPENINGS,
        context=_ours("ai_content", **{"pipeline:resource": arn_of("ai_content", A)}),
    ),
    "voiceid": Expected(
        owner="required", scope="domain", context={"aws:voiceid:domain:arn": arn_of("voiceid", A)}, grant=BASE,
        days=1096, index=("speaker", "speaker-1"), revoke="deny", change="reencrypt", audit=CHANGES | OPENINGS,
    ),
    "campaigns": Expected(
        owner="optional", scope="instance", grant=BASE, index=("number", NUMBER), revoke="deny", change="reencrypt",
        context={"aws:accountId": ACCOUNT, "aws:connect:instanceId": str(A)}, audit=CHANGES | OPENINGS,
    ),
    "forecasts": Expected(
        owner="owned", scope="instance", context=_ours("forecasts", **{"pipeline:instanceId": str(A)}), revoke="n/a",
        change="rotates", audit=CHANGES,
    ),
}  # fmt: skip
