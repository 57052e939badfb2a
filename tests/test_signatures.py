"""The public doors of the package: no parameter hides a builtin, and every keyword has a name and a type.

A parameter called ``filter`` takes the builtin of that name from its function; ``**options: Any`` takes completion from
the editor, and the wrong keyword from the type checker.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import sse_app

PACKAGE = Path(sse_app.__file__).parent
BUILTINS = {name for name in dir(builtins) if name.islower() and not name.startswith("_")}

# The words of the standard (WHATWG HTML 9.2: an event's id and type), for values that stand for an event or its place.
ALLOWED = {
    *(f"events.Event: {word}" for word in ("id", "type")),
    *(f"testing.assertions.Expected: {word}" for word in ("id", "type")),
    *(f"testing.published.PublishedEvent: {word}" for word in ("id", "type")),
    "publication.Publication: type",
    "notices.Welcome: id",
    "errors.Gap.__init__: id",
}


class Parameter(NamedTuple):
    """A parameter of a public function or method, or a field of a public class: its constructor has it."""

    place: str  # module.Class.function
    name: str
    annotation: str = ""
    stars: int = 0  # 1 for *names, 2 for **names

    def __str__(self) -> str:
        return f"{self.place}: {'*' * self.stars}{self.name}"

    @property
    def is_untyped(self) -> bool:
        """True for ``*`` or ``**`` that takes anything."""
        return self.stars > 0 and re.search(r"\b(Any|object)\b|^$", self.annotation) is not None


def parameters(body: list[ast.stmt], place: str) -> Iterator[Parameter]:
    """The parameters of all that is public in the body of a module or a class."""
    for node in body:
        match node:
            case ast.If() | ast.Try():
                yield from parameters(
                    [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)], place
                )
            case ast.ClassDef(name=name) if not name.startswith("_"):
                yield from parameters(node.body, f"{place}.{name}")
                yield from _fields(node, f"{place}.{name}")
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                if name == "__init__" or not name.startswith("_"):
                    yield from _of_function(node.args, f"{place}.{name}")


def _fields(owner: ast.ClassDef, place: str) -> Iterator[Parameter]:
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield Parameter(place, node.target.id, ast.unparse(node.annotation))


def _of_function(given: ast.arguments, place: str) -> Iterator[Parameter]:
    named = [(one, 0) for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    for one, stars in [*named, (given.vararg, 1), (given.kwarg, 2)]:
        if one is not None:
            yield Parameter(place, one.arg, "" if one.annotation is None else ast.unparse(one.annotation), stars)


def of_module(path: Path) -> Iterator[Parameter]:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    return parameters(ast.parse(path.read_text()).body, name)


ALL = [one for path in sorted(PACKAGE.rglob("*.py")) for one in of_module(path)]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(a, /, b, *c: int, d=1, **e: str): ...", ["m.f: a", "m.f: b", "m.f: d", "m.f: *c", "m.f: **e"]),
        ("async def f(id): ...", ["m.f: id"]),
        ("def _f(id): ...\nclass _C:\n    id: int", []),
        ("type: int = 1", []),  # a module's own name, and no parameter
        ("class C:\n    type: str\n    def _f(self, id): ...", ["m.C: type"]),
        ("class C:\n    def __init__(self, id): ...", ["m.C.__init__: self", "m.C.__init__: id"]),
        ("class C:\n    class D:\n        id: int", ["m.C.D: id"]),
        ("if TYPE_CHECKING:\n    def f(id): ...\nelse:\n    def g(id): ...", ["m.f: id", "m.g: id"]),
        ("def f():\n    def g(id): ...", []),
    ],
)
def test_parameters_of_all_that_is_public_are_found(source: str, found: list[str]) -> None:
    assert [str(one) for one in parameters(ast.parse(source).body, "m")] == found


@pytest.mark.parametrize(
    ("signature", "untyped"),
    [
        ("**x", True),
        ("**x: Any", True),
        ("*x: object", True),
        ("**x: 'Any'", True),
        ("**x: dict[str, Any]", True),
        ("x: Any", False),
        ("*x: str", False),
        ("**x: Unpack[HubOptions]", False),
        ("**x: 'Unpack[HubOptions]'", False),
    ],
)
def test_keywords_that_take_anything_are_found(signature: str, untyped: bool) -> None:
    (found,) = parameters(ast.parse(f"def f({signature}): ...").body, "m")
    assert found.is_untyped == untyped


def test_no_parameter_hides_a_builtin() -> None:
    found = {str(one) for one in ALL if one.name in BUILTINS}
    assert found == ALLOWED


def test_no_keyword_takes_anything() -> None:
    assert not {str(one) for one in ALL if one.is_untyped}
