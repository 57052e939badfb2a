"""What one check found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, but not as well as it could
    PROBLEM = "problem"
    NOT_CHECKED = "not checked"  # never passed off as ok


@dataclass(frozen=True, slots=True)
class Finding:
    """``measured`` is a sentence; ``figures`` its numbers, in the units that their names say; ``advice`` the setting
    to change, by who has it (a proxy, or ``hub``).
    """

    check: str
    verdict: Verdict
    measured: str
    advice: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def asks_for_a_change(self) -> bool:
        return self.verdict in (Verdict.WARNING, Verdict.PROBLEM)
