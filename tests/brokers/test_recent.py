"""The newest publications that a node holds of a log that others keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers import recent as module
from sse_app.brokers.offsets import OVERHEAD
from sse_app.brokers.recent import Recent
from sse_app.publication import Position, Publication
from sse_app.topics import TopicFilter


def publication(offset: int, *topics: str, size: int = 10) -> Publication:
    return Publication(Position("e", offset), "message", topics, b"x" * size, 0.0)


def filled(*topics: str, **limits: int) -> Recent:
    """A publication on each of these topics, from offset 1 on; "" is none."""
    recent = Recent(**limits)
    for offset, topic in enumerate(topics, 1):
        recent.append(publication(offset, *([topic] if topic else [])))
    return recent


def offsets(recent: Recent, after: int, until: int, count: int = 100) -> list[int] | None:
    page = recent.page(after, until, count)
    return None if page is None else [item.position.offset for item in page]


def test_a_page_begins_behind_an_offset_and_ends_with_another() -> None:
    recent = filled(*"abcdef")
    assert offsets(recent, 0, 6) == [1, 2, 3, 4, 5, 6]
    assert offsets(recent, 2, 4) == [3, 4]
    assert offsets(recent, 2, 9) == [3, 4, 5, 6]
    assert offsets(recent, 0, 6, count=2) == [1, 2]


def test_what_is_not_held_is_read_from_the_log() -> None:
    recent = filled(*"abcdef", count=3)
    assert offsets(recent, 2, 6) is None
    assert offsets(recent, 3, 6) == [4, 5, 6]
    assert offsets(recent, 6, 9) is None


def test_a_page_of_large_publications_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_BYTES", 25)
    recent = filled(*"abcdef")
    assert offsets(recent, 0, 6) == [1, 2, 3]
    recent.append(publication(7, size=100))
    assert offsets(recent, 6, 7) == [7]


def test_going_back_begins_with_the_one_asked_for() -> None:
    recent = filled(*"abcdef", count=4)
    assert [item.position.offset for item in recent.back_from(5, 2)] == [5, 4]
    assert [item.position.offset for item in recent.back_from(6, 99)] == [6, 5, 4, 3]
    assert not recent.back_from(2, 2), "it is in the log"
    assert not recent.back_from(7, 2), "it was not received yet, and comes before the others"


def test_the_oldest_go_by_bytes_too_but_not_the_newest() -> None:
    recent = Recent(size=3 * OVERHEAD)
    for offset in range(1, 6):
        recent.append(publication(offset, size=OVERHEAD // 4))
    assert offsets(recent, 3, 5) == [4, 5]
    assert offsets(recent, 2, 5) is None
    recent.append(publication(6, size=10 * OVERHEAD))
    assert offsets(recent, 5, 6) == [6]
    assert offsets(recent, 4, 6) is None


def test_what_is_before_a_break_is_forgotten() -> None:
    recent = filled(*"abc")
    recent.append(publication(7, "a"))
    assert (recent.top, offsets(recent, 6, 7), offsets(recent, 0, 7)) == (7, [7], None)
    assert recent.search_from(7, TopicFilter(("b",))) == 6, "of what is below the break nothing is known"


def test_what_the_log_has_trimmed_is_forgotten() -> None:
    recent = filled(*"abcdef")
    recent.trim(4)
    assert offsets(recent, 3, 6) is None
    assert offsets(recent, 4, 6) == [5, 6]
    recent.trim(99)
    assert offsets(recent, 5, 6) is None
    recent.append(publication(7))
    assert offsets(recent, 6, 7) == [7]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), 6),
        (("**",), 6),
        (("*",), 6),
        (("a/**",), 5),
        (("d/**",), 4),
        (("a/*",), 3),
        (("d", "*/x"), 4),
        (("a",), 5),
        (("d",), 4),
        (("a", "d"), 5),
        (("silent",), 3),
    ],
)
def test_above_its_newest_publication_a_topic_needs_no_search(patterns: tuple[str, ...], expected: int) -> None:
    recent = filled("a", "b", "", "d", "a", "c")
    assert recent.search_from(6, TopicFilter(patterns)) == expected


@pytest.mark.parametrize(
    ("patterns", "denied", "expected"),
    [
        ((), (), 6),
        ((), ("a", "c"), 4),
        (("b", "d"), (), 4),
        (("silent",), (), 0),
        (("b",), ("*",), 0),
        (("*",), ("d",), 6),
    ],
)
def test_broadcasts_and_what_is_denied_end_a_search_for_nobody_who_does_not_see_them(
    patterns: tuple[str, ...], denied: tuple[str, ...], expected: int
) -> None:
    recent = filled("a", "b", "", "d", "a", "c")
    assert recent.search_from(6, TopicFilter(patterns, False, denied)) == expected
    assert recent.search_from(6, TopicFilter(patterns, True, denied)) == max(expected, 3)


def test_of_what_was_not_received_yet_nothing_is_known() -> None:
    recent = filled("a", "b")
    assert recent.search_from(5, TopicFilter(("a",))) == 5
    assert recent.search_from(1, TopicFilter(("b",))) == 0, "never above what was asked"


def test_a_search_below_extends_what_is_known() -> None:
    recent = Recent()
    recent.restart(10)
    recent.append(publication(11, "a"))
    assert recent.search_from(11, TopicFilter(("b",))) == 10
    recent.add_below(2, 5, [publication(4, "b")])
    assert recent.search_from(11, TopicFilter(("b",))) == 10, "not next to what is known"
    recent.add_below(5, 12, [publication(12, "b")])
    recent.append(publication(12, "a"))
    assert recent.search_from(12, TopicFilter(("b",))) == 10, "above the top they come by themselves"
    recent.add_below(5, 10, [publication(6, "b"), publication(8, "b", "a")])
    assert recent.search_from(12, TopicFilter(("b",))) == 8
    assert recent.search_from(12, TopicFilter(("a",))) == 12
    assert recent.search_from(12, TopicFilter(("c",))) == 5


def test_topics_without_number_are_not_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOPICS_MAX", 3)
    recent = filled(*"abc")
    assert recent.search_from(3, TopicFilter(("silent",))) == 0
    recent.append(publication(4, "d"))
    assert recent.search_from(4, TopicFilter(("a",))) == 4


topics = st.sampled_from(["", "a", "b", "c"])


@given(st.lists(topics, max_size=30), st.integers(1, 10), topics.filter(bool), st.booleans())
def test_nothing_that_matches_is_above_what_is_said(
    published: list[str], count: int, topic: str, broadcasts: bool
) -> None:
    recent = filled(*published, count=count)
    below = recent.search_from(len(published), TopicFilter((topic,), broadcasts))
    matching = [offset for offset, name in enumerate(published, 1) if name == topic or (broadcasts and not name)]
    assert below == max(matching, default=0)


@given(
    st.lists(topics, min_size=1, max_size=30),
    st.integers(1, 10),
    st.integers(1, 4),
    st.integers(0, 10),
    st.sampled_from(["a", "b", "*", "a/**", "x/*"]),
    st.booleans(),
    st.data(),
)
def test_nothing_that_matches_is_above_what_is_said_of_any_offset(
    published: list[str],
    count: int,
    topics_max: int,
    begun: int,
    pattern: str,
    broadcasts: bool,
    data: st.DataObject,
) -> None:
    topic_filter = TopicFilter((pattern,), broadcasts)
    log = [publication(offset, *([topic] if topic else [])) for offset, topic in enumerate(published, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TOPICS_MAX", topics_max)
        recent = Recent(count=count)
        recent.restart(min(begun, len(log)))
        for item in log[recent.top :]:
            recent.append(item)
            if data.draw(st.booleans(), label="add"):
                until = data.draw(st.integers(1, recent.top), label="until")
                after = data.draw(st.integers(0, until - 1), label="after")
                recent.add_below(after, until, log[after:until])
            top = data.draw(st.integers(0, recent.top), label="top")
            below = recent.search_from(top, topic_filter)
            assert below <= top
            assert not [item for item in log[below:top] if topic_filter.matches(item.topics)]
