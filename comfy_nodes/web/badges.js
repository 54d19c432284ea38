// What may be wrong with a guided picture, as badges on the node. The server sends it (comfy_nodes/host.py, `mark`).
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeOf } from "./nodes.js";

const LOOK = { fgColor: "#1c1400", bgColor: "#f2b824" };

function mark({ node: id, cautions }) {
  const node = nodeOf(id);
  if (!node || !window.LGraphBadge) return;
  const others = (node.badges ?? []).filter((badge) => !badge.fromCaution);
  const ours = cautions.map(({ label }) =>
    Object.assign(new window.LGraphBadge({ text: `\u26a0 ${label}`, ...LOOK }), { fromCaution: true }),
  );
  node.badges = [...others, ...ours];
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "diffusion-nft.badges",
  setup() {
    api.addEventListener("diffusion-nft.cautions", ({ detail }) => mark(detail));
  },
});
