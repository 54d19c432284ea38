// Rate Images: each picture of the latest Run with two buttons. A press saves that picture's verdict at once.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const VERDICTS = { like: "Like", dislike: "Dislike" };

async function rate(picture, verdict, buttons) {
  const body = JSON.stringify({ name: picture.name, verdict });
  const answer = await api.fetchApi("/diffusion-nft/rate", { method: "POST", body });
  const { error } = await answer.json();
  if (error) {
    app.extensionManager?.toast?.add({ severity: "error", summary: "Rate Images", detail: error, life: 15000 });
    return;
  }
  picture.verdict = verdict;
  light(picture, buttons);
}

function light(picture, buttons) {
  for (const [verdict, button] of Object.entries(buttons)) {
    button.style.background = picture.verdict === verdict ? "#3f8f4f" : "#444";
    button.setAttribute("aria-pressed", String(picture.verdict === verdict));
  }
}

function cell(picture) {
  const box = document.createElement("div");
  const image = document.createElement("img");
  image.src = api.apiURL(`/view?${new URLSearchParams(picture.file)}`);
  image.style.cssText = "width:100%;display:block;image-rendering:auto";
  const row = document.createElement("div");
  row.style.cssText = "display:flex;gap:4px;margin-top:2px";
  const buttons = {};
  for (const [verdict, word] of Object.entries(VERDICTS)) {
    const button = document.createElement("button");
    button.textContent = word;
    button.title = verdict;
    button.dataset.verdict = verdict;
    button.style.cssText = "flex:1;border:0;border-radius:4px;cursor:pointer;padding:2px;color:#fff";
    button.onclick = () => rate(picture, verdict, buttons);
    buttons[verdict] = button;
    row.append(button);
  }
  light(picture, buttons);
  box.append(image, row);
  return box;
}

app.registerExtension({
  name: "diffusion-nft.rate-images",
  nodeCreated(node) {
    if (node.comfyClass !== "NFTRateImages") return;
    const sheet = document.createElement("div");
    sheet.className = "diffusion-nft-sheet";
    sheet.style.cssText = "display:grid;grid-template-columns:repeat(auto-fill,minmax(90px,1fr));gap:6px;overflow:auto";
    const minimum = () => (sheet.children.length ? 140 : 0);
    const widget = node.addDOMWidget("sheet", "sheet", sheet, { serialize: false, getMinHeight: minimum });
    widget.serialize = false; // workflows store widgets by position, and this one has nothing to store
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      const cells = (output?.rated ?? []).map((picture) => cell({ ...picture }));
      sheet.replaceChildren(...cells);
      const needed = node.computeSize()[1];
      if (node.size[1] < needed) node.setSize([node.size[0], needed]);
      node.setDirtyCanvas(true, true);
    };
  },
});
