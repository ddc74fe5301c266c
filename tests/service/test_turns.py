"""Whose work runs next: callers take turns, and what runs together is bounded."""

import asyncio

import pytest

from gradest_service.resources.memory import Memory
from gradest_service.resources.turns import Need, Turns


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Queue:
    """Turns, and the order in which they were given."""

    def __init__(self, threads=1, limit=100, for_heavy=75):
        self.memory = Memory(limit, for_heavy)
        self.turns = Turns(threads, self.memory)
        self.order = []
        self.tasks = {}

    async def ask(self, name, caller="", need=Need()):  # noqa: B008
        async def wait():
            await self.turns.take(need, caller)
            self.order.append(name)

        self.tasks[name] = asyncio.create_task(wait())
        await settle()

    async def finish(self, need=Need()):  # noqa: B008
        self.turns.give_back(need)
        await settle()


def check(scenario):
    asyncio.run(scenario())


def test_callers_take_turns():
    async def scenario():
        queue = Queue()
        for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
            await queue.ask(name, caller=name[0])
        for _ in range(6):
            await queue.finish()
        assert queue.order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]
        assert queue.turns.waiting() == 0

    check(scenario)


def test_one_that_left_the_queue_delays_nobody():
    async def scenario():
        queue = Queue()
        for name in ("a1", "a2", "b1"):
            await queue.ask(name, caller=name[0])
        queue.tasks["a2"].cancel()
        await settle()
        assert queue.turns.waiting() == 1
        await queue.finish()
        assert queue.order == ["a1", "b1"]

    check(scenario)


def test_a_turn_that_came_as_its_task_was_cancelled_is_given_back():
    async def scenario():
        queue = Queue()
        for name in ("a1", "a2", "b1"):
            await queue.ask(name, caller=name[0])
        queue.turns.give_back(Need())  # the turn is b1's or a2's, whose task has not yet run
        for name in ("a2", "b1"):
            queue.tasks[name].cancel()
        await settle()
        await queue.ask("c1", caller="c")
        assert queue.order[-1] == "c1"

    check(scenario)


def test_heavy_work_leaves_a_thread_and_memory_is_not_taken_twice():
    async def scenario():
        queue, heavy, light = Queue(threads=3), Need(heavy=True, bytes=50), Need(bytes=20)
        await queue.ask("first", need=heavy)
        await queue.ask("no room", need=heavy)  # of 75
        await queue.ask("nor may this pass it", need=Need(heavy=True, bytes=1))
        await queue.ask("light", need=light)
        assert queue.order == ["first", "light"]
        assert queue.memory.used == 70
        await queue.finish(heavy)
        assert queue.order[2:] == ["no room", "nor may this pass it"]
        await queue.ask("a third thread", need=Need(heavy=True))
        assert len(queue.order) == 4

    check(scenario)


@pytest.mark.parametrize("unsent", [80, 30])
def test_answers_that_nobody_reads_keep_their_caller_waiting_first(unsent):
    """Where they leave room, another caller's work runs though it came later."""

    async def scenario():
        queue = Queue()
        with queue.memory.unsent(unsent, "slow"):
            await queue.ask("slow", caller="slow", need=Need(bytes=25))
            await queue.ask("other", caller="other", need=Need(bytes=25))
            assert queue.order == ([] if unsent == 80 else ["other"])
        await settle()
        if unsent == 30:
            await queue.finish(Need(bytes=25))
        assert sorted(queue.order) == (["slow"] if unsent == 80 else ["other", "slow"])
        assert queue.memory.used == 25

    check(scenario)


def test_what_arrives_while_others_wait_does_not_pass_them():
    """Only where nobody waits is a turn taken at once."""

    async def scenario():
        queue, large, small = Queue(threads=2), Need(bytes=80), Need(bytes=10)
        await queue.ask("first", need=large)
        await queue.ask("no room", need=large)
        await queue.ask("later", need=small)
        assert queue.order == ["first"]
        await queue.finish(large)
        assert queue.order == ["first", "no room", "later"]
        assert queue.memory.used == 90
        await queue.finish(large)
        await queue.finish(small)
        assert queue.memory.used == 0

    check(scenario)
