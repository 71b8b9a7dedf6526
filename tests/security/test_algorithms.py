"""S-09, S-10: which algorithms are used and where is written down, and secrets are compared in constant time."""

import ast
import re
from pathlib import Path

from tests.security.algorithms import ROOT, uses

LIST = Path(__file__).with_name("algorithms.txt")
_SECRET = re.compile(r"(^|_)(token|secret|password|mac|signature|presented|token_sha256)s?$")
_PERHAPS = re.compile("token|secret|password|mac|signature|presented")
"""Is in every file that has such a name."""
OUR_OWN = {"crypt/grants.py"}
"""Where both sides are our own: what is kept on disk, and what was read from there before. Nobody presents anything."""
WEAK = re.compile(r"\b(md5|sha1|MD5|SHA1|ARC4|TripleDES|ECB|CBC|PKCS1v15)\b")


def test_the_list_of_algorithms_and_key_uses_is_the_codes_own() -> None:
    """S-09. A change is to be seen, and meant."""
    how = "if this is meant: python -m tests.security.algorithms > tests/security/algorithms.txt"
    assert uses() == LIST.read_text(encoding="utf-8").splitlines(), how


def test_no_weak_algorithm_is_on_the_list() -> None:
    assert [use for use in uses() if WEAK.search(use)] == []


def test_only_the_system_gives_what_must_not_be_guessed() -> None:
    """S-09. `random` chooses times to wait and ports, never keys, ids or salts."""
    allowed = {
        "pipeline.commands.access",
        "pipeline.compose",
        "pipeline.embedded",
        "pipeline.node",
        "pipeline.client",
        "pipeline.recordparts",
    }
    assert {use.partition(":")[0] for use in uses() if ": random." in use} <= allowed


def test_secrets_are_compared_in_constant_time() -> None:
    """S-10. No token, MAC, signature or password is compared by == or found by `in` anywhere."""
    found = []
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if _PERHAPS.search(text) is None:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Compare) and any(
                isinstance(each, ast.Eq | ast.NotEq | ast.In) for each in node.ops
            ):
                names = [_name(side) for side in (node.left, *node.comparators)]
                constants = [side for side in (node.left, *node.comparators) if isinstance(side, ast.Constant)]
                place = str(path.relative_to(ROOT))
                if any(_SECRET.search(name) for name in names) and not constants and place not in OUR_OWN:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""
