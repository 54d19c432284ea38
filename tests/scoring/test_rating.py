"""Rating by hand: the page in a real browser, the server's refusals, and the command."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.plain_pictures import noise
from nft_pipeline.files.picture_list import read_rows
from nft_pipeline.training.rewards.folders.rating import Ratings, rating_server

N = 22
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep er").mkdir()
    for i in range(N):
        noise(i, 16).save(tmp_path / ("deep er" if i == 3 else ".") / f"{i:02}.png")
    (tmp_path / "metadata.jsonl").write_text('{"image": "01.png", "prompt": "its own", "seed": 3}\n')
    return tmp_path


@pytest.fixture
def address(folder: Path) -> Iterator[tuple[str, int]]:
    with rating_server(Ratings(folder, "a picture")) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield ("127.0.0.1", server.server_address[1])
        server.shutdown()


def ask(address: tuple[str, int], method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*address, timeout=30)
    sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, sent, {"X-Diffusion-NFT": "1", **headers})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if answer.headers["Content-Type"] == "application/json" else content


def test_ratings_go_into_the_file_and_can_be_taken_back(folder: Path, address: tuple[str, int]) -> None:
    assert ask(address, "POST", "/rate", {"image": "01.png", "liked": True}) == (200, {})
    assert ask(address, "POST", "/rate", {"image": "deep er/03.png", "liked": True}) == (200, {})
    assert ask(address, "POST", "/rate", {"image": "deep er/03.png", "liked": False}) == (200, {})
    assert read_rows(folder) == [
        {"image": "01.png", "prompt": "its own", "seed": 3, "liked": True},
        {"image": "deep er/03.png", "prompt": "a picture", "liked": False},
    ]
    assert ask(address, "POST", "/undo", {}) == (200, {"image": "deep er/03.png"})
    assert read_rows(folder)[1]["liked"] is True
    for image in ("deep er/03.png", "01.png", None):
        assert ask(address, "POST", "/undo", {}) == (200, {"image": image})
    assert not any("liked" in row for row in read_rows(folder))


def test_a_rating_says_by_what_its_picture_was_chosen(folder: Path) -> None:
    """So that nobody takes what an adapter was unsure of, or what is left of it, for a fair sample."""

    def chosen() -> dict[str, Any]:
        return {row["image"]: row.get("chosen_by") for row in read_rows(folder) if "liked" in row}

    Ratings(folder, "a picture").rate("01.png", True)
    by_alpha = Ratings(folder, "a picture", chosen_by="my_taste")
    by_alpha.rate("02.png", False)
    by_alpha.rate("01.png", False)
    assert chosen() == {"01.png": None, "02.png": "my_taste"}, "a change of mind was chosen by nobody"
    left = Ratings(folder, "a picture")
    left.rate("04.png", True)
    left.rate("02.png", True)
    assert chosen() == {"01.png": None, "02.png": "my_taste", "04.png": "my_taste"}
    assert left.undo() == "02.png" and left.undo() == "04.png"
    assert chosen() == {"01.png": None, "02.png": "my_taste"}
    assert "chosen_by" not in next(row for row in read_rows(folder) if row["image"] == "04.png")


def test_it_serves_the_pictures_and_nothing_else(folder: Path, address: tuple[str, int]) -> None:
    assert ask(address, "GET", "/picture/deep%20er/03.png") == (200, (folder / "deep er/03.png").read_bytes())
    for path in ("/picture/metadata.jsonl", "/picture/../conftest.py", "/picture/%2e%2e/x.png", "/etc/passwd"):
        status, answer = ask(address, "GET", path)
        assert status == 404 and "there is nothing at" in answer["error"]
    (folder / "00.png").unlink()
    status, answer = ask(address, "GET", "/picture/00.png")
    assert status == 404 and "00.png cannot be read" in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "phrase"),
    [
        ("/rate", {"image": "no.png", "liked": True}, {}, 400, "there is no picture 'no.png' here"),
        ("/rate", {"image": "00.png", "liked": 1}, {}, 400, "liked is 1, expected true or false"),
        ("/rate", [], {}, 400, "expected an object with image and liked"),
        ("/rate", b"{", {}, 400, "that is no rating: no JSON (Expecting property name"),
        ("/rate", b"\xff", {}, 400, "utf-8"),
        ("/rate", b"x" * 20_000, {}, 413, "that is no rating: too large"),
        ("/rate", b"{}", {"Content-Length": "\u00b2"}, 413, "that is no rating: too large, or of no length"),
        ("/rate", b"[" * 4900, {}, 400, "that is no rating: "),  # too deep for Python until 3.12, no end for later ones
        ("/other", {}, {}, 404, "there is nothing at /other"),
        ("/rate", {"image": "00.png", "liked": True}, {"Host": "evil.example"}, 403, "not another name"),
    ],
)
def test_what_it_refuses(
    folder: Path, address: tuple[str, int], path: str, body: Any, headers: dict[str, str], status: int, phrase: str
) -> None:
    before = (folder / "metadata.jsonl").read_bytes()
    found, answer = ask(address, "POST", path, body, **headers)
    assert (found, phrase in answer["error"]) == (status, True), answer
    assert (folder / "metadata.jsonl").read_bytes() == before


def test_another_sites_page_cannot_rate(folder: Path, address: tuple[str, int]) -> None:
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request("POST", "/rate", '{"image": "00.png", "liked": true}', {"Content-Type": "text/plain"})
    assert connection.getresponse().status == 403
    connection.close()
    assert len(read_rows(folder)) == 1


def test_a_rating_that_cannot_be_written_is_not_shown_as_kept(folder: Path, address: tuple[str, int]) -> None:
    (folder / "metadata.jsonl").write_text("broken by hand\n")
    status, answer = ask(address, "POST", "/rate", {"image": "00.png", "liked": True})
    assert status == 400 and "metadata.jsonl has 1 bad lines" in answer["error"]
    _, state = ask(address, "GET", "/state")
    assert state["undo"] == 0 and state["pictures"][0]["liked"] is None
    assert (folder / "metadata.jsonl").read_text() == "broken by hand\n"


def test_the_command_serves_until_it_is_interrupted(folder: Path) -> None:
    command = [sys.executable, "-m", "nft_pipeline", "rate", str(folder), "--prompt", "p", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
    assert port is not None
    assert ask(("127.0.0.1", int(port[1])), "POST", "/rate", {"image": "00.png", "liked": False})[0] == 200
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and f"0 liked, 1 disliked, {N - 1} not rated" in said


def test_the_page_in_a_browser(folder: Path, address: tuple[str, int]) -> None:
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs chromium on the PATH and pip install playwright")
    from playwright.sync_api import sync_playwright

    url = f"http://{address[0]}:{address[1]}/"
    order = [row["image"] for row in ask(address, "GET", "/state")[1]["pictures"]]
    keys = ["l" if i % 3 else "d" for i in range(20)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        page.wait_for_selector(f'body[data-image="{order[0]}"]')
        for key in keys:  # faster than the answers come
            page.keyboard.press(key)
        page.wait_for_selector(f'body[data-image="{order[20]}"]')
        assert page.inner_text("#count") == f"20 of {N} rated"
        page.keyboard.press("u")
        page.wait_for_selector(f'body[data-image="{order[19]}"]')
        assert page.inner_text("#count") == f"19 of {N} rated"
        page.reload()
        page.wait_for_selector(f'body[data-image="{order[19]}"]')
        assert page.inner_text("#count") == f"19 of {N} rated"
        assert page.inner_text("#prompt") == "a picture"
        page.wait_for_function("document.getElementById('picture').naturalWidth == 16")
        page.click("#undo")  # what was rated before the reload can still be taken back
        page.wait_for_selector(f'body[data-image="{order[18]}"]')
        for key in (keys[18], "d", "l", "l"):
            page.keyboard.press(key)
        page.wait_for_selector('body[data-image=""]')
        assert page.is_visible("#done") and not page.is_visible("#picture")
        page.keyboard.press("l")  # nothing is left to rate
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector(f'body[data-image="{order[-1]}"]')
        browser.close()
    expected = dict(zip(order, [key == "l" for key in [*keys[:19], "d", "l", "l"]], strict=True))
    assert {row["image"]: row["liked"] for row in read_rows(folder)} == expected
    assert next(row for row in read_rows(folder) if row["image"] == "01.png")["seed"] == 3
    assert not problems
