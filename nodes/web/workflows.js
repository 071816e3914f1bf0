// Shows the notes and the titles of the pack's workflows and blueprints in the user's language.
//
// workflows/LANGUAGE.json has a translation for each English text that a shipped workflow or blueprint carries. Only a text that is
// still the shipped one is replaced, so what a user wrote stays. Prompts stay too.

import { app } from "../../scripts/app.js";

const LANGUAGES = ["zh"];
const NOTES = ["MarkdownNote", "Note"];

/** The words of the user's language, {notes, titles}, each a map from an English text to its translation; null in English. */
async function wordsInUse() {
  const language = app.extensionManager.setting.get("Comfy.Locale");
  if (!LANGUAGES.includes(language)) return null;
  const answer = await fetch(new URL(`./workflows/${language}.json`, import.meta.url));
  return answer.json();
}

/** The graph itself and the subgraphs that it defines: whatever has nodes and groups of its own. */
function parts(graph) {
  return [graph, ...(graph.definitions?.subgraphs ?? [])];
}

function isOurs({ nodes = [] }) {
  return nodes.some(({ type }) => type.startsWith("GLMImage"));
}

function translated(text, words) {
  return Object.hasOwn(words, text) ? words[text] : text;
}

/** Nodes and groups, of a file or of the graph on the canvas. */
function translateTitles({ groups = [], nodes = [] }, titles) {
  for (const item of [...groups, ...nodes].filter(({ title }) => title)) {
    // The numbers of groups are not in the table.
    item.title = item.title.replace(/^(\d+ +)?(.*)$/s, (_, number = "", text) => number + translated(text, titles));
  }
}

function translateNotes({ nodes = [] }, notes) {
  for (const node of nodes.filter(({ type }) => NOTES.includes(type))) {
    node.widgets_values = node.widgets_values?.map((text) => translated(text, notes));
  }
}

app.registerExtension({
  name: "glmimage.workflows",

  /** A workflow is opened: its file, before the graph is made from it. */
  async beforeConfigureGraph(graph) {
    const words = parts(graph).some(isOurs) && (await wordsInUse());
    for (const part of words ? parts(graph) : []) {
      translateTitles(part, words.titles);
      translateNotes(part, words.notes);
    }
  },

  /** A node appears on the canvas: a blueprint comes from the node library without its file passing by here. */
  async nodeCreated(node) {
    const { subgraph } = node;
    const words = subgraph && isOurs(subgraph) && (await wordsInUse());
    if (!words) return;
    translateTitles({ groups: subgraph.groups, nodes: [node, ...subgraph.nodes] }, words.titles);
    for (const input of subgraph.inputs) {
      const shown = input.label ?? input.name;
      if (Object.hasOwn(words.titles, shown)) subgraph.renameInput(input, words.titles[shown]);
    }
  },
});
