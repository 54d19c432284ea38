"""A reward on another machine: nothing is lost when the server dies, and everything that goes wrong has a name."""

from __future__ import annotations

import base64
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from PIL import Image

from helpers.my_rewards import Darkness, Slow
from helpers.plain_pictures import noise, plain
from nft_pipeline.cli import main
from nft_pipeline.training.rewards import Reward, RewardError, load_reward, load_rewards
from nft_pipeline.training.rewards.kinds.remote import RemoteReward
from nft_pipeline.training.rewards.server.caller import ServerError
from nft_pipeline.training.rewards.server.wire import TOKEN_VARIABLE

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")),
    reason="fastapi or uvicorn is not installed: pip install '.[serve]'",
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def served(reward: Reward, **settings: Any) -> Iterator[str]:
    """The address of a server in this process."""
    import uvicorn

    from nft_pipeline.training.rewards.server.gate import PromptProtocol
    from nft_pipeline.training.rewards.server.serve import create_app

    port = free_port()
    app = create_app(reward, **settings)
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", http=PromptProtocol)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def command(port: int, *more: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`diffusion-nft reward serve` as a person starts it, once it answers."""
    tests = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]), **environment}
    arguments = [
        "reward",
        "serve",
        "--reward",
        "helpers.my_rewards:Slow",
        "--port",
        str(port),
        "--device",
        "cpu",
        *more,
    ]
    process = subprocess.Popen([sys.executable, "-m", "nft_pipeline", *arguments], env=env)
    try:
        for _ in range(1200):
            assert process.poll() is None, "the server ended"
            try:
                assert requests.get(f"http://127.0.0.1:{port}/health", timeout=5).json()["status"] == "ok"
                break
            except requests.ConnectionError:
                time.sleep(0.1)
        else:
            pytest.fail("the server did not answer within two minutes")
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def quick(url: str, **options: Any) -> RemoteReward:
    """A client that does not wait long between tries."""
    reward = RemoteReward(url, **options)
    reward.caller.backoff, reward.caller.probe_every, reward.caller.say = 0.05, 0.1, lambda text: None
    return reward


def red(i: int) -> Image.Image:
    return plain(f"rgb({i},0,0)")


def test_a_remote_reward_is_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, prompts = [noise(i) for i in range(11)], [f"p{i}" for i in range(11)]
    with served(Darkness(batch=4)) as url:
        remote = quick(url, per_request=2)
        output = remote(pictures, prompts)
        assert torch.equal(output.scores, Darkness()(pictures, prompts).scores)
        assert output.details == {"prompt": prompts}
        own, card = Darkness().info, remote.info
        assert (card.name, card.range, card.larger_is_better, card.version) == (
            (own.name, own.range, own.larger_is_better, own.version)
        )
        mix = load_rewards({f"remote:{url}": 1.0})
        assert torch.allclose(mix(pictures, prompts).scores, own.probability(output.scores))
        with pytest.raises(RewardError, match="has no gradient"):
            remote(torch.zeros(1, 3, 4, 4, requires_grad=True), ["p"])


def test_unbounded_cards_survive_the_way() -> None:
    with served(load_reward("colourfulness")) as url:
        assert quick(url).info.range == (0.0, float("inf")) and quick(url).info.middle == 45.0


def test_two_hundred_at_once_are_batched_and_each_gets_its_own() -> None:
    with served(Slow(), wait=0.05) as url:
        remote = quick(url, per_request=1, concurrency=200)
        output = remote([red(i) for i in range(200)], [""] * 200)
    assert output.scores.tolist() == pytest.approx([i / 255 for i in range(200)])
    assert max(output.details["at_once"]) == Slow.batch  # joined, up to what the reward takes


