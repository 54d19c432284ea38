"""Where an adapter may come from: a shipped name, a folder, the Hub; and the sentence when it is none of them.

The Hub's own client runs here, in a fresh process, against a small server on this machine that answers as the Hub does.
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from helpers.adapters import assert_same, tiny_adapter
from nft_pipeline.adapter import AdapterError, read_adapter, write_adapter
from nft_pipeline.adapters import read as adapter_read
from nft_pipeline.files.atomic import _sibling, recover

SHA = "0123456789abcdef0123456789abcdef01234567"
ERRORS = {
    "someone/missing": (404, "RepoNotFound"),
    "someone/gated": (403, "GatedRepo"),
    "someone/broken": (400, ""),
}


def test_folders_as_text_path_and_with_subfolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_adapter()
    write_adapter(tmp_path / "x" / "red", made)
    assert_same(read_adapter(tmp_path / "x" / "red"), made)
    assert_same(read_adapter(tmp_path, subfolder="x/red"), made)
    monkeypatch.chdir(tmp_path)
    assert_same(read_adapter("x/red"), made)
    assert_same(read_adapter("./x/red/"), made)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(read_adapter("~/x/red"), made)


def test_a_shipped_name_wins_over_a_folder_without_a_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, mine = tiny_adapter(), tiny_adapter(seed=4)
    shipped = write_adapter(tmp_path / "package", made)
    write_adapter(tmp_path / "shapes-warm", mine)
    monkeypatch.setattr(adapter_read, "shipped_adapter", lambda name: shipped if name == "shapes-warm" else None)
    monkeypatch.chdir(tmp_path)
    assert_same(read_adapter("shapes-warm"), made)
    assert_same(read_adapter("./shapes-warm"), mine)
    assert_same(read_adapter(Path("shapes-warm")), mine)
    with pytest.raises(AdapterError, match="revisions are for the Hub"):
        read_adapter("shapes-warm", revision="main")


def test_a_source_that_is_nothing_names_both_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError) as caught:
        read_adapter("shapes-wram")
    for phrase in (
        'there is no adapter "shapes-wram"; did you mean "shapes-warm"?',
        f"no folder {tmp_path / 'shapes-wram'}",
        "not the name of an adapter that ships",
        'not a Hub id either: "shapes-wram" is not of the form "owner/name"',
        "shapes-warm",
    ):
        assert phrase in str(caught.value)


@pytest.mark.parametrize(
    "source", ["./nothing", "/no/where", "a/b/c", "../x", "some one/x", "x" * 5000, "~nobody-here/x/y"]
)
def test_what_cannot_be_a_hub_id_is_not_asked_for(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(
        tmp_path / "here"
    )  # what lies around the checkout, a folder ../x say, is not this test's business
    with pytest.raises(AdapterError, match=r"no folder .*\n.*not a Hub id either"):
        read_adapter(source)


def test_a_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(AdapterError, match="a path object is not looked up on the Hub"):
        read_adapter(Path("someone/adapter"))


@pytest.mark.parametrize("source", ["", "a\0b"])
def test_an_empty_source(source: str) -> None:
    with pytest.raises(AdapterError, match="the adapter's source is"):
        read_adapter(source)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"is a file, expected the adapter's folder"):
        read_adapter(tmp_path / "x.json")


@pytest.mark.parametrize("subfolder", ["..", "a/../..", "/etc", "~/x", "a\\b", "C:x", ""])
def test_a_subfolder_stays_inside(tmp_path: Path, subfolder: str) -> None:
    with pytest.raises(AdapterError, match="expected a folder inside the source") as caught:
        read_adapter(tmp_path, subfolder=subfolder)
    assert repr(subfolder) in str(caught.value)


def test_a_subfolder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    with pytest.raises(AdapterError, match=r"there is no folder blue in .*; found red"):
        read_adapter(tmp_path, subfolder="blue")


def test_a_folder_left_aside_by_a_killed_writer_is_read(tmp_path: Path) -> None:
    made = tiny_adapter()
    folder = write_adapter(tmp_path / "a", made)
    os.rename(folder, _sibling(folder, "old"))
    assert_same(read_adapter(folder), made)


def test_so_is_one_inside_the_source(tmp_path: Path) -> None:
    made = tiny_adapter()
    folder = write_adapter(tmp_path / "a" / "red", made)
    os.rename(folder, _sibling(folder, "old"))
    assert_same(read_adapter(tmp_path / "a", subfolder="red"), made)


def test_a_folder_that_steps_aside_while_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_adapter()
    folder = write_adapter(tmp_path / "a", made)
    looks: list[Path] = []

    def recover_then_step_aside(path: Any) -> Path:
        looks.append(recover(path))
        if len(looks) == 1:
            os.rename(folder, _sibling(folder, "old"))
        return looks[-1]

    monkeypatch.setattr(adapter_read, "recover", recover_then_step_aside)
    assert_same(read_adapter(folder), made)


def test_a_reader_among_writers_sees_one_adapter_whole(tmp_path: Path) -> None:
    first, second = tiny_adapter(), tiny_adapter(seed=4, name="other")
    folder = write_adapter(tmp_path / "a", first)
    done = threading.Event()

    def write() -> None:
        try:
            for turn in range(6):
                write_adapter(folder, (second, first)[turn % 2])
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        found = read_adapter(folder)
        assert_same(found, first if found.config == first.config else second)
    writer.join()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as a download needs: a repository's page, its list of files, and the files."""

    folder: Path

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        for repo, (status, code) in ERRORS.items():
            if f"/{repo}" in path:
                return self.answer(status, b"{}", {"X-Error-Code": code} if code else {})
        if not any(f"/{revision}" in path for revision in ("main", SHA)):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        names = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        if path.startswith("/api/models/someone/red/tree/"):
            files = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": n} for n in names]
            return self.answer(200, json.dumps(files).encode())
        if path.startswith("/api/models/someone/red"):
            page = {"id": "someone/red", "sha": SHA, "siblings": [{"rfilename": name} for name in names]}
            return self.answer(200, json.dumps(page).encode())
        name = path.partition(f"/{SHA}/")[2]
        data = (self.folder / name).read_bytes()
        return self.answer(200, data, {"ETag": f'"{len(data)}-{name}"', "X-Repo-Commit": SHA})

    do_HEAD = do_GET

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    made = tiny_adapter()
    write_adapter(tmp_path / "repo", made, {"README.md": b"# card", "run.py": b"print('never fetched')"})
    shutil.copytree(tmp_path / "repo", tmp_path / "nested" / "deep")
    shutil.copytree(tmp_path / "nested" / "deep", tmp_path / "repo" / "deep")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"folder": tmp_path / "repo"}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


