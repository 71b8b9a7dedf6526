"""One operation of AWS STS, GetCallerIdentity: who signed this request. It uses no key, so it is not in the trail.

It is here so that a service which grants itself the use of a key can ask for its own name, as it does at AWS. Source:
the operation's page in the AWS STS API reference (query protocol, version 2011-06-15).
"""

from urllib.parse import parse_qs
from uuid import uuid4
from xml.sax.saxutils import escape

from pipeline.kms.refusal import KmsRefusalError
from pipeline.kms.signature import HttpCall, Verifier

CONTENT_TYPE = "text/xml"
_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
_FORM = "application/x-www-form-urlencoded"


def is_for_sts(call: HttpCall) -> bool:
    """Tell a call to STS from one to KMS, which names its operation in a header."""
    return call.header("x-amz-target") is None and (call.header("content-type") or "").startswith(_FORM)


def answer(call: HttpCall, verifier: Verifier) -> tuple[int, bytes]:
    """Answer a call to STS: status and XML body."""
    request_id = str(uuid4())
    try:
        identity = verifier.verify(call, service="sts")
        asked = parse_qs(call.body.decode("ascii", "replace"), max_num_fields=16)
    except KmsRefusalError as error:
        return _refused(error.code, error.message, request_id)
    except ValueError:
        return _refused("MalformedInput", "The body is not of its form.", request_id)
    if asked.get("Action") != ["GetCallerIdentity"]:
        return _refused("InvalidAction", "This key server answers GetCallerIdentity alone.", request_id)
    text = (
        f'<GetCallerIdentityResponse xmlns="{_NAMESPACE}"><GetCallerIdentityResult>'
        f"<Arn>{escape(identity.principal)}</Arn><UserId>{escape(identity.access_key)}</UserId>"
        f"<Account>{escape(identity.account_id)}</Account></GetCallerIdentityResult>"
        f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></GetCallerIdentityResponse>"
    )
    return 200, text.encode()


def _refused(code: str, message: str, request_id: str) -> tuple[int, bytes]:
    text = (
        f'<ErrorResponse xmlns="{_NAMESPACE}"><Error><Type>Sender</Type><Code>{escape(code)}</Code>'
        f"<Message>{escape(message)}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
    )
    return 403, text.encode()
