"""The doorway for ComfyUI, where the repository stands in custom_nodes: nothing is loaded until ComfyUI asks for it."""

WEB_DIRECTORY = "./comfy_nodes/web"


async def comfy_entrypoint():  # type: ignore[no-untyped-def]
    """The nodes. ComfyUI imports this folder by path, so `nft_pipeline` gets its name here, from beside this file."""
    import importlib.util
    import sys
    from pathlib import Path

    if "nft_pipeline" not in sys.modules:
        folder = Path(__file__).parent / "nft_pipeline"
        spec = importlib.util.spec_from_file_location("nft_pipeline", folder / "__init__.py")
        sys.modules["nft_pipeline"] = package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
    from .comfy_nodes.nodes import Extension

    return Extension()
