"""Load for `sse-app bench`: many subscribers and some publishers against one hub, counted exactly.

Every published event carries a marker `@<run>.<number>.<nanoseconds>!`. A subscriber decodes the stream only as far as
finding markers needs, so that one Python process can keep a server's core busy: all subscribers get the same bytes,
and a read that was parsed once is a dictionary lookup for the others (0.5 us; the system call costs ten times that).

Latency runs from the moment an event was sent (where there is a rate: was due) until a subscriber's read, on one clock
of one process. It contains this process's own turn at reading all sockets, some us for each subscriber.
"""

from sse_app.bench.load import Load, cases
from sse_app.bench.measure import compare, run
from sse_app.bench.report import Report, document, medians, table
from sse_app.errors import BenchFailed, BenchRefused

__all__ = ["BenchFailed", "BenchRefused", "Load", "Report", "cases", "compare", "document", "medians", "run", "table"]
