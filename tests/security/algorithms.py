"""S-09: what the code uses of cryptography, and what for, told by reading the code. For tests only.

python -m tests.security.algorithms > tests/security/algorithms.txt
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pipeline

ROOT = Path(pipeline.__file__).parent
_LIBRARIES = ("cryptography", "hashlib", "hmac", "secrets", "ssl", "random", "zlib", "awscrt.checksums")
_LABELS = (
    "recording-pipeline/",
    "pipeline-kms/",
    "aws:kms",
    "AES_",
    "SYMMETRIC_",
    "HMAC_",
    "RSA_",
    "ECC_",
    "CRC64",
    "AWS4-",
)
"""Beginnings of texts that say what something is used for, or by which algorithm."""


@cache
def uses() -> list[str]:
    """Give a line for each name of a library, and each label, by the module that has it."""
    found: set[str] = set()
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(("pipeline", *path.relative_to(ROOT).with_suffix("").parts))
        text = path.read_text(encoding="utf-8")
        if any(word in text for word in (*_LIBRARIES, *_LABELS, "awscrt")):
            found |= {f"{module}: {use}" for use in _uses_in(ast.parse(text))}
    return sorted(found)


def _uses_in(tree: ast.Module) -> Iterator[str]:
    names: dict[str, str] = {}
    nodes = list(ast.walk(tree))
    for node in nodes:
        match node:
            case ast.ImportFrom(module=str(module), names=imported) if module.startswith(_LIBRARIES):
                for each in imported:
                    names[each.asname or each.name] = f"{module}.{each.name}"
                    if module.startswith(("cryptography", "awscrt")):
                        yield f"{module}.{each.name}"
            case ast.Import(names=imported):
                names |= {each.asname or each.name: each.name for each in imported if each.name.startswith(_LIBRARIES)}
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in names:
                yield f"{names[name]}.{attribute}"
            case ast.Call(func=ast.Name(id=name)) if name in names:
                yield names[name]
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="hmac"), attr="digest"), args=[_, _, ast.Constant(value)]
            ):
                yield f"hmac.digest with {value!r}"
            case ast.Constant(value=str() | bytes() as value):
                text = value.decode("latin-1") if isinstance(value, bytes) else value
                if text.startswith(_LABELS) and len(text) < 100 and " " not in text:
                    yield f"label {text!r}"


if __name__ == "__main__":
    print("\n".join(uses()))  # noqa: T201
