// The classic canvas shows what a node calls advanced, unless its widgets say so themselves: "Show Advanced" in a
// node's menu then brings them. It leaves their places empty, unless they are hidden too; the page of 0.3.64 does so even
// then, unless they are of no height. Nodes 2.0 reads the option.
import { app } from "../../scripts/app.js";
import { isOurs } from "./nodes.js";

const NO_ROOM = [0, -4]; // the canvas adds 4 between two rows

function hide(node, widget) {
  widget.advanced = true;
  const linked = () => node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);
  Object.defineProperty(widget, "hidden", {
    configurable: true,
    get: () => !window.LiteGraph?.vueNodesMode && !node.showAdvanced && !linked(),
    set() {},
  });
  let own = widget.computeSize;
  Object.defineProperty(widget, "computeSize", {
    configurable: true,
    get: () => (widget.hidden ? () => NO_ROOM : own),
    set: (given) => (own = given),
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
