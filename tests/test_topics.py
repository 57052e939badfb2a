"""Topics, topic filters, and the index that finds who a publication is for."""

import pickle
import tracemalloc
from collections.abc import Collection
from itertools import product
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_app.errors import InvalidTopic, TooManyTopics
from sse_app.steps import Budget
from sse_app.topics import (
    SEGMENTS_MAX,
    TOPIC_MAX,
    TOPICS_PER_FILTER,
    TOPICS_PER_PUBLICATION,
    VALUES_PER_UNIT,
    TopicFilter,
    TopicIndex,
    check_topics,
)
from tests.support.visibility import fits, fits_any
from tests.support.work import steps_of, work
from tests.test_characters import REFUSED, UNUSUAL

T = TypeVar("T")

MALFORMED = ["", "/" * SEGMENTS_MAX, "x" * (TOPIC_MAX + 1), *(f"a{char}b" for char in REFUSED)]

# Few words, so that random filters and topics often match, nearly match, and share a part of the tree.
words = st.sampled_from(["a", "b", ""])
topics = st.lists(words, min_size=1, max_size=4).map("/".join).filter(bool)
patterns = st.builds(
    lambda segments, rest: "/".join([*segments, *rest]),
    st.lists(words | st.just("*"), max_size=4),
    st.sampled_from([[], ["**"]]),
).filter(bool)
some_patterns = st.lists(patterns, max_size=4).map(tuple)
few_patterns = st.lists(patterns, max_size=2).map(tuple)
filters = st.builds(TopicFilter, some_patterns) | st.builds(TopicFilter, some_patterns, st.booleans(), few_patterns)
publications = st.lists(topics, max_size=3, unique=True).map(tuple)


def allows(patterns: Collection[str], denied: Collection[str], topic: str) -> bool:
    """Match a topic as the definition of a filter says it."""
    return (not patterns or fits_any(patterns, topic)) and not fits_any(denied, topic)


# --- rules ---


@pytest.mark.parametrize(
    "topic",
    [
        "a",
        "orders/42",
        "x" * TOPIC_MAX,
        "é/ü",
        "a b",
        "a.b",
        "..",
        "%2e%2e",
        "A",
        "日本",
        "e\u0301",
        "/",
        "/a",
        "a/",
        "a//b",
        "https://example.com/books/1?q=1#x",
        "a*",
        "*a/b*c",
        "***",
        "/" * (SEGMENTS_MAX - 1),
        *(f"a{char}b" for char in UNUSUAL),
    ],
    ids=ascii,
)
def test_a_topic_of_acceptable_characters_is_allowed_for_both_sides(topic: str) -> None:
    assert check_topics([topic]) == (topic,)
    assert TopicFilter.parse([topic]).patterns == (topic,)


@pytest.mark.parametrize("topic", MALFORMED, ids=ascii)
def test_a_malformed_topic_is_refused_on_both_sides(topic: str) -> None:
    with pytest.raises(InvalidTopic):
        check_topics(["fine", topic])
    with pytest.raises(InvalidTopic):
        TopicFilter.parse(["fine", topic])


@pytest.mark.parametrize("topic", ["*", "**", "a/*", "a/**", "*/b", "a/*/c", "a/**/c"])
def test_a_publication_has_no_wildcards(topic: str) -> None:
    with pytest.raises(InvalidTopic, match="wildcard"):
        check_topics([topic])


@pytest.mark.parametrize("pattern", ["a/**/b", "**/a", "**/**", "**/*", "a/**/"])
def test_the_rest_stands_only_at_the_end_of_a_filter(pattern: str) -> None:
    with pytest.raises(InvalidTopic, match="topic filter"):
        TopicFilter.parse([pattern])


def test_topics_are_kept_in_order_and_each_once() -> None:
    assert check_topics(["b", "a", "b"]) == ("b", "a")
    assert check_topics([]) == ()


def test_equal_filters_are_equal_however_they_were_given() -> None:
    assert TopicFilter.parse(["b", "a/*", "b"]) == TopicFilter.parse(["a/*", "b"])
    assert hash(TopicFilter.parse(["b", "a"])) == hash(TopicFilter.parse(["a", "b"]))
    assert TopicFilter.parse([]) == TopicFilter()


