"""The search page: what it serves and refuses, and a browser that types, finds, clicks and sees the right second."""

import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
from helpers.media import steady, write_clip
from helpers.media_alone import write_sound
from helpers.small_model import write_model

import vatt
from vatt import search
from vatt.inference.search.cards import clock, key_frame, search_page

FAKE = ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream")
gradio = pytest.importorskip("gradio", reason="Gradio comes with pip install -e '.[serve]'")
from fastapi.testclient import TestClient  # noqa: E402

from vatt.inference.search.server import Page, make_app  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory, corpus) -> Path:
    """A folder with two films, and a file that is not indexed."""
    folder = tmp_path_factory.mktemp("films")
    for name, seconds in (("one film & more", 6), ("two", 4)):
        write_clip(folder / f"{name}.mp4", steady(seconds, 10), gop=5)
    (folder / "secret.txt").write_text("not indexed")
    write_model(folder / "run", corpus)
    return folder


@pytest.fixture(scope="module")
def index(place) -> vatt.SearchIndex:
    files = sorted(place.glob("*.mp4"))
    return vatt.SearchIndex(vatt.embed(place / "run/model", files, every=1, window=1), place / "run/model")


@pytest.fixture(scope="module")
def app(index):
    return make_app(index, "127.0.0.1")


@pytest.fixture
def client(app):
    return TestClient(app, base_url="http://127.0.0.1:7860")


def test_files_come_in_ranges_and_only_those_of_the_index(client, place):
    film = place / "two.mp4"
    whole = film.read_bytes()
    assert client.get("/clip", params={"path": str(film)}).content == whole
    part = client.get("/clip", params={"path": str(film)}, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole)}"
    picture = client.get("/frame", params={"path": str(film), "start": 1, "end": 2})
    assert picture.content[:2] == b"\xff\xd8"
    for path in (place / "secret.txt", "/etc/passwd", f"{place}/../{place.name}/two.mp4", "", "two.mp4"):
        for route in ("/clip", "/frame"):
            assert client.get(route, params={"path": str(path), "start": 0}).status_code == 404
    assert client.get(f"/gradio_api/file={quote(str(place / 'secret.txt'))}").status_code in (403, 404)
    assert client.get("/gradio_api/file=/etc/passwd").status_code in (403, 404)


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"host": "evil.example"}, "/"),
        ({"origin": "http://evil.example"}, "/"),
        ({"origin": "http://127.0.0.1:1234"}, "/"),  # another server on this machine
        ({"sec-fetch-site": "cross-site", "sec-fetch-dest": "image"}, "/frame"),
        ({"sec-fetch-site": "cross-site", "sec-fetch-dest": "iframe"}, "/"),
        ({}, "/gradio_api/proxy=https://evil.example/"),
    ],
)
def test_other_sites_and_names_are_refused(client, headers, path):
    assert client.get(path, headers=headers).status_code == 403


