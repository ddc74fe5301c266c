from __future__ import annotations

import pickle
import signal
import threading

import pytest
import torch

from gradest.errors import InvalidInput
from gradest_experiments.engine.checkpoint import deferred_interrupt, load_checkpoint, save_checkpoint, write_atomically


def test_a_checkpoint_comes_back_whole(tmp_path):
    path = tmp_path / "new" / "checkpoint.pt"
    state = {
        "weights": {"w": torch.rand(3, dtype=torch.float64)},
        "sum": 0.1 + 0.2,
        "rng": torch.get_rng_state(),
        "list": [1],
    }
    save_checkpoint(path, state)
    found = load_checkpoint(path)
    assert torch.equal(found["weights"]["w"], state["weights"]["w"])
    assert torch.equal(found["rng"], state["rng"])
    assert found["sum"] == state["sum"]
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(new):
        new.write_text("half of the ne")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"not a checkpoint"]
)
def test_damaged_checkpoints_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"w": torch.rand(100)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidInput, match=r"checkpoint\.pt is damaged"):
        load_checkpoint(path)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the file's code was run",))

    path = tmp_path / "checkpoint.pt"
    torch.save({"w": Bomb()}, path)
    with pytest.raises(InvalidInput):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(InvalidInput):
        load_checkpoint(path)


def test_something_else_that_was_saved_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InvalidInput, match="is not a checkpoint"):
        load_checkpoint(tmp_path / "list.pt")


def test_the_first_interrupt_waits_and_the_second_strikes():
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as waiting:  # noqa: PT012
        assert not waiting()
        signal.raise_signal(signal.SIGINT)
        assert waiting()
        reached.append("after the first")
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_single_interrupt_comes_at_the_end_of_the_block():
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        reached.append("end")
    assert reached == ["end"]


def test_an_error_in_the_block_is_not_hidden_by_the_interrupt():
    with pytest.raises(ValueError, match="of the block"), deferred_interrupt():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        raise ValueError("of the block")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_program_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("theirs"))
    try:
        with deferred_interrupt() as waiting:
            signal.raise_signal(signal.SIGINT)
            assert not waiting()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["theirs"]


def test_it_does_nothing_in_another_thread():
    found = []

    def enter():
        with deferred_interrupt() as waiting:
            found.append(waiting())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False]