def test_a_kill_in_the_middle_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    port, answered, said = free_port(), [], []
    ask = RemoteReward._ask

    def counted(self: RemoteReward, request: Any) -> Any:
        answer = ask(self, request)
        answered.append(time.monotonic())
        return answer

    monkeypatch.setattr(RemoteReward, "_ask", counted)
    with ThreadPoolExecutor(1) as pool:
        with command(port) as process:
            remote = quick(f"http://127.0.0.1:{port}", per_request=1, concurrency=200, retries=1)
            remote.caller.say = said.append
            run = pool.submit(remote, [red(i) for i in range(200)], [""] * 200)
            while len(answered) < 50:
                assert not run.done(), run.result()
                time.sleep(0.01)
            process.kill()
        before = len(answered)
        assert before < 200 and not run.done()
        with command(port):
            output = run.result(timeout=120)
    print(f"killed after {before} of 200 answers; said: {said}")
    assert output.scores.tolist() == pytest.approx([i / 255 for i in range(200)])
    assert sum("The run is paused and nothing is lost" in line for line in said) == 1
    assert sum("is back after" in line for line in said) == 1


def test_several_workers_answer() -> None:
    port, seen = free_port(), set[int]()
    with command(port, "--workers", "2") as process:
        deadline = time.monotonic() + 120
        while len(seen) < 2:
            assert time.monotonic() < deadline, f"only {seen} answered"
            remote = quick(f"http://127.0.0.1:{port}", per_request=1, concurrency=20)
            output = remote([red(i) for i in range(20)], [""] * 20)
            assert output.scores.tolist() == pytest.approx([i / 255 for i in range(20)])
            seen |= set(output.details["by"])
    assert process.pid not in seen


def test_a_server_that_stays_away_is_an_error_with_a_name() -> None:
    with served(Slow()) as url:
        remote = quick(url, retries=1, patience=0.3, per_request=1, concurrency=4)
    with pytest.raises(ServerError, match=r"stayed away for 0\.3 s .*what was scored before is kept") as caught:
        remote([red(1)] * 8, [""] * 8)
    assert caught.value.kind == "gone"


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_what_passes_is_asked_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Darkness()) as url:
        remote = quick(url)
        real, asked = requests.request, []

        def busy(*arguments: Any, **options: Any) -> requests.Response:
            asked.append(arguments)
            if len(asked) > 2:
                return real(*arguments, **options)
            answer = requests.Response()
            answer.status_code, answer.headers["Retry-After"] = status, "\u00b2"  # a digit to some, and no number
            return answer

        monkeypatch.setattr(requests, "request", busy)
        assert remote([red(1)], [""]).scores.shape == (1,) and len(asked) == 3


def test_an_interrupt_does_not_wait_for_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Slow()) as url:
        remote = quick(url, retries=0, per_request=1, concurrency=4)
    remote.caller.probe_every = 600.0
    remote.caller.say = lambda text: os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C when the run says it is paused
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        remote([red(1)] * 8, [""] * 8)
    assert time.monotonic() - started < 60
    remote.caller.say, remote.caller.probe_every = lambda text: None, 0.1
    remote.caller.patience = 0.1
    with pytest.raises(ServerError, match="stayed away"):
        remote([red(1)], [""])


def test_an_outage_after_one_that_was_too_long_is_waited_for_again() -> None:
    with served(Slow()) as url:
        remote = quick(url, retries=0, patience=0.2)
    with pytest.raises(ServerError, match="stayed away"):
        remote([red(1)], [""])
    said: list[str] = []
    remote.caller.say = said.append
    with served(Slow()) as other:
        remote.caller.url = other
        assert remote([red(51)], [""]).scores.tolist() == pytest.approx([0.2])
    with pytest.raises(ServerError, match="stayed away"):
        remote([red(1)], [""])
    assert "The run is paused" in said[0]


def test_the_token_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Slow(), token="secret") as url:
        for wrong in ("guess", ""):
            monkeypatch.setenv(TOKEN_VARIABLE, wrong)
            with pytest.raises(ServerError, match="the token is missing or wrong; set DIFFUSION_NFT") as caught:
                load_reward(f"remote:{url}")
            assert caught.value.kind == "wrong_token"
        assert requests.post(f"{url}/score", json={}, timeout=30).status_code == 401
        assert requests.get(f"{url}/health", timeout=30).json() == {"status": "ok", "waiting": 0}
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")
        assert load_reward(f"remote:{url}")([red(51)], [""]).scores.tolist() == pytest.approx([0.2])


