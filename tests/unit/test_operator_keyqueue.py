"""The order in which ClusterIPs are looked at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbless_operator.keyqueue import URGENT_IN_A_ROW, KeyQueue


def test_the_queue_gives_each_key_once_in_the_order_of_its_time():
    queue = KeyQueue()
    queue.add("b", 2)
    queue.add("a", 1)
    queue.add("a", 9)
    assert [queue.take(0), queue.take(1), queue.take(1), queue.take(5), queue.take(99)] == [
        None,
        "a",
        None,
        "b",
        None,
    ]
    queue.add("a", 1)
    queue.postpone("a", 7)
    assert (queue.take(6), queue.next_due(), len(queue)) == (None, 7, 1)


def test_what_is_urgent_waits_for_no_thousand_others_and_the_newest_comes_first():
    queue = KeyQueue()
    for number in range(1000):
        queue.add(f"bulk-{number}", number / 1000)
    queue.add("early", 2, urgent=True)
    queue.add("late", 2, urgent=True)
    assert [queue.take(2), queue.take(2), queue.take(2)] == ["late", "early", "bulk-0"]


def test_an_urgent_flood_leaves_the_others_their_turns():
    queue = KeyQueue()
    for number in range(3):
        queue.add(f"bulk-{number}", number)
    taken = []
    for number in range(3 * (URGENT_IN_A_ROW + 1)):
        queue.add(f"urgent-{number}", 10, urgent=True)
        taken.append(queue.take(10))
    assert [key for key in taken if key and key.startswith("bulk")] == ["bulk-0", "bulk-1", "bulk-2"]


def test_a_postponed_key_is_urgent_no_longer():
    queue = KeyQueue()
    queue.add("a", 1, urgent=True)
    queue.postpone("a", 5)
    assert queue.take(4) is None
    assert queue.take(5) == "a"


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.integers(0, 9), st.sampled_from(["add", "urgent", "postpone", "take"])
        ),
        max_size=60,
    )
)
def test_no_key_is_lost_or_given_twice(steps):
    queue, due = KeyQueue(), {}
    for key, time, step in steps:
        if step == "take":
            taken = queue.take(time)
            assert taken is None or taken in due
            if taken is None:
                assert all(when > time for when in due.values())
            else:
                del due[taken]
        elif step == "postpone":
            queue.postpone(key, time)
            due[key] = time
        else:
            # Whoever asks urgently asks for now.
            now = 0 if step == "urgent" else time
            queue.add(key, now, urgent=step == "urgent")
            due[key] = min(now, due.get(key, now))
        assert len(queue) == len(due)
        assert queue.next_due() == min(due.values(), default=None)
