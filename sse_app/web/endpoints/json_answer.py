"""The JSON that endpoints answer."""

import msgspec
from starlette.responses import Response


def json_answer(data: object) -> Response:
    """Return an answer that no cache keeps."""
    return Response(msgspec.json.encode(data), media_type="application/json", headers={"Cache-Control": "no-store"})
