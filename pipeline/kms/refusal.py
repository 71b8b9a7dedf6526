"""How a call is refused: an AWS error code, a message, an HTTP status. Pure.

A message never repeats what the caller sent; the only names in it are this server's own ARNs and the caller's
principal. Source of codes and statuses: the "Errors" sections of the AWS KMS API reference.
"""

from pipeline.errors import RefuseError


class KmsRefusalError(RefuseError):
    """The call failed, as AWS would say it. Nothing was changed."""

    reason = "kms-refused"

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


def invalid(message: str) -> KmsRefusalError:
    """Refuse a value that breaks a documented rule."""
    return KmsRefusalError("ValidationException", message)


def unsupported(message: str) -> KmsRefusalError:
    """Refuse what AWS offers and this server does not."""
    return KmsRefusalError("UnsupportedOperationException", message)


def not_found(message: str) -> KmsRefusalError:
    """Refuse a name that leads nowhere."""
    return KmsRefusalError("NotFoundException", message)
