"""What a run of torture found, in the words that its report is read by."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of broken promises; all but `rounds` and `seed` have to be zero."""

    rounds: int
    lost: int
    """Acknowledged, and not delivered."""
    duplicated: int
    """Delivered more than once."""
    wrong_bytes: int
    """Delivered as something else than was sent."""
    plaintext_hits: int
    """Files that hold what was said in clear."""
    seed: int

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.duplicated or self.wrong_bytes or self.plaintext_hits)

    def to_json(self) -> str:
        """Write the report, one line."""
        return json.dumps(
            {
                "rounds": self.rounds,
                "lost": self.lost,
                "duplicated": self.duplicated,
                "wrongBytes": self.wrong_bytes,
                "plaintextHits": self.plaintext_hits,
                "seed": self.seed,
            }
        )
