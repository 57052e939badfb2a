"""What two filters have in common: meeting their patterns, and narrowing one filter to the other."""

from collections.abc import Iterator
from itertools import combinations, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_app import narrowing as module
from sse_app.errors import TooManyTopics
from sse_app.narrowing import NothingInCommon, narrow
from sse_app.patterns import Table, meet
from sse_app.topics import TOPICS_PER_FILTER, TopicFilter
from tests.support.visibility import fits
from tests.support.work import work

SEGMENTS = ["a", "b", ""]
TOPICS = ["/".join(segments) for size in (1, 2, 3, 4) for segments in product(SEGMENTS, repeat=size)]
TOPICS.remove("")
PATTERNS = [
    "/".join([*segments, *rest])
    for size in (0, 1, 2, 3)
    for segments in product([*SEGMENTS, "*"], repeat=size)
    for rest in ([], ["**"])
    if segments or rest
]
PATTERNS.remove("")


def seen(*patterns: str) -> set[str]:
    filter = TopicFilter(tuple(sorted(patterns)))
    return seen_by(filter)


def seen_by(filter: TopicFilter) -> set[str]:
    return set(filter.matched(TOPICS))


def test_what_two_patterns_have_in_common_is_a_pattern_or_nothing() -> None:
    each = {pattern: seen(pattern) for pattern in PATTERNS}
    assert {
        fits(pattern.split("/"), topic.split("/")) == (topic in each[pattern])
        for pattern in PATTERNS
        for topic in TOPICS
    } == {True}
    for one, other in product(PATTERNS, repeat=2):
        both = meet(one, other)
        assert (set() if both is None else each.get(both, seen(both))) == each[one] & each[other], (one, other)
        assert both == meet(other, one)


def test_a_pattern_covers_another_if_nothing_but_it_is_in_common() -> None:
    for one, other in product(PATTERNS, repeat=2):
        assert Table({one, other}).covered(other) == (one != other and meet(one, other) == other)


some_patterns = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=6)
few_patterns = st.lists(st.sampled_from(PATTERNS), max_size=3)


@given(some_patterns, some_patterns)
@settings(max_examples=5 * settings().max_examples)
def test_narrowed_is_what_is_asked_for_and_granted(asked: list[str], granted: list[str]) -> None:
    allowed = seen(*granted)
    outside = tuple(sorted(pattern for pattern in {*asked} if not seen(pattern) & allowed))
    if outside:
        with pytest.raises(NothingInCommon) as refused:
            narrow(TopicFilter.parse(asked), TopicFilter.parse(granted))
        assert refused.value.patterns == outside
        return
    narrowed = narrow(TopicFilter.parse(asked), TopicFilter.parse(granted))
    assert seen(*narrowed.shown) == seen(*asked) & allowed
    if "**" not in granted:
        assert not any(map(Table(narrowed.shown).covered, narrowed.shown))


@given(some_patterns | st.just([]), st.booleans(), some_patterns | st.just([]), st.booleans(), few_patterns)
@settings(max_examples=20 * settings().max_examples)
def test_narrowed_is_never_what_is_denied_and_broadcasts_are_for_who_asks_and_may(
    asked: list[str], asks_broadcasts: bool, granted: list[str], may_broadcasts: bool, denied: list[str]
) -> None:
    wanted = seen(*asked) & seen(*granted) - (seen(*denied) if denied else set())
    filter = TopicFilter(tuple(asked), asks_broadcasts)
    grant = TopicFilter(tuple(granted), may_broadcasts, tuple(denied))
    narrowed, outside = narrowed_or_outside(filter, grant)
    if narrowed is None:
        assert set(outside) <= set(asked)
        assert not any(seen(pattern) & wanted for pattern in outside)
        assert outside or not (wanted or (asks_broadcasts and may_broadcasts))
        return
    assert seen_by(narrowed) == wanted
    assert narrowed.broadcasts == narrowed.matches(()) == (asks_broadcasts and may_broadcasts)
    assert seen_by(narrow(filter, narrowed)) == wanted


def narrowed_or_outside(asked: TopicFilter, granted: TopicFilter) -> tuple[TopicFilter | None, tuple[str, ...]]:
    try:
        return narrow(asked, granted), ()
    except NothingInCommon as refused:
        return None, refused.patterns


@pytest.mark.parametrize("asked", [[], ["**"]])
def test_to_ask_for_everything_is_to_ask_for_all_that_is_granted(asked: list[str]) -> None:
    filter = TopicFilter.parse(asked)
    for granted in (
        TopicFilter(("a/*", "b"), False),
        TopicFilter((), False),
        TopicFilter((), True, ("a/*",)),
        TopicFilter(("a/*", "b"), True, ("a/1",)),
    ):
        assert narrow(filter, granted) == granted
    assert narrow(filter, TopicFilter()) == filter


@pytest.mark.parametrize("asked", [[], ["**"], ["a"]])
def test_nothing_is_left_of_what_is_denied_as_a_whole(asked: list[str]) -> None:
    with pytest.raises(NothingInCommon) as refused:
        narrow(TopicFilter.parse(asked), TopicFilter(("a", "a/*"), False, ("a/**",)))
    assert refused.value.patterns == tuple(asked)


@pytest.mark.parametrize("asked", [[], ["**"]])
def test_broadcasts_are_left_when_every_topic_is_denied(asked: list[str]) -> None:
    narrowed = narrow(TopicFilter.parse(asked), TopicFilter(("a", "a/*"), True, ("a/**",)))
    assert narrowed.matches(())
    assert not seen_by(narrowed)


