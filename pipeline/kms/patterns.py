"""The wildcards of policies: `*` for any run of characters, `?` for one. Pure.

Source: IAM User Guide, "IAM JSON policy elements".
"""

import re
from functools import lru_cache

_ARN_PARTS = 6


@lru_cache(maxsize=4096)
def _compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
    text = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)
    return re.compile(text, re.DOTALL | (re.IGNORECASE if ignore_case else 0))


def glob(pattern: str, text: str, *, ignore_case: bool = False) -> bool:
    """Whether the whole of `text` fits `pattern`."""
    return _compiled(pattern, ignore_case).fullmatch(text) is not None


def arn_glob(pattern: str, text: str) -> bool:
    """Whether an ARN fits, part by part: a wildcard of `ArnLike` never reaches over a colon of the first five."""
    wanted, given = pattern.split(":", _ARN_PARTS - 1), text.split(":", _ARN_PARTS - 1)
    return len(wanted) == len(given) == _ARN_PARTS and all(map(glob, wanted, given))