ASK = """
import json, sys
from nft_pipeline.adapter import read_adapter, write_adapter, AdapterError
answers = []
for number, question in enumerate(json.loads(sys.argv[1])):
    try:
        write_adapter(f"{sys.argv[2]}/{number}", read_adapter(**question))
        answers.append("read")
    except AdapterError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def ask(questions: list[dict[str, str]], out: Path, home: Path, endpoint: str) -> list[str]:
    """What read_adapter answers in a fresh process with this endpoint and cache."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    arguments = [sys.executable, "-c", ASK, json.dumps(questions), str(out)]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=env)
    assert run.returncode == 0, run.stderr
    answers: list[str] = json.loads(run.stdout)
    return answers


def test_the_hub(tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [
        {"source": "someone/red"},
        {"source": "someone/red", "revision": SHA},
        {"source": "someone/red", "subfolder": "deep"},
        {"source": "someone/red", "subfolder": "shallow"},
        {"source": "someone/red", "revision": "v9"},
        {"source": "someone/missing"},
        {"source": "someone/gated"},
        {"source": "someone/broken"},
    ]
    answers = ask(questions, tmp_path / "out", tmp_path / "home", hub)
    assert answers[:3] == ["read"] * 3
    for number in range(3):
        assert_same(read_adapter(tmp_path / "out" / str(number)), tiny_adapter())
    phrases = [
        ["there is no folder shallow"],
        ["no revision 'v9'", "Give a branch, tag or commit"],
        ["no such repository, or it is private", 'the adapter "someone/missing" is no folder here', "hf auth login"],
        ["the repository is gated", "Accept its terms on https://huggingface.co/someone/gated"],
        ["the Hub answered with error 400", "someone/broken", "Try again"],
    ]
    for answer, expected in zip(answers[3:], phrases, strict=True):
        for phrase in expected:
            assert phrase in answer
    fetched = {path.name for path in (tmp_path / "home").rglob("*")}
    assert "README.md" in fetched and "run.py" not in fetched

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    assert_same(read_adapter("someone/red"), tiny_adapter())
    with pytest.raises(AdapterError, match=r"the Hub cannot be reached .* no whole copy in the local cache") as caught:
        read_adapter("someone/new")
    assert "Try again, online" in str(caught.value)
