"""Room of the nodes: their names, inputs and outputs, and the words a person reads. What they do is outside this room.

Every `io.ComfyNode` in a module of this room is a node; a new one is a new module, a help page in web/docs, and a test.
Ids are stored in people's workflows and never change; new inputs go to the end, since widgets are stored by position.
"""

from __future__ import annotations

import sys
from typing import Any

from nft_pipeline.files.discovery import classes_in, modules_of

from .. import host
from ..words.errors import speaking_as_a_node
from . import rate_images


def find_nodes() -> list[Any]:
    """The node classes of this room's modules: modules in alphabetical order, nodes in the order of their module.

    What they raise is in the words of their widgets.
    """
    nodes: list[Any] = [
        value
        for module in modules_of(sys.modules[__name__])
        for value in classes_in(module, host.io.ComfyNode)
        if value.__module__ == module.__name__
    ]
    for node in nodes:
        node.execute = classmethod(speaking_as_a_node(node.execute.__func__))
    return nodes


NODES = find_nodes()


class Extension(host.ComfyExtension):
    """What ComfyUI asks for."""

    async def get_node_list(self) -> list[Any]:
        """All nodes. The shipped adapters are in their lists of files, pictures say what guided them, and buttons have
        whom to ask."""
        host.offer_shipped_adapters()
        host.note_in_pictures()
        host.answer("/diffusion-nft/rate", rate_images.SHOWN.rate)
        return NODES