def test_a_filter_is_made_anew_where_it_is_unpickled() -> None:
    for filter in (TopicFilter.parse(["b/*", "a"]), TopicFilter(("a/*",), False, ("a/x", "a/*/y"))):
        copy = pickle.loads(pickle.dumps(filter))
        assert (copy, hash(copy), copy.cost) == (filter, hash(filter), filter.cost)
        assert b"_hash" not in pickle.dumps(filter), "in another process the same text has another"


def test_there_are_at_most_16_topics_and_100_filters() -> None:
    names = [f"t{number}" for number in range(1_000)]
    assert len(check_topics(names[:TOPICS_PER_PUBLICATION] * 2)) == TOPICS_PER_PUBLICATION == 16
    assert len(TopicFilter.parse(names[:TOPICS_PER_FILTER] * 2).patterns) == TOPICS_PER_FILTER == 100
    with pytest.raises(TooManyTopics):
        check_topics(names[: TOPICS_PER_PUBLICATION + 1])
    with pytest.raises(TooManyTopics):
        TopicFilter.parse(names[: TOPICS_PER_FILTER + 1])


# --- matching ---


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("orders", ["orders"], ["orders/42", "order", "Orders"]),
        ("orders/*", ["orders/42", "orders/x"], ["orders", "orders/42/items", "order/42"]),
        ("*/42", ["orders/42", "bills/42"], ["42", "orders/42/42", "orders/43"]),
        ("orders/**", ["orders", "orders/42", "orders/42/items"], ["order", "bills/orders"]),
        ("*/items/**", ["a/items", "a/items/1/2"], ["items", "a/b/items"]),
        ("*", ["a", "orders"], ["a/b"]),
        ("**", ["a", "a/b", "a/b/c", "/"], []),
        ("a*", ["a*"], ["a", "ab", "a/b"]),
        ("***", ["***"], ["a", "a/b"]),
        ("a*/*", ["a*/b", "a*/"], ["ab/b", "a*"]),
        ("orders/", ["orders/"], ["orders", "orders//"]),
        ("orders/*/", ["orders/42/", "orders//"], ["orders/42", "orders/"]),
        ("*/*", ["/", "a/", "/a"], ["a", "//"]),
        ("/**", ["/", "/a", "//"], ["a", "a/"]),
        ("https://example.com/books/*", ["https://example.com/books/1"], ["https://example.com/books/1/2"]),
        ("https://example.com/**", ["https://example.com", "https://example.com/a//b"], ["http://example.com/a"]),
    ],
)
def test_a_pattern_matches_these_topics_and_not_those(pattern: str, matched: list[str], others: list[str]) -> None:
    filter = TopicFilter.parse([pattern])
    assert [topic for topic in matched + others if filter.matches((topic,))] == matched
    assert list(filter.matched(matched + others)) == matched


def test_a_publication_without_topics_is_for_everyone() -> None:
    assert TopicFilter.parse(["a"]).matches(())


def test_a_filter_without_patterns_matches_everything() -> None:
    assert TopicFilter().matches(("a/b",))


def test_any_topic_may_match_any_pattern() -> None:
    assert TopicFilter.parse(["x", "a/*"]).matches(("y", "a/b"))
    assert not TopicFilter.parse(["x", "a/*"]).matches(("y", "a"))


@given(patterns, topics)
def test_matching_is_that_of_the_definition(pattern: str, topic: str) -> None:
    assert TopicFilter.parse([pattern]).matches((topic,)) == fits(pattern.split("/"), topic.split("/"))


@given(some_patterns, st.booleans(), st.lists(patterns, max_size=3).map(tuple), publications)
@settings(max_examples=5 * settings().max_examples)
def test_a_publication_is_seen_if_one_of_its_topics_is_and_a_broadcast_by_who_gets_those(
    given_patterns: tuple[str, ...], broadcasts: bool, denied: tuple[str, ...], on: tuple[str, ...]
) -> None:
    filter = TopicFilter(given_patterns, broadcasts, denied)
    seen = tuple(topic for topic in on if allows(given_patterns, denied, topic))
    assert filter.matched(on) == seen
    assert filter.matches(on) == (bool(seen) if on else broadcasts)
    if filter.unrestricted:
        assert seen == on
        assert broadcasts
    if filter.plain is not None:
        assert set(seen) <= set(filter.plain)
        assert filter.plain == filter.matched(filter.plain) == tuple(sorted(filter.plain))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((("a/*",), True, ("b", "a", "a/b/**/")), (("a/*",),)),
        ((("a/*", "a/*/c"), False, ("a/b", "a/b")), (("a/*", "a/*/c"), False, ("a/b",))),
        ((("a/*",), True, ("a/b/**", "a/b")), (("a/*",), True, ("a/b/**",))),
        ((("a", "a/b", "c"), True, ("a/**",)), (("c",),)),
        ((("**", "a"), False), ((), False)),
        ((("**",), True, ("a",)), ((), True, ("a",))),
        (((), False, ("a/*", "**")), ((), False, ("**",))),
    ],
    ids=["overlaps nothing", "twice", "covered", "wholly denied", "everything", "but broadcasts", "all denied"],
)
def test_filters_that_mean_the_same_are_equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert TopicFilter(*one) == TopicFilter(*other)
    assert hash(TopicFilter(*one)) == hash(TopicFilter(*other))