def test_the_page_asks_nobody_else(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "fonts.googleapis.com/css" not in page.text
    linked = client.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"})
    assert linked.status_code == 200  # an address somebody was sent


def test_the_address_fills_in_only_what_it_names(index):
    """A page under load hears of its address when a visitor has typed already."""
    (named,) = (fn.fn for fn in Page(index).blocks(gradio).fns.values() if fn.name == "from_address")
    left = gradio.skip()
    assert named(SimpleNamespace(query_params={})) == (left,) * 5
    words, where, best, top, found = named(SimpleNamespace(query_params={"q": "a square", "top": "8"}))
    assert (words, where, best, top) == ("a square", left, left, 8)
    assert found.count('class="hit-place"') == min(8, len(index))


def test_a_port_in_use_is_one_sentence(monkeypatch, capsys, index, app):
    monkeypatch.setattr(search, "open_index", lambda *a: index)
    monkeypatch.setattr("vatt.inference.search.server.make_app", lambda *a: app)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert search.main(["--index=a.npz", "--serve", f"--port={port}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: port {port} of 127.0.0.1 cannot be had")
    assert said.count("\n") == 1


def test_the_page_in_a_file_has_all_in_it(index, place, tmp_path):
    answer = index.answer(vatt.inference.search.index.Query("text", "a <square>"), 12)
    answer["results"][1]["gone"] = True
    page = search_page([answer], tmp_path)
    assert page.count("data:image/jpeg;base64,") == 9
    assert "a &lt;square&gt;" in page
    assert "the file is gone" in page
    assert quote(os.path.relpath(place / "one film & more.mp4", tmp_path)) + "#t=" in page
    assert "<script" not in page
    assert "http" not in page.replace(answer["query"], "")
    assert [clock(seconds) for seconds in (0, 61.04, 3723.5)] == ["0:00", "1:01", "1:02:03.5"]
    assert len(key_frame(str(place / "two.mp4"), 1.0, 2.0)) < 20_000


@pytest.fixture
def browser():
    """A headless Chromium, driven by Selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium comes with pip install -e '.[test]'")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser: Debian's packages chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1000,900",
        *FAKE,
    ):
        options.add_argument(f"--{flag}")
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as opened:
        yield opened


@pytest.fixture
def address(app):
    """The page, served on a free port."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


def until(condition, seconds: float = 180.0, again=None):
    """What `condition` returns, as soon as it is something; every ten seconds `again` is called."""
    end, pause = time.monotonic() + seconds, time.monotonic() + 10
    while not (found := condition()):
        assert time.monotonic() < end, "the page did not come so far"
        if again and time.monotonic() > pause:
            again()
            pause = time.monotonic() + 10
        time.sleep(0.1)
    return found


def test_a_browser_types_finds_and_plays_the_moment(browser, address, index, place, tmp_path):
    def select(css: str) -> list:
        return browser.find_elements("css selector", css)

    wanted = index.search("a square", top=12)
    later = next(number for number, hit in enumerate(wanted) if hit["start"] > 1)
    browser.get(address)
    words = until(lambda: select("#words textarea, #words input"))[0]
    words.send_keys("a square\n")  # a page that has no script yet does not hear the key
    players = until(
        lambda: len(select(".hit video")) == len(wanted) and select(".hit video"),
        again=lambda: words.send_keys("\n"),
    )
    names = [element.text for element in select(".hit strong")]
    assert names[0] == f"1. {Path(wanted[0]['path']).name}"
    assert [hit["id"] for hit in wanted] == [e.get_attribute("data-id") for e in select(".hit-place")]
    browser.execute_script("arguments[0].scrollIntoView()", players[later])
    browser.execute_script("arguments[0].muted = true; arguments[0].play()", players[later])
    times = until(
        lambda: [t for t in [browser.execute_script("return arguments[0].currentTime", players[later])] if t > 0]
    )
    start = wanted[later]["start"]
    assert start - 0.2 <= times[0] <= start + 5
    until(lambda: f"id={wanted[later]['id']}" in browser.current_url)
    assert "q=a+square" in browser.current_url
    # The address alone shows the query and, first, that moment.
    browser.get(browser.current_url)
    first = until(lambda: select(".hit-place"))[0]
    assert first.get_attribute("data-id") == wanted[later]["id"]
    until(lambda: select("a[href*='like=']"))[1].click()
    until(lambda: "like=" in browser.current_url and len(select(".hit video")) == len(wanted))
    # A film or a sound that is uploaded, and the microphone, are queries as well.
    sound = write_sound(tmp_path / "bell.wav", (9000 * np.sin(np.arange(32_000) / 20)).astype(np.int16), 16_000)
    for kind, file in (("video", place / "two.mp4"), ("audio", sound)):
        browser.get(address)
        until(lambda: [b for b in select("button") if b.text.startswith("A sound or a video")])[0].click()
        until(lambda kind=kind: select(f"input[type=file][accept*={kind}]"))[0].send_keys(str(file))
        alike = [hit["id"] for hit in index.search(**{kind: file}, top=12)]
        until(lambda alike=alike: [place.get_attribute("data-id") for place in select(".hit-place")] == alike)
    browser.get(address)
    until(lambda: [button for button in select("button") if button.text.startswith("A sound or a video")])[0].click()
    for name in ("button[aria-label='Record audio']", ".record-button", ".stop-button"):
        until(lambda name=name: [button for button in select(name) if button.is_displayed()])[0].click()
    until(lambda: len(select(".hit-place")) == len(wanted))
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
