"""Topics, topic filters, and the index that finds who a publication is for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_app.errors import InvalidTopic, TooManyTopics
from sse_app.topics import TOPIC_MAX, TOPICS_PER_FILTER, TOPICS_PER_PUBLICATION, TopicFilter, TopicIndex, check_topics
from tests.test_characters import REFUSED, UNUSUAL

MALFORMED = ["", "/", "/a", "a/", "a//b", "x" * (TOPIC_MAX + 1), "e\u0301", *(f"a{char}b" for char in REFUSED)]

# Few words, so that random filters and topics often match, nearly match, and share a part of the tree.
words = st.sampled_from(["a", "b", "c"])
topics = st.lists(words, min_size=1, max_size=4).map("/".join)
patterns = st.builds(
    lambda segments, rest: "/".join([*segments, *rest]),
    st.lists(words | st.just("*"), max_size=4),
    st.sampled_from([[], ["**"]]),
).filter(bool)
filters = st.lists(patterns, max_size=4).map(TopicFilter.parse)
publications = st.lists(topics, max_size=3, unique=True).map(tuple)


def reference(pattern: list[str], topic: list[str]) -> bool:
    """Whether a pattern matches, one segment after the other, as the module's docstring says it."""
    if pattern == ["**"]:
        return True
    if not pattern or not topic:
        return pattern == topic
    return pattern[0] in ("*", topic[0]) and reference(pattern[1:], topic[1:])


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


@pytest.mark.parametrize("topic", ["*", "**", "a/*", "a/**", "a*", "*/b", "a/b*c"])
def test_a_publication_has_no_wildcards(topic: str) -> None:
    with pytest.raises(InvalidTopic, match="wildcard"):
        check_topics([topic])


@pytest.mark.parametrize("pattern", ["a*", "*a", "***", "a/**/b", "**/a", "a/b*", "a/*b/c", "**/**"])
def test_wildcards_stand_for_whole_segments_and_the_rest_only_at_the_end(pattern: str) -> None:
    with pytest.raises(InvalidTopic, match="topic filter"):
        TopicFilter.parse([pattern])


def test_topics_are_kept_in_order_and_each_once() -> None:
    assert check_topics(["b", "a", "b"]) == ("b", "a")
    assert check_topics([]) == ()


def test_equal_filters_are_equal_however_they_were_given() -> None:
    assert TopicFilter.parse(["b", "a/*", "b"]) == TopicFilter.parse(["a/*", "b"])
    assert hash(TopicFilter.parse(["b", "a"])) == hash(TopicFilter.parse(["a", "b"]))
    assert TopicFilter.parse([]) == TopicFilter()


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
        ("**", ["a", "a/b", "a/b/c"], []),
    ],
)
def test_a_pattern_matches_these_topics_and_not_those(pattern: str, matched: list[str], others: list[str]) -> None:
    filter = TopicFilter.parse([pattern])
    assert [topic for topic in matched + others if filter.matches((topic,))] == matched


def test_a_publication_without_topics_is_for_everyone() -> None:
    assert TopicFilter.parse(["a"]).matches(())


def test_a_filter_without_patterns_matches_everything() -> None:
    assert TopicFilter().matches(("a/b",))


def test_any_topic_may_match_any_pattern() -> None:
    assert TopicFilter.parse(["x", "a/*"]).matches(("y", "a/b"))
    assert not TopicFilter.parse(["x", "a/*"]).matches(("y", "a"))


@given(patterns, topics)
def test_matching_is_that_of_the_definition(pattern: str, topic: str) -> None:
    assert TopicFilter.parse([pattern]).matches((topic,)) == reference(pattern.split("/"), topic.split("/"))


def test_a_thousand_wildcards_are_no_pattern() -> None:  # K6
    with pytest.raises(InvalidTopic):
        TopicFilter.parse(["*/" * 500 + "*"])
    with pytest.raises(InvalidTopic):
        TopicFilter.parse(["a*" * 128])


# --- the index ---


def test_the_index_finds_a_value_once_though_it_matches_twice() -> None:  # C11
    index: TopicIndex[str] = TopicIndex()
    index.add(TopicFilter.parse(["a", "b", "*", "**"]), "value")
    assert list(index.match(("a", "b"))) == ["value"]
    assert list(index.match(())) == ["value"]


def test_a_value_that_was_removed_can_be_added_again_with_another_filter() -> None:
    index: TopicIndex[str] = TopicIndex()
    index.add(TopicFilter.parse(["a/b", "a/**"]), "value")
    index.add(TopicFilter.parse(["a/b/c"]), "other")
    index.remove(TopicFilter.parse(["a/b", "a/**"]), "value")
    assert set(index.match(("a/b", "a/b/c"))) == {"other"}
    index.add(TopicFilter.parse(["x"]), "value")
    assert set(index.match(("a/b",))) == set()
    assert set(index.match(("x",))) == {"value"}
    assert list(index) == ["other", "value"]


def test_an_index_that_was_emptied_holds_no_part_of_the_tree() -> None:
    index: TopicIndex[int] = TopicIndex()
    filters = [TopicFilter.parse([f"a/{number}/*", f"b/{number}/**"]) for number in range(50)]
    for number, filter in enumerate(filters):
        index.add(filter, number)
    for number, filter in enumerate(filters):
        index.remove(filter, number)
    assert not index._root.children


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
            found = list(index.match(on))
            assert sorted(found) == sorted(value for value, filter in here.items() if filter.matches(on))
        assert set(index) == set(here)