def test_filters_differ_by_broadcasts_and_by_what_is_denied() -> None:
    different = [
        TopicFilter(),
        TopicFilter((), False),
        TopicFilter((), True, ("a",)),
        TopicFilter((), False, ("a",)),
        TopicFilter((), True, ("b",)),
        TopicFilter(("a",)),
        TopicFilter(("a",), False),
    ]
    assert len(set(different)) == len(different)
    assert [filter.unrestricted for filter in different] == [True] + [False] * 6
    assert [filter.plain for filter in different] == [None] * 5 + [("a",)] * 2


def test_a_filter_of_which_all_is_denied_matches_no_topic() -> None:
    filter = TopicFilter(("a", "a/b"), True, ("a/**",))
    assert filter.plain == ()
    assert not any(map(filter.matches, [("a",), ("a/b",), ("c",), ("a", "a/b", "c")]))
    assert filter.matches(())


def test_at_most_a_hundred_patterns_are_denied() -> None:
    denied = tuple(f"t/{number}" for number in range(101))
    assert TopicFilter((), True, denied[1:]).denied == tuple(sorted(denied[1:]))
    with pytest.raises(TooManyTopics, match="100"):
        TopicFilter((), True, denied)


def test_what_is_denied_adds_to_the_cost_of_a_match() -> None:
    assert TopicFilter(("a/*", "b")).cost == 2
    assert TopicFilter(("a/*", "b"), True, ("a/1", "*/2", "*/3/**", "a/2")).cost == 2 + 3


def test_a_thousand_wildcards_are_no_pattern() -> None:  # K6
    with pytest.raises(InvalidTopic):
        TopicFilter.parse(["*/" * 500 + "*"])
    filter = TopicFilter.parse(["a*" * 1_000, "/".join(["*"] * 31 + ["x"])])
    assert work(lambda: filter.matches(("a" * 2_000,))) < 20, "asterisks in a text are text"
    assert work(lambda: filter.matches(("/".join("a" * 32),))) < 20


def test_a_match_costs_the_shapes_of_a_filter_and_not_its_patterns() -> None:
    one = TopicFilter.parse(["a/*/0"])
    many = TopicFilter.parse([f"a/*/{number}" for number in range(60)] + [f"b/{number}" for number in range(40)])
    assert work(lambda: many.matches(("a/x/y",))) == work(lambda: one.matches(("a/x/y",)))


@pytest.mark.parametrize(
    ("given", "plain", "topics", "prefixes"),
    [
        ([], None, [], [""]),
        (["**", "a"], None, [], [""]),
        (["b", "a"], ("a", "b"), ["a", "b"], []),
        (["a/*"], None, [], ["a/"]),
        (["a/b/**"], None, ["a/b"], ["a/b/"]),
        (["a/b/**", "a/*", "c", "ab/*/x/**"], None, ["a/b", "c"], ["a/", "ab/"]),
        (["*/x", "a/*"], None, [], [""]),
        (["/**"], None, [""], ["/"]),
    ],
)
def test_a_filter_says_where_its_topics_are_found(
    given: list[str], plain: tuple[str, ...] | None, topics: list[str], prefixes: list[str]
) -> None:
    filter = TopicFilter.parse(given)
    assert (filter.plain, list(filter.bounds.topics), list(filter.bounds.prefixes)) == (plain, topics, prefixes)
    assert filter.unrestricted == (prefixes == [""] and "*/x" not in given)
    assert filter.shown == tuple(sorted(given))


@given(filters, topics)
def test_what_matches_lies_within_the_bounds(filter: TopicFilter, topic: str) -> None:
    bounds = filter.bounds
    inside = topic in bounds.topics or topic.startswith(bounds.prefixes)
    assert inside or not filter.matches((topic,))


