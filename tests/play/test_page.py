"""`diffusion-nft play` as a person meets it: refused in words, and in a browser where gradio and Chromium are there."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.comfyui_page import CHROMIUM, browser
from nft_pipeline.cli import main
from nft_pipeline.files.picture_list import read_rows
from nft_pipeline.training.data.folder import read_folder

GRADIO = importlib.util.find_spec("gradio") is not None
needs_gradio = pytest.mark.skipif(not GRADIO, reason='needs pip install "diffusion-nft[play]"')
READY = "() => document.querySelector('#numbers')?.innerText.includes('becomes')"


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "nft_pipeline.play.page", raising=False)
    assert main(["play"]) == 2
    assert '`play` needs gradio, which is not installed: pip install "diffusion-nft[play]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["play", "--port", port]) == 2
    assert f"port {port} cannot be had; give another --port" in capsys.readouterr().err
    assert main(["play", "--port", "70000"]) == 2


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a page whose likes go to tmp_path/likes."""
    command = [sys.executable, "-m", "nft_pipeline", "play", "--no-browser", "--device", "cpu", "--steps", "4"]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address is not None, (tmp_path / "errors").read_text()
        yield address[0], process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def picture(page: Any, place: str) -> str:
    """A hash of the picture that is shown there."""
    source = page.get_attribute(f"{place} img", "src")
    return hashlib.sha256(page.request.get(source).body()).hexdigest()


def move(page: Any, strength: str) -> None:
    page.locator("#strength input[type=range]").fill(strength)
    page.wait_for_function(f"document.querySelector('#after').innerText.includes('Strength {strength}')")


@needs_gradio
@pytest.mark.slow
def test_the_page_in_a_browser(served: tuple[str, subprocess.Popen[str]], tmp_path: Path) -> None:
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs chromium on the PATH and pip install playwright")
    address, process = served
    problems: list[str] = []
    with browser() as opened:
        page = opened.new_page()
        page.set_default_timeout(240_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: problems.append(request.url) if outside(request.url) else None)
        page.goto(address)
        page.wait_for_function(READY)
        before, pictures = picture(page, "#before"), [picture(page, "#after")]
        for strength in ("0", "0.5", "1.5", "2", "2.5"):
            move(page, strength)
            pictures.append(picture(page, "#after"))
            assert picture(page, "#before") == before  # the same seed and prompt
        assert len(set(pictures)) == 6 and pictures[1] == before
        page.wait_for_function("document.querySelector('#numbers').innerText.includes('This picture will be liked')")
        page.click("#like")
        page.wait_for_function("document.querySelector('#kept').innerText.includes('1 liked, 0 disliked')")
        move(page, "-1")
        page.click("#dislike")
        page.wait_for_function("document.querySelector('#kept').innerText.includes('1 liked, 1 disliked')")
        address_of_before = page.get_attribute("#before img", "src")
        page.fill("#prompt textarea", "three triangles")
        page.press("#prompt textarea", "Enter")
        page.wait_for_function("before => document.querySelector('#before img').src !== before", arg=address_of_before)
        page.fill("#prompt textarea", " ")
        page.press("#prompt textarea", "Enter")
        page.wait_for_function("document.querySelector('#numbers').innerText.includes('Type a prompt')")
    assert not problems
    rows = read_rows(tmp_path / "likes")
    assert [(row["liked"], row["strength"], row["seed"]) for row in rows] == [(True, 2.5, 0), (False, -1.0, 0)]
    assert len(read_folder(tmp_path / "likes").pictures) == 2
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "1 liked, 1 disliked" in output


def outside(url: str) -> bool:
    return url.startswith(("http:", "https:", "ws:")) and "://127.0.0.1" not in url


@needs_gradio
def test_in_a_space_each_visitor_has_likes_of_their_own(tmp_path: Path) -> None:
    from nft_pipeline.play.page import _Page, _remove
    from nft_pipeline.play.studio import Studio, Wish

    studio = Studio.open("shapes", ["shapes-warm"], device="cpu", stock={"num_inference_steps": 2})
    like, wish = _Page(studio, None).rater(True), Wish("shapes-warm", "two squares", 0, 1.0)
    assert like(None, None)[:2] == ("There is no picture yet.", None)
    _, mine, file = like(wish, None)
    words, again, _ = like(Wish("shapes-warm", "two squares", 1, 1.0), mine)
    assert again == mine and words.endswith("2 liked, 0 disliked.") and Path(file.value["path"]).suffix == ".zip"
    assert like(wish, None)[1] != mine
    _remove(mine)
    assert not Path(mine).exists()
    words, mine, _ = _Page(studio, tmp_path / "likes").rater(False)(wish, None)
    assert mine is None and words.endswith(f"0 liked, 1 disliked in {tmp_path / 'likes'}.")
    _remove(mine)
    assert len(read_rows(tmp_path / "likes")) == 1