def test_a_body_of_fifty_megabytes_is_refused_by_name() -> None:
    body = b'{"pictures": ["' + b"A" * 50_000_000 + b'"], "prompts": [""]}'

    def in_pieces() -> Iterator[bytes]:  # sent without a length
        for i in range(0, len(body), 1_000_000):
            yield body[i : i + 1_000_000]

    with served(Slow()) as url:
        for sent in (body, in_pieces()):
            answer = requests.post(f"{url}/score", data=sent, timeout=60)
            assert answer.status_code == 413 and answer.json()["error"]["type"] == "body_too_large"
            assert "larger than 32000000 bytes" in answer.json()["error"]["message"]
        assert quick(url)([red(51)], [""]).scores.tolist() == pytest.approx([0.2])


def test_a_client_keeps_to_the_servers_limits() -> None:
    pictures = [noise(i, 64) for i in range(9)]  # 12 kB each, 16 kB in base64
    with served(Slow(), max_bytes=60_000, max_pictures=5) as url:
        remote = quick(url, per_request=100)
        assert [len(r["pictures"]) for r in remote._requests(pictures, [""] * 9, [{}] * 9)] == [3, 3, 3]
        assert len(remote(pictures, [""] * 9).scores) == 9
        with pytest.raises(ServerError, match="larger than 60000 bytes"):
            remote([noise(0, 256)], [""])


