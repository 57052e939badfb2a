"""The result of one check."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, but could do better
    PROBLEM = "problem"
    NOT_CHECKED = "not checked"  # a check that could not be made is not ok


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    measured: a sentence
    advice: the setting to change, by the program that has it (a proxy, or ``hub``)
    figures: the numbers in the sentence, in the units that their names say
    """

    check: str
    verdict: Verdict
    measured: str
    advice: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def asks_for_a_change(self) -> bool:
        return self.verdict in (Verdict.WARNING, Verdict.PROBLEM)
