"""Chromium, one for the session, and services that its pages come from."""

import logging
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

import gradest
from gradest_service.app import running
from gradest_service.settings import Settings
from tests.browser.plugins import Acme, Gate, Shifted, Slow

# Chromium as a test wants it: it calls nobody on its own account
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICTURES = Path("runs/page")


@pytest.fixture(scope="session")
def url():
    with running() as found:
        yield found


@pytest.fixture(scope="session")
def chromium(pytestconfig):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=pytestconfig.chromium, args=ARGUMENTS)


@pytest.fixture
def start(request):
    """Starts a service with settings of the test's own; gives its URL, and what stops it."""

    def start_one(**settings):
        stack = ExitStack()
        address = stack.enter_context(running(Settings(**{"port": 0, **settings})))
        request.addfinalizer(stack.close)
        return address, stack.close

    return start_one


@pytest.fixture
def visit(chromium, url):
    """Opens the page: visit("#/compare") gives a playwright page of it. No visit may end with an error in the console, or
    have asked another host for anything.

    host: another service's URL. faults: words of errors that the test is about. prepare: called with the page before it loads.
    """
    contexts, wrong = [], []

    def open_one(where="", host=url, faults=(), prepare=lambda page: None, **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # the first pictures wait until kernels are compiled

        def note(kind, text):
            if not any(word in text for word in faults):
                wrong.append(f"{kind}: {text}")

        page.on("console", lambda said: said.type in ("error", "warning") and note(said.type, said.text))
        page.on("pageerror", lambda error: note("exception", str(error)))
        page.on("request", lambda asked: asked.url.startswith((host, "blob:")) or note("request", asked.url))
        prepare(page)
        page.goto(f"{host}/{where}")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(autouse=True, scope="session")
def quiet():
    """A page asks for much; a line for each request would drown what a failing test says."""
    logging.getLogger("gradest_service").setLevel(logging.WARNING)


@pytest.fixture
def acme():
    added = [gradest.registry.register(plugin) for plugin in (Acme, Shifted)]
    yield
    for plugin in added:
        gradest.registry.unregister(plugin)


@pytest.fixture
def gate():
    Gate.asked, Gate.open = threading.Semaphore(0), threading.Event()
    added = [gradest.registry.register(plugin) for plugin in (Gate, Slow)]
    yield Gate
    Gate.open.set()
    for plugin in added:
        gradest.registry.unregister(plugin)
