// The page's nodes behind the ids that ComfyUI's server speaks of.
import { app } from "../../scripts/app.js";

/** The node of an execution id: "7", or "3:7" for node 7 inside the subgraph node 3. Null if the graph has changed. */
export function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** Whether a node's class is one of ours. */
export const isOurs = (type) => String(type ?? "").startsWith("NFT");
