// The classic canvas shows what a node calls advanced, unless its widgets say so themselves: "Show Advanced" in a
// node's menu then brings them. It leaves their places empty, unless they are hidden too. Nodes 2.0 reads the option.
import { app } from "../../scripts/app.js";
import { isOurs } from "./nodes.js";

function hide(node, widget) {
  widget.advanced = true;
  const linked = () => node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);
  Object.defineProperty(widget, "hidden", {
    configurable: true,
    get: () => !window.LiteGraph?.vueNodesMode && !node.showAdvanced && !linked(),
    set() {},
  });
}

app.registerExtension({
  name: "diffusion-nft.advanced",
  nodeCreated(node) {
    if (!isOurs(node.comfyClass)) return;
    const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    for (const widget of advanced) hide(node, widget);
    if (advanced.length) node.setSize([node.size[0], node.computeSize()[1]]);
  },
});
