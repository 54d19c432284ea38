// The classic canvas shows what a node calls advanced, unless its widgets say so themselves: "Show Advanced" in a
// node's menu then brings them. Nodes 2.0 reads the option.
import { app } from "../../scripts/app.js";
import { isOurs } from "./nodes.js";

app.registerExtension({
  name: "diffusion-nft.advanced",
  nodeCreated(node) {
    if (!isOurs(node.comfyClass)) return;
    const hidden = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    for (const widget of hidden) widget.advanced = true;
    if (hidden.length) node.setSize([node.size[0], node.computeSize()[1]]);
  },
});
