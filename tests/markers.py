"""What tests send that is secret or personal. In no log of any test is any of it: see `log_guard`."""

import json
from pathlib import Path
from typing import Any

MEDIA = b"TOP-SECRET-PLAINTEXT-"
"""Begins what is recorded, in tests in process."""
SPOKEN = b"spoken, and to be read by nobody else. "
"""Stands in what is recorded, and said in chats, in tests of the whole service."""
NUMBER = "+4930901820"
"""Of a record's person."""
CALLER = "+4917012345678"
"""Of a contact's, also in its attributes."""
PERSON = "Erika-Mustermann"
"""Begins the names in records."""
ATTRIBUTE = "Ada Lovelace-Canary"
"""In a contact's attributes."""
REJECTED = "canary-4930123456789"
"""In everything that a caller may get wrong."""
ACCESS_SECRET = "canary-secret-of-an-access-key"
WORD = "Kündigungsfrist"
"""In what is searched by words."""

_FIXTURES = Path(__file__).parents[1] / "fixtures" / "markers.json"


def all_markers() -> list[bytes]:
    """Give every one, those of the fixtures' chats and contact events too."""
    texts = (NUMBER, CALLER, PERSON, ATTRIBUTE, REJECTED, ACCESS_SECRET, WORD)
    fixtures: dict[str, Any] = json.loads(_FIXTURES.read_text(encoding="utf-8"))
    told = [*fixtures["contactEvents"], *(text for chat in fixtures["chats"].values() for text in chat)]
    return [MEDIA, SPOKEN, *(text.encode() for text in (*texts, *told))]
