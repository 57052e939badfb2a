"""Virtual time: the mark of ``sse_app.pytest_plugin`` under a short name."""

import pytest

from sse_app.testing import VirtualTimeLoop as VirtualTimeLoop
from sse_app.testing import run_virtual as run_virtual

virtual_time = pytest.mark.virtual_time
