// Shows the warnings of the pack's nodes as messages at the edge of the window. They stand on the nodes too, but newer front ends take
// the texts of nodes away when a run ends. nodes/host/comfyui/progress.py sends them.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const SECONDS = 30;

/** The title of the node on the canvas that runs: of the outermost, if it runs in a subgraph. */
function titleOf(id) {
  const graph = app.rootGraph ?? app.graph;
  return graph.getNodeById(String(id).split(":")[0])?.title ?? "GLM-Image";
}

api.addEventListener("glm-image.warning", ({ detail: { node, text } }) => {
  app.extensionManager.toast.add({ severity: "warn", summary: titleOf(node), detail: text, life: 1000 * SECONDS });
});
