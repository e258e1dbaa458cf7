"""Messages between the two processes of dataplane arrive whole and in order, and nobody waits for them."""

import random

import pytest

from lbless_nodeagent.dataplane.channel import Channel, Closed


def ends() -> tuple[Channel, Channel]:
    one, other = Channel.pair()
    return Channel(one), Channel(other)


@pytest.mark.parametrize("seed", range(10))
def test_messages_of_any_size_arrive_in_order_also_where_the_socket_is_full(seed: int):
    chosen = random.Random(seed)
    one, other = ends()
    sent = [chosen.randbytes(chosen.choice((0, 10, 1000, 300_000))) for _ in range(60)]
    for message in sent:
        one.send(message)
    received: list[object] = []
    while len(received) < len(sent):
        limit = chosen.randrange(1, 5)
        some = other.receive(limit)
        assert len(some) <= limit
        received += some
        one.flush()
    assert received == sent
    assert not one.is_blocked
    assert not other.has_more
    assert other.receive(10) == []


def test_what_is_left_by_a_limit_is_announced():
    one, other = ends()
    for number in range(3):
        one.send(number)
    assert other.receive(2) == [0, 1]
    assert other.has_more
    assert other.receive(2) == [2]
    assert not other.has_more


def test_the_end_of_the_other_process_is_told_after_its_last_words():
    one, other = ends()
    one.send("last words")
    one.close()
    assert other.receive(10) == ["last words"]
    with pytest.raises(Closed):
        other.receive(10)
    with pytest.raises(Closed):
        other.send("to nobody")
