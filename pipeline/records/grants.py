"""The grant of a scope's KMS key: exactly what its class's row allows, for exactly its encryption context."""

from pipeline.crypt.grants import GrantFolder, name_of
from pipeline.keyports import GrantTerms
from pipeline.ports import FileSystem
from pipeline.records.scopes import Scope


def terms_of(scope: Scope, grantee: str) -> GrantTerms:
    """Say what is to be granted."""
    policy = scope.policy
    return GrantTerms(
        name=name_of(str(scope.owner), policy.data_class),
        grantee=grantee,
        operations=tuple(sorted(policy.grant_operations)),
        context=scope.context,
    )


def folder_of(files: FileSystem, root: str, scope: Scope) -> GrantFolder:
    """Give the folder in which its grants are kept, beside its key ring."""
    return GrantFolder(files, f"{root}/{scope.directory}")
