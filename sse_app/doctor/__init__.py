"""Checks of `sse-app doctor` on the way to a hub, made as a client through its public URL.

The doctor subscribes under a client name and a topic of its own and publishes to itself alone. Every finding has a
measurement and, where something is wrong, the setting to change.
"""

from sse_app.doctor.examine import CHECKS, examine
from sse_app.doctor.finding import Finding, Verdict
from sse_app.errors import DoctorFailed, DoctorRefused

__all__ = ["CHECKS", "DoctorFailed", "DoctorRefused", "Finding", "Verdict", "examine"]