def test_a_pattern_of_which_all_is_denied_is_outside() -> None:
    granted = TopicFilter((), True, ("a/**", "b/1"))
    with pytest.raises(NothingInCommon) as refused:
        narrow(TopicFilter.parse(["a/1", "a/*/x", "b/1", "b/*", "c"]), granted)
    assert refused.value.patterns == ("a/*/x", "a/1", "b/1")
    assert narrow(TopicFilter.parse(["b/*", "c"]), granted) == TopicFilter(("b/*", "c"), True, ("b/1",))


def test_what_is_asked_for_of_every_topic_is_shown_as_it_was_asked_for() -> None:
    asked = TopicFilter.parse(["a", "a/*", "a/**"])
    assert narrow(asked, TopicFilter((), False)).shown == asked.shown


@pytest.mark.parametrize(
    ("asked", "granted", "narrowed"),
    [
        ([], ["b", "a/*", "a/b"], ["a/*", "b"]),
        (["**"], ["orders/*"], ["orders/*"]),
        (["orders/1", "orders/2"], ["orders/*"], ["orders/1", "orders/2"]),
        (["orders/**"], ["orders/1", "users/*", "*/2"], ["orders/1", "orders/2"]),
        (["*/x/**", "a/**"], ["a/*/**"], ["a/*/**"]),
        (["a", "a/*"], [], ["a", "a/*"]),
        (["a", "a/**"], ["**"], ["a", "a/**"]),
        ([], [], []),
    ],
)
def test_a_filter_is_narrowed_to_a_grant(asked: list[str], granted: list[str], narrowed: list[str]) -> None:
    assert list(narrow(TopicFilter.parse(asked), TopicFilter.parse(granted)).shown) == narrowed


@pytest.mark.parametrize("pattern", ["orders//1", "Orders/1", "orders/1/", "/orders/1", "orders%2f1", "orders/*/*"])
def test_a_filter_that_only_resembles_what_is_granted_is_outside(pattern: str) -> None:
    with pytest.raises(NothingInCommon) as refused:
        narrow(
            TopicFilter.parse([pattern, "orders/1"]),
            TopicFilter.parse(["orders/1", "*/2"]),
        )
    assert refused.value.patterns == (pattern,)


def hundred(*segments: str) -> TopicFilter:
    return TopicFilter.parse(["/".join(segments).replace("N", str(number)) for number in range(100)])


@pytest.fixture
def meets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """The results of meeting two patterns, in order."""
    met = list[str | None]()

    def counted(one: str, other: str) -> str | None:
        met.append(meet(one, other))
        return met[-1]

    monkeypatch.setattr(module, "meet", counted)
    module._narrow.cache_clear()
    yield met
    module._narrow.cache_clear()


def test_more_than_a_hundred_patterns_in_common_are_refused_as_soon_as_they_are_found(
    meets: list[str | None],
) -> None:
    for _ in range(2):
        with pytest.raises(TooManyTopics):
            narrow(hundred("N", "*", "x"), hundred("*", "N", "*"))
    assert TOPICS_PER_FILTER < len(meets) <= 2 * TOPICS_PER_FILTER, "no more than that, and never again"


def test_wildcards_without_a_topic_in_common_are_not_met_and_the_answer_is_kept(meets: list[str | None]) -> None:
    for _ in range(2):
        with pytest.raises(NothingInCommon) as refused:
            narrow(hundred("a", "N", "*"), hundred("b", "N", "*"))
        assert len(refused.value.patterns) == 100
    assert not meets


def test_what_many_pairs_have_in_common_is_written_out_once(meets: list[str | None]) -> None:
    """Of a hundred patterns, each with two wildcards in places of its own, nearly all have one topic in common."""
    places = [pair for pair in combinations(range(32), 2) if sum(pair) % 2][:200]
    given = ["/".join("*" if place in pair else "a" for place in range(32)) for pair in places]
    asked, granted = TopicFilter.parse(given[:100]), TopicFilter.parse([*given[100:199], "/".join("a" * 32)])
    narrowed = narrow(asked, granted)
    assert len(narrowed.shown) <= TOPICS_PER_FILTER
    assert len(meets) <= TOPICS_PER_FILTER


def test_narrowing_to_many_denied_patterns_is_cheap() -> None:
    random = Random(12)

    def patterns(count: int, wild: str) -> tuple[str, ...]:
        return tuple({"/".join(random.choice(("a", "b", "c", wild)) for _ in range(31)) for _ in range(count)})

    asked = TopicFilter.parse(patterns(100, "a"))
    denied = patterns(100, "*")
    module._narrow.cache_clear()
    assert work(lambda: narrow(asked, TopicFilter((), True, denied))) < 100_000, "each pair by segments: 300,000"


@pytest.mark.parametrize("rest", ["", "/**"])
def test_narrowing_two_filters_of_a_hundred_long_patterns_is_cheap(rest: str) -> None:
    random = Random(11)

    def long() -> str:
        return "/".join(random.choice(("a" * 60, "*")) for _ in range(31)) + rest

    asked, granted = (TopicFilter.parse([long() for _ in range(100)]) for _ in range(2))
    module._narrow.cache_clear()

    def narrowed() -> None:
        with pytest.raises(TooManyTopics):
            narrow(asked, granted)

    assert work(narrowed) < 50_000, "comparing each pair by segments would be a million"


def test_plain_topics_are_not_met(meets: list[str | None]) -> None:
    assert narrow(hundred("a", "N"), hundred("a", "N")) == hundred("a", "N")
    assert narrow(hundred("a", "N"), hundred("*", "N")) == hundred("a", "N")
    assert narrow(hundred("*", "N"), hundred("a", "N")) == hundred("a", "N")
    assert not meets


def test_no_more_answers_are_kept_than_fit() -> None:
    assert module._narrow.cache_info().maxsize == 4_096
