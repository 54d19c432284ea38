// An error of our nodes as a toast: its first sentence, which says what happened. All of it is in ComfyUI's own panel.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeOf } from "./nodes.js";

const OURS = /(GuidanceError|AdapterError)$/;

/** Up to the first full stop that ends a sentence, or the first line's end, where a list of faults may begin. */
export function firstSentence(text) {
  const line = String(text).trim().split("\n")[0].replace(/:$/, ".");
  const end = line.search(/\.(?=\s+[A-Z])/);
  return end < 0 ? line : line.slice(0, end + 1);
}

function show(detail) {
  if (!OURS.test(detail.exception_type ?? "")) return;
  const node = nodeOf(detail.node_id);
  app.extensionManager?.toast?.add({
    severity: "error",
    summary: node?.title ?? detail.node_type,
    detail: firstSentence(detail.exception_message),
    life: 15000,
  });
}

app.registerExtension({
  name: "diffusion-nft.errors",
  setup() {
    api.addEventListener("execution_error", ({ detail }) => show(detail));
  },
});
