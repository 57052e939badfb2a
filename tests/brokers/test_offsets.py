"""The index of offsets by topic finds the same publications as a scan of all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers import offsets as module
from sse_app.brokers.offsets import SortedTexts, TopicOffsets
from sse_app.topics import TopicFilter

texts = st.text("ab/!0", min_size=1, max_size=4)


@given(st.lists(texts, max_size=60), texts, st.sampled_from(["", "a/", "/", "a/b/"]), st.integers(1, 5))
def test_texts_are_in_order_whatever_comes_and_goes(changes: list[str], start: str, prefix: str, count: int) -> None:
    many, here = SortedTexts(), set[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BUCKET", 2)
        for text in changes:
            if text in here:
                many.remove(text)
                here.remove(text)
            else:
                many.add(text)
                here.add(text)
            start = max(prefix, start)
            expected = sorted(text for text in here if text >= start and text.startswith(prefix))[:count]
            assert many.beginning_with(prefix, start, count) == expected


words = st.sampled_from(["a", "b"])
topics = st.lists(st.lists(words, min_size=1, max_size=3).map("/".join), max_size=3, unique=True).map(tuple)
filters = st.lists(
    st.lists(words | st.just("*"), min_size=1, max_size=3).map("/".join) | st.sampled_from(["a/**", "b/a/**"]),
    min_size=1,
    max_size=3,
).map(TopicFilter.parse)


@given(st.lists(st.tuples(topics, filters, st.booleans()), max_size=40), st.integers(1, 9))
def test_what_a_filter_matches_is_found_a_few_topics_at_a_time(
    steps: list[tuple[tuple[str, ...], TopicFilter, bool]], count: int
) -> None:
    index, log = TopicOffsets(), dict[int, tuple[str, ...]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NEW_TOPICS", 2)
        patch.setattr(module, "SEARCHES", 2)
        patch.setattr(module, "SEARCHED_TOPICS", 6)
        for offset, (on, topic_filter, trim) in enumerate(steps, 1):
            index.append(on, offset)
            log[offset] = on
            if trim:
                oldest = min(log)
                index.trim(log.pop(oldest), oldest)
            first = min(log, default=0)
            found = None
            for _ in range(100):
                if (found := index.topics(topic_filter, count)) is not None:
                    break
            assert found is not None
            matching = [offset for offset, on in log.items() if topic_filter.matches(on)]
            newest = [offset for offset in index.newest(found, offset, 100) if offset >= first]
            assert newest == matching[::-1]
            assert index.newest(found, offset, 2)[: len(newest)] == newest[:2]
            assert index.oldest(found, first - 1, 2) == matching[:2]
            assert len(index) == len({topic for on in log.values() for topic in on or ("",)})


def test_a_topic_that_many_publications_are_on_is_trimmed_by_halves() -> None:
    index = TopicOffsets()
    for offset in range(1, 10_001):
        index.append(("t",), offset)
        if offset > 100:
            index.trim(("t",), offset - 100)
    assert len(index._offsets["t"]) <= 200
    assert index.newest(["t"], 10_000, 3) == [10_000, 9_999, 9_998]


def test_the_newest_of_a_topic_is_kept_where_the_log_goes_further_back() -> None:
    index = TopicOffsets()
    index.append(("a",), 5)
    index.trim(("a",), 5, keep_newest=True)
    index.add_older(("a", "b"), 3)
    assert [index.newest(topic, 9, 9) for topic in (["a"], ["b"], ["c"])] == [[5], [3], []]


def test_no_more_searches_are_kept_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEARCHED_TOPICS", 600)
    index = TopicOffsets()
    for offset in range(1, 101):
        index.append((f"t/{offset}",), offset)
    for number in range(20):
        found = index.topics(TopicFilter.parse(["t/*", f"{number}/*"]), 10**6) or ()
        assert len(found) == 100 + 1, "with that of broadcasts"
    assert len(index._searches) == 5
    for number in range(module.SEARCHES + 50):
        index.topics(TopicFilter.parse([f"nothing/{number}/*"]), 10**6)
    assert len(index._searches) == module.SEARCHES
