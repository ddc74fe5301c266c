"""The client's methods have the signatures of the library's functions, and both clients have the same."""

import inspect

import pytest

import gradest
from tests.client.scripted import CALLS

LOSS_ALONE = {"flatten", "allow_inf", "rows"}  # f and its batch are here, and requests are finite


@pytest.mark.parametrize(
    ("name", "here_alone"),
    [
        ("sample", {"dtype"}),
        ("estimate", {"executor", *LOSS_ALONE}),
        ("compare", {"executor", *LOSS_ALONE}),
        ("recommend", {"progress"}),
    ],
)
def test_signatures_are_the_library_s(name, here_alone):
    ours = inspect.signature(getattr(gradest.Client, name)).parameters
    theirs = inspect.signature(getattr(gradest, name)).parameters
    for parameter in set(ours) & set(theirs):
        assert ours[parameter].default == theirs[parameter].default
        assert ours[parameter].kind == theirs[parameter].kind
    wanted = [
        "objective" if parameter == "f" else parameter for parameter in theirs if parameter not in ("state", "warm_up")
    ]
    assert list(ours) == ["self", *(parameter for parameter in wanted if parameter not in here_alone)]


def test_credit_has_the_library_s_signature():
    ours, theirs = (inspect.signature(owner.credit).parameters for owner in (gradest.Client, gradest))
    assert list(ours) == ["self", *theirs]
    assert all(ours[name].default == theirs[name].default for name in theirs)


def test_both_clients_have_the_same_methods():
    names = {name for name, value in inspect.getmembers(gradest.Client, inspect.isfunction) if name[0] != "_"}
    calls = {"expect", "forward", "backward", *CALLS, "plugins", "version", "neuron", "neurons"}
    assert names >= calls | {"close"}
    for name in names:
        ours, theirs = getattr(gradest.Client, name), getattr(gradest.AsyncClient, name)
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert ours.__doc__ == theirs.__doc__
        assert ours.__doc__
        assert ours.__name__ == name


def test_expect_has_the_library_s_signature():
    ours = inspect.signature(gradest.Client.expect).parameters
    theirs = inspect.signature(gradest.expect).parameters
    here_alone = LOSS_ALONE - {"flatten"}
    assert list(ours) == ["self", *(name for name in theirs if name not in here_alone)]
    assert {name: ours[name].default for name in ours if name != "self"} == {
        name: theirs[name].default for name in theirs if name not in here_alone
    }
