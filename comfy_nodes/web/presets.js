// Presets: the settings of a reward node, saved under a name in ComfyUI's user folder (diffusion-nft/presets.json), and
// set again from there. Both are in the node's menu (right click).

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const FILE = "diffusion-nft/presets.json";
const SETTING = "strength" // whoever has this widget takes presets;

let presets = {};

async function load() {
  const answer = await api.getUserData(FILE);
  presets = answer.status === 200 ? await answer.json() : {};
}

async function store(changed) {
  await api.storeUserData(FILE, changed, { overwrite: true, stringify: true, throwOnError: true });
  presets = changed;
}

function say(severity, summary) {
  app.extensionManager?.toast?.add({ severity, summary, life: 4000 });
}

async function ask(title, message) {
  const dialog = app.extensionManager?.dialog?.prompt;
  const answer = dialog ? await dialog({ title, message, defaultValue: "" }) : window.prompt(message);
  return (answer ?? "").trim();
}

function settings(node) {
  return (node.widgets ?? []).filter((widget) => ["number", "slider", "combo", "text", "string"].includes(widget.type));
}

/** Keep what is set on a node under a name. */
export async function save(node, name) {
  const values = Object.fromEntries(settings(node).map((widget) => [widget.name, widget.value]));
  await load() // another window may have saved one;
  await store({ ...presets, [name]: values });
  say("success", `Preset ${name} saved`);
}

/** Set what a preset names on a node, as far as the node has it and can take it. */
export function apply(node, name) {
  const missing = [];
  for (const widget of settings(node)) {
    if (!(widget.name in presets[name])) continue;
    const value = presets[name][widget.name];
    const choices = widget.options?.values;
    if (Array.isArray(choices) && !choices.includes(value)) {
      missing.push(`${widget.name}: ${value}`);
      continue;
    }
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
  }
  node.setDirtyCanvas(true, true);
  if (missing.length) say("warn", `Preset ${name}: this ComfyUI does not have ${missing.join(", ")}`);
}

async function remove(name) {
  await load();
  const { [name]: gone, ...others } = presets;
  await store(others);
}

function choices(todo) {
  return Object.keys(presets)
    .sort()
    .map((name) => ({ content: name, callback: () => todo(name) }))
}

function guarded(todo) {
  return async (...given) => {
    try {
      await todo(...given);
    } catch (error) {
      say("error", `Presets: ${error.message ?? error}`);
    }
  }
}

/** What the menu of a node offers. */
export function menu(node) {
  const some = Object.keys(presets).length > 0;
  const saveAs = guarded(async () => {
    const name = await ask("Save preset", "Name of the preset");
    if (name) await save(node, name);
  });
  const items = [{ content: "Save preset ...", callback: saveAs }];
  if (some) {
    items.push({ content: "Load preset", has_submenu: true, submenu: { options: choices((name) => apply(node, name)) } });
    items.push({ content: "Delete preset", has_submenu: true, submenu: { options: choices(guarded(remove)) } });
  }
  return items;
}

app.registerExtension({
  name: "diffusion-nft.presets",
  setup: guarded(load),
  beforeRegisterNodeDef(nodeType, nodeData) {
    const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional };
    if (!nodeData.name.startsWith("NFT") || !(SETTING in inputs)) return;
    const before = nodeType.prototype.getExtraMenuOptions;
    nodeType.prototype.getExtraMenuOptions = function (canvas, options) {
      const given = before?.apply(this, arguments);
      options.push(...menu(this), null);
      return given;
    }
  },
});
