"""The prefix of a site under which an app is mounted, and the path below it that the app answers.

In ASGI ``path`` is the whole path, and begins with ``root_path``. It does not for ``FastAPI(root_path="/api")`` behind
a proxy that strips ``/api``. Starlette forgives that to an app's own routes, but not to what is mounted in it: there
``root_path`` is ``/api/hub``, and ``path`` begins with ``/hub``.
"""

from collections.abc import Collection

from starlette.types import Scope

TWICE = (
    " Without its prefix there would be, and it has that twice: a proxy passes it on, and the server adds it again as"
    " its root_path. Leave one of them out."
)
PASSED_ON = (
    " Without its prefix there would be: a proxy in front has to strip that, or the hub to be mounted there in an app"
    " that gets the whole path."
)


def with_prefix(scope: Scope) -> Scope:
    """Return the request with a ``path`` that begins with ``root_path``, though a proxy may have stripped a part."""
    path, root_path = scope["path"], scope.get("root_path", "")
    if not root_path or path == root_path or path.startswith(f"{root_path}/"):
        return scope
    stripped = scope.get("app_root_path", root_path)  # Starlette's: what root_path was before any mount
    mounted_at = root_path.removeprefix(stripped)
    return {**scope, "path": stripped + path} if path.startswith(f"{mounted_at}/") else scope


def route_path(scope: Scope) -> str:
    """Return the path below the prefix, as Starlette's routes see it."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    return below if below.startswith("/") else path


def hint(scope: Scope, known: Collection[str]) -> str:
    """Return the reason for a 404 when the path is a known one behind a wrong prefix, else an empty text.

    Such a path is not served: a proxy that forbids ``/api/broadcast`` would let ``/api/api/broadcast`` through.
    """
    path, prefix = route_path(scope), scope.get("root_path", "")
    if not path.endswith(tuple(known)) or path.removesuffix("/") in known:
        return ""
    return TWICE if prefix and path.startswith(f"{prefix}/") else PASSED_ON
