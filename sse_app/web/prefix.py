"""Where in a site an app is: the path that it has to answer, and the prefix before that.

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
    """The same request, with a ``path`` that begins with ``root_path``, also where a proxy stripped its beginning."""
    path, root_path = scope["path"], scope.get("root_path", "")
    if not root_path or path == root_path or path.startswith(f"{root_path}/"):
        return scope
    stripped = scope.get("app_root_path", root_path)  # Starlette's: what root_path was before any mount
    mounted_at = root_path.removeprefix(stripped)
    return {**scope, "path": stripped + path} if path.startswith(f"{mounted_at}/") else scope


def route_path(scope: Scope) -> str:
    """The path below the prefix, as Starlette's routes see it."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    return below if below.startswith("/") else path


def hint(scope: Scope, known: Collection[str]) -> str:
    """The reason why there is nothing at this path, when only what comes before it keeps it from being a known one.

    It is not served all the same: a proxy that forbids ``/api/broadcast`` would let ``/api/api/broadcast`` through.
    """
    path, prefix = route_path(scope), scope.get("root_path", "")
    if not path.endswith(tuple(known)) or path.removesuffix("/") in known:
        return ""
    return TWICE if prefix and path.startswith(f"{prefix}/") else PASSED_ON
