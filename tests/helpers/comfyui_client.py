"""Starts a real ComfyUI server with this repository in custom_nodes and uses it as a browser does; started by
tests/comfyui with ComfyUI's own interpreter.

    python comfyui_client.py <ComfyUI checkout> <folder> <port> [--serve]

With --serve it is that server and nothing else. The folder is ComfyUI's base directory, with graphs.json and nodes.json
(ids to look up) in it. Every graph of graphs.json is queued; report.json gets what the server said.
"""

from __future__ import annotations

import asyncio
import json
import runpy
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from comfyui_driver import allow_torchvision_without_its_binary

TEXT_EVENT = 3
OPTIONS = ["--cpu", "--listen", "127.0.0.1", "--disable-api-nodes", "--disable-auto-launch"]
OPTIONS += ["--database-url", "sqlite:///:memory:"]


def serve(root: Path, folder: Path, port: int) -> None:
    """ComfyUI's main.py, in this process."""
    allow_torchvision_without_its_binary()
    sys.path.insert(0, str(root))
    sys.argv = [str(root / "main.py"), *OPTIONS, "--port", str(port), "--base-directory", str(folder)]
    runpy.run_path(sys.argv[0], run_name="__main__")


async def use(folder: Path, port: int, server: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for the server, look at it, queue every graph."""
    import aiohttp

    address, found = f"http://127.0.0.1:{port}", {}
    async with aiohttp.ClientSession() as session:

        async def get(path: str) -> Any:
            async with session.get(address + path) as answer:
                return answer.status, await (answer.json() if "json" in answer.content_type else answer.text())

        for _ in range(600):
            if server.poll() is not None:
                raise RuntimeError("the server ended")
            try:
                await get("/queue")
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.5)
        nodes = json.loads((folder / "nodes.json").read_text())
        for node in nodes:
            found[f"info {node}"] = (await get(f"/object_info/{node}"))[1].get(node)
            found[f"help {node}"] = await get(f"/extensions/diffusion-nft/docs/{node}.md")
        found["templates"] = (await get("/workflow_templates"))[1]
        found["blueprints"] = (await get("/global_subgraphs"))[1]
        found["words"] = (await get("/i18n"))[1]
        async with session.ws_connect(f"{address}/ws?clientId=test") as socket:
            for name, graph in json.loads((folder / "graphs.json").read_text()).items():
                body = {"prompt": graph, "client_id": "test"}
                async with session.post(f"{address}/prompt", json=body) as answer:
                    said = await answer.json()
                found[f"run {name}"] = said if "error" in said else await follow(socket, said["prompt_id"])
    return found


async def follow(socket: Any, prompt_id: str) -> dict[str, Any]:
    """Everything until the prompt has ended: live texts by node, outputs by node, the error if there was one."""
    texts: dict[str, list[str]] = {}
    outputs: dict[str, Any] = {}
    while True:
        message = await asyncio.wait_for(socket.receive(), 300)
        if isinstance(message.data, bytes):
            if struct.unpack(">I", message.data[:4])[0] == TEXT_EVENT:
                length = struct.unpack(">I", message.data[4:8])[0]
                node = message.data[8 : 8 + length].decode()
                texts.setdefault(node, []).append(message.data[8 + length :].decode())
            continue
        event = json.loads(message.data)
        data = event.get("data", {})
        if data.get("prompt_id") not in (None, prompt_id):
            continue
        if event["type"] == "executed":
            outputs[data["node"]] = data["output"]
        if event["type"] in ("execution_success", "execution_error"):
            return {"end": event["type"], "texts": texts, "outputs": outputs, "said": data.get("exception_message")}


def main() -> None:
    root, folder, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    if sys.argv[4:] == ["--serve"]:
        serve(root, folder, port)
        return
    with (folder / "server.log").open("wb") as log:
        command = [sys.executable, __file__, *sys.argv[1:4], "--serve"]
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=root)
        try:
            found = asyncio.run(use(folder, port, server))
        finally:
            server.terminate()
            server.wait(30)
    (folder / "report.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