@pytest.mark.parametrize(
    ("change", "kind", "phrase"),
    [
        ({"pictures": ["!!!"]}, "bad_picture", "picture 0 is no PNG that can be read"),
        ({"pictures": [base64.b64encode(b"no picture").decode()]}, "bad_picture", "picture 0 is no PNG"),
        ({"pictures": ["cut"]}, "bad_picture", "picture 0 is no PNG"),
        ({"pictures": ["large"]}, "bad_picture", "picture 0 is 100 x 200 px, 10000 pixels is the most"),
        ({"pictures": []}, "bad_request", "body.pictures: List should have at least 1 item"),
        ({"prompts": []}, "bad_request", "1 pictures, 0 prompts and 1 metadata"),
        ({"prompts": [3]}, "bad_request", "body.prompts.0: Input should be a valid string"),
        ({"pictres": []}, "bad_request", "body.pictres: Extra inputs are not permitted"),
        ({"pictures": ["ok"] * 70, "prompts": [""] * 70}, "bad_request", "70 pictures in a request, 64 is the most"),
    ],
)
def test_bad_requests_are_named(change: dict[str, Any], kind: str, phrase: str, bad_requests: str) -> None:
    from nft_pipeline.training.rewards.kinds.remote import _png

    whole = _png(noise(0))
    known = {"ok": whole, "cut": whole[: len(whole) // 8 * 4], "large": _png(plain("red", (100, 200)))}
    request = {"pictures": ["ok"], "prompts": [""], **change}
    request["pictures"] = [known.get(picture, picture) for picture in request["pictures"]]
    answer = requests.post(f"{bad_requests}/score", json=request, timeout=30)
    assert answer.status_code == 422
    assert answer.json()["error"]["type"] == kind and phrase in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def bad_requests() -> Iterator[str]:
    with served(Slow(), max_pixels=10_000) as url:
        yield url


@pytest.mark.parametrize(
    ("prompt", "phrase"), [("nan", "NaN or infinite"), ("crash", "'slow' failed: RuntimeError: out of memory")]
)
def test_a_reward_that_fails_is_named_and_spoils_no_other_request(prompt: str, phrase: str) -> None:
    with served(Slow(), wait=0.1) as url:
        remote = quick(url, per_request=1)
        with ThreadPoolExecutor(12) as pool:
            runs = [pool.submit(remote, [red(51)], [prompt if i == 5 else ""]) for i in range(12)]
        for i, run in enumerate(runs):
            if i != 5:
                assert run.result().scores.tolist() == pytest.approx([0.2])
        with pytest.raises(ServerError, match=rf"refused \(reward_failed\): .*{phrase}") as caught:
            runs[5].result()
        assert caught.value.kind == "reward_failed"


def test_a_crowd_is_told_to_come_back_and_does() -> None:
    with served(Slow(), limit=20) as url:
        remote = quick(url, per_request=1, concurrency=60)
        assert remote([red(i) for i in range(60)], [""] * 60).scores.tolist() == pytest.approx(
            [i / 255 for i in range(60)]
        )
        statuses = set()
        request = {"pictures": [remote._requests([red(1)], [""], [{}])[0]["pictures"][0]] * 15, "prompts": [""] * 15}
        with ThreadPoolExecutor(4) as pool:
            for answer in pool.map(lambda _: requests.post(f"{url}/score", json=request, timeout=60), range(4)):
                statuses.add(answer.status_code)
                if answer.status_code == 503:
                    assert answer.json()["error"]["type"] == "overloaded" and answer.headers["Retry-After"] == "1"
    assert statuses == {200, 503}


def test_another_servers_address_is_named() -> None:
    from helpers.chat_server import chat_server

    with chat_server(lambda *_: (200, {})) as (url, _), pytest.raises(RewardError, match="is no reward server of this"):
        load_reward(f"remote:{url}")


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--host", "0.0.0.0"], "opens the server to others, and DIFFUSION_NFT_REWARD_TOKEN is not set"),
        (["--workers", "0"], "--workers is 0"),
        (["--reward", "orc"], "did you mean 'ocr'?"),
    ],
)
def test_a_server_that_should_not_start_says_why(
    arguments: list[str], phrase: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert main(["reward", "serve", "--reward", "jpeg_size", *arguments]) == 2
    assert phrase in capsys.readouterr().err


def _begun(port: int, text: str) -> socket.socket:
    """A connection on which so much was sent and no more."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(text.encode())
    return connection


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(10)
    try:
        while connection.recv(1000):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def test_strangers_get_no_memory_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 connections that never end their header, 40 without the token that send large bodies, all at once."""
    import resource

    from nft_pipeline.training.rewards.server import gate

    monkeypatch.setattr(gate, "HEADER_SECONDS", 2.0)
    monkeypatch.setenv(TOKEN_VARIABLE, "right")
    with served(Slow(), token="right") as url:
        port = int(url.rpartition(":")[2])
        assert quick(url)([red(3)], [""]).scores.tolist() == pytest.approx([3 / 255])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stalled = [_begun(port, "POST /score HTTP/1.1\r\nHost: x\r\nX-Slow: ") for _ in range(500)]
        head = "POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 31000000\r\n\r\n"
        strangers = [_begun(port, head + "x" * 10_000) for _ in range(40)]
        assert all(connection.recv(12) == b"HTTP/1.1 401" for connection in strangers)
        assert quick(url)([red(4)], [""]).scores.tolist() == pytest.approx([4 / 255])
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 200_000, f"{grown} kB more"
        assert all(map(_is_closed, stalled))
        for connection in (*stalled, *strangers):
            connection.close()
        assert requests.get(f"{url}/openapi.json", timeout=30).status_code == 401


def test_a_body_has_its_time_and_a_request_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    from nft_pipeline.training.rewards.server import gate, serve

    monkeypatch.setattr(gate.Gate.__init__, "__defaults__", (2.0,))
    monkeypatch.setattr(serve, "MAX_REQUEST_PIXELS", 5000)
    with served(Slow()) as url:
        slow = _begun(int(url.rpartition(":")[2]), "POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{")
        slow.settimeout(10)
        assert slow.recv(12) == b"HTTP/1.1 408"
        slow.close()
        with pytest.raises(ServerError, match="more than 5000 pixels together"):
            quick(url)([plain("red", (64, 64))] * 2, ["", ""])
        answer = requests.post(
            f"{url}/score", data=b"\xff\xfe{", headers={"Content-Type": "application/json"}, timeout=30
        )
        assert answer.status_code in (400, 422) and "error" in answer.json()
