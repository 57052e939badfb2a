"""The JSON that endpoints answer."""

import msgspec
from starlette.responses import Response


def json_answer(data: object, status: int = 200) -> Response:
    """Return an answer that no cache keeps."""
    body, headers = msgspec.json.encode(data), {"Cache-Control": "no-store"}
    return Response(body, status, media_type="application/json", headers=headers)