# --- the index ---


def match(index: TopicIndex[T], topics: tuple[str, ...]) -> Collection[T]:
    """Return the values that the index finds when nothing changes meanwhile."""
    return steps_of(index.match(topics, Budget(1_000)))[0]


def test_the_index_finds_a_value_once_though_it_matches_twice() -> None:  # C11
    index: TopicIndex[str] = TopicIndex()
    index.add(TopicFilter.parse(["a", "b", "*", "**"]), "value")
    assert list(match(index, ("a", "b"))) == ["value"]
    assert list(match(index, ())) == ["value"]


def test_a_value_that_was_removed_can_be_added_again_with_another_filter() -> None:
    index: TopicIndex[str] = TopicIndex()
    index.add(TopicFilter.parse(["a/b", "a/**"]), "value")
    index.add(TopicFilter.parse(["a/b/c"]), "other")
    index.remove(TopicFilter.parse(["a/b", "a/**"]), "value")
    assert set(match(index, ("a/b", "a/b/c"))) == {"other"}
    index.add(TopicFilter.parse(["x"]), "value")
    assert set(match(index, ("a/b",))) == set()
    assert set(match(index, ("x",))) == {"value"}
    assert list(index) == ["other", "value"]


def test_an_index_that_was_emptied_holds_no_part_of_the_tree() -> None:
    index: TopicIndex[int] = TopicIndex()
    filters = [TopicFilter.parse([f"a/{number}/*", f"b/{number}/**"]) for number in range(50)]
    for number, filter in enumerate(filters):
        index.add(filter, number)
    for number, filter in enumerate(filters):
        index.remove(filter, number)
    index.add(TopicFilter.parse(["**"]), 50)
    index.remove(TopicFilter.parse(["**"]), 50)
    assert not any((index._values, index._shapes, index._any_topic))


def test_an_index_holds_what_denies_topics_apart_while_there_is_such_a_filter() -> None:
    index, denying = TopicIndex[str](), TopicFilter((), True, ("a/*",))
    index.add(TopicFilter(), "open")
    index.add(denying, "denying")
    index.add(TopicFilter(("a/*", "b"), False, ("a/x",)), "topics only")
    assert set(match(index, ("a/b",))) == {"open", "topics only"}
    assert set(match(index, ("a/x",))) == {"open"}
    assert set(match(index, ("a/x", "b"))) == {"open", "denying", "topics only"}
    assert set(match(index, ())) == {"open", "denying"}
    assert set(index.values) == {"open", "denying", "topics only"}
    index.remove(TopicFilter(("a/*", "b"), False, ("a/x",)), "topics only")
    index.remove(denying, "denying")
    assert index._denying is None
    assert set(index.values) == set(match(index, ("a/x",))) == {"open"}


def test_those_whose_filters_deny_topics_are_compared_in_steps() -> None:
    index = TopicIndex[int]()
    for number in range(1_000):
        index.add(TopicFilter((), True, (f"own/{number}", "*/x")), number)
    index.add(TopicFilter(("other",)), -1)
    found, costs = steps_of(index.match(("own/7",), Budget(100)))
    assert set(found) == set(range(1_000)) - {7}
    assert len(costs) > 1_000 * 3 / 100 * 0.9
    assert max(costs) < 100 * 20


def test_a_value_without_broadcasts_costs_a_broadcast_nothing() -> None:
    index = TopicIndex[int]()
    for number in range(1_000):
        index.add(TopicFilter((), False), number)
    index.add(TopicFilter(("a",)), -1)
    assert work(lambda: list(match(index, ()))) < 20
    assert list(match(index, ())) == [-1]


def letters(random: Random, segment: str) -> str:
    return "/".join(random.choices(segment, k=SEGMENTS_MAX))


@pytest.mark.parametrize("segment", ["abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz*"])
def test_a_filter_of_many_segments_takes_no_more_than_16_kib_beside_its_text(segment: str) -> None:
    random, streams = Random(8), 200
    given = [[letters(random, segment) for _ in range(TOPICS_PER_FILTER)] for _ in range(streams)]
    index: TopicIndex[int] = TopicIndex()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number, patterns in enumerate(given):
        index.add(TopicFilter.parse(patterns), number)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / streams <= 16 * 1024


