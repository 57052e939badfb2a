"""What `sse-app doctor` finds out about the way to a hub, by going it: through the public URL, as a client.

It subscribes under a client name and a topic of its own and publishes to itself alone. Every finding says what was
measured and, where something is wrong, the setting to change.
"""

from sse_app.doctor.examine import CHECKS, examine
from sse_app.doctor.finding import Finding, Verdict
from sse_app.errors import DoctorFailed, DoctorRefused

__all__ = ["CHECKS", "DoctorFailed", "DoctorRefused", "Finding", "Verdict", "examine"]