def test_a_publication_costs_one_look_up_for_each_shape_that_fits_it() -> None:
    random, index = Random(9), TopicIndex[int]()
    filters = [
        TopicFilter.parse(["/".join(random.choices("a*", k=random.randint(2, 32))) for _ in range(70)])
        for _ in range(600)
    ]
    for number, filter in enumerate(filters):
        index.add(filter, number)
    short, long = ("/".join("a" * 3),), ("/".join("a" * 32),)
    for topic in (short, long):
        expected = {number for number, filter in enumerate(filters) if filter.matches(topic)}
        assert set(match(index, topic)) == expected
    fitting = {shape for filter in filters for shape in filter._shapes if shape[0] == 32}
    assert work(lambda: match(index, short)) < 20 * 2**3
    assert work(lambda: match(index, long)) < 10 * len(fitting)


def test_a_publication_that_is_for_everyone_ends_its_search_with_the_last_of_them() -> None:
    index = TopicIndex[int]()
    for number in range(10):
        index.add(TopicFilter.parse(["/".join(segments) for segments in product("a*", repeat=6)][1:]), number)
    budget = Budget(1_000)
    assert work(lambda: list(index.match(("a/a/a/a/a/a",), budget))) < 30, "63 look-ups would be 190"


def test_a_topic_that_fits_thousands_of_shapes_is_matched_in_steps() -> None:
    random, index = Random(10), TopicIndex[int]()
    for number in range(100):
        index.add(TopicFilter.parse(["/".join(random.choices("a*", k=32)) for _ in range(50)]), number)
    index.add(TopicFilter.parse(["other"]), 100)  # so that not all are found, which would end it
    found, costs = steps_of(index.match(("/".join("a" * 32),), Budget(100)))
    assert set(found) == set(range(100))
    assert len(costs) > 100 * 50 / 100 * 0.9
    assert max(costs) < 100 * 10, "calls for 100 look-ups, however many shapes there are"


def test_a_pattern_of_very_many_values_is_a_step_by_itself() -> None:
    index = TopicIndex[int]()
    for number in range(5_000):
        index.add(TopicFilter.parse([f"a/{segment}" for segment in "bcde"]), number)
    index.add(TopicFilter.parse(["other"]), -1)
    steps = index.match(("a/b", "a/c", "a/d", "a/e"), Budget(5_000 // VALUES_PER_UNIT))
    assert len(list(steps)) == 4


@given(st.lists(filters, min_size=2, max_size=12), publications, st.data())
@settings(max_examples=3 * settings().max_examples)
def test_who_stays_is_found_whoever_comes_and_goes_between_two_steps(
    given_filters: list[TopicFilter], on: tuple[str, ...], data: st.DataObject
) -> None:
    index: TopicIndex[int] = TopicIndex()
    here = dict(enumerate(given_filters[::2]))
    coming = {~number: filter for number, filter in enumerate(given_filters[1::2])}
    everyone = here | coming
    for number, filter in here.items():
        index.add(filter, number)
    stay = data.draw(st.sets(st.sampled_from(list(here))), label="stay")
    leaving = [number for number in here if number not in stay]
    steps = index.match(on, Budget(1))
    while True:
        try:
            next(steps)
        except StopIteration as found:
            result = set(found.value)
            break
        if data.draw(st.booleans(), label="leave") and leaving:
            index.remove(here[leaving[-1]], leaving.pop())
        if data.draw(st.booleans(), label="come") and coming:
            number, filter = coming.popitem()
            index.add(filter, number)
    assert {number for number in stay if here[number].matches(on)} <= result
    assert all(everyone[value].matches(on) for value in result)


@given(st.lists(filters, max_size=12), st.lists(publications, min_size=1, max_size=6), st.data())
@settings(max_examples=3 * settings().max_examples)
def test_the_index_finds_exactly_who_a_search_through_all_would(
    given_filters: list[TopicFilter], published: list[tuple[str, ...]], data: st.DataObject
) -> None:
    index: TopicIndex[int] = TopicIndex()
    here: dict[int, TopicFilter] = {}
    steps = [*enumerate(given_filters)]
    while steps or here:
        removable = list(here)
        if steps and (not removable or data.draw(st.booleans(), label="add")):
            value, filter = steps.pop()
            here[value] = filter
            index.add(filter, value)
        else:
            value = data.draw(st.sampled_from(removable), label="remove")
            index.remove(here.pop(value), value)
        for on in published:
            found = list(match(index, on))
            assert sorted(found) == sorted(value for value, filter in here.items() if filter.matches(on))
        assert set(index) == set(here)
