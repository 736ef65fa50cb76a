/**
 * A pane: one episode with its header and its spans. Two panes stand side by side.
 */
import { alertBox, button, definitions, element, fill } from "./dom.js";
import { verdict, whereabouts } from "./list.js";
import { isolated, longText } from "./text.js";
import { armName, outcome } from "./calls.js";
import { spanSection } from "./spans.js";
import { legend, showTokens } from "./tokens.js";

function value(text, missing) {
  return text === null || text === "" ? missing : isolated(text);
}

function metadataBox(episode) {
  const known = [
    ["Problem", isolated(episode.problem.id)],
    ["Address", isolated(episode.address)],
    ["Protocol of turns", episode.protocol],
    ["Interpreter", episode.interpreter ? "offered" : "not offered"],
    ["Weight version", episode.version === null ? null : String(episode.version)],
    ["Trained version", episode.trained_version === null ? null : String(episode.trained_version)],
    ["Revision", String(episode.revision)],
    ["Error of the API", episode.place?.error ? isolated(episode.place.error) : null],
  ];
  const metadata = Object.entries(episode.problem.metadata ?? {}).map(([name, one]) => [
    isolated(name),
    longText("metadata", [["", typeof one === "string" ? one : JSON.stringify(one, null, 1)]]),
  ]);
  return element(
    "details",
    { class: "metadata" },
    element("summary", {}, "Metadata"),
    definitions([...known, ...metadata]),
  );
}

function parentLine(episode, page) {
  const parent = episode.parent;
  if (!parent) return null;
  const name = `#${parent.sample}`;
  const links = parent.address
    ? [
        element("a", { href: page.link(parent.address) }, `the parent ${name}`),
        " (",
        element("a", { href: page.besideLink(parent.address) }, "side by side"),
        ")",
      ]
    : [`the parent ${name}, which is not in this run`];
  const visible = parent.visible ? " Only the parent's visible messages were taken over." : "";
  return element(
    "p",
    { class: "parent" },
    `Fork at call ${parent.call}, arm ${armName(parent.arm)}, of `,
    links,
    `.${visible}`,
  );
}

function callStrip(episode, page) {
  const calls = episode.spans.flatMap((span, index) =>
    span.call ? [{ call: span.call, index }] : [],
  );
  if (!calls.length) return element("p", { class: "strip" }, "The episode has no call.");
  const links = calls.map(({ call, index }) =>
    element(
      "li",
      {},
      element(
        "button",
        { type: "button", class: "link", click: () => page.go(index) },
        `${call.number} `,
        outcome(call, true),
      ),
      call.fault?.injected ? element("span", { class: "tag" }, "injected") : null,
      episode.forks.some((fork) => fork.call === call.number)
        ? element("span", { class: "tag" }, "forked")
        : null,
    ),
  );
  return element(
    "div",
    { class: "strip", role: "group", "aria-label": "Calls" },
    element("span", {}, "Calls:"),
    element("ol", {}, links),
  );
}

function episodeHeader(episode, page) {
  const place = { sample: 0, protocol: "", arm: "", parent: null, step: null, ...episode.place };
  return [
    element(
      "h2",
      { tabindex: "-1" },
      isolated(episode.problem.id),
      " ",
      element("span", { class: "where" }, isolated(whereabouts(place))),
    ),
    page.title ? element("p", { class: "run-title" }, isolated(page.title)) : null,
    definitions([
      ["Result", verdict(episode.right)],
      ["Given answer", value(episode.answer, "none given")],
      ["Gold answer", value(episode.problem.answer, "none known")],
      ["Ended by", (episode.stop ?? "not ended").replaceAll("_", " ")],
      ["Reward", episode.reward === null ? "none" : String(episode.reward)],
    ]),
    parentLine(episode, page),
    callStrip(episode, page),
    element("h3", { class: "visually-hidden" }, "Question"),
    longText("question-text", [["", episode.problem.question]]),
    metadataBox(episode),
  ];
}

function failure(error, address) {
  if (!error.file) return alertBox(error);
  const link = element("a", { href: `${error.file}#${address}` }, error.file);
  return element("p", { class: "alert", role: "alert" }, `${error.message} `, link);
}

/**
 * Makes an empty pane.
 *
 * @param {Object} given `source`, `actions` (buttons: [text, key, click]), `label`, and the
 *   functions `links(run)`, which gives the links of a pane, and `run(number)`.
 * @returns {Object} `root`, `show(run, address)`, `toggle(tokens)`, `go(span)`, `failedCall(step)`,
 *   `focus()`, `busy()`.
 */
export function makePane({ source, label, actions, links, run: runOf, onSpan }) {
  const bar = element("div", { class: "bar" });
  const content = element("div", { class: "episode" });
  const inspector = element("div", { class: "inspector", role: "status", hidden: true });
  const tokensButton = button("Tokens", actions.tokens, {
    "aria-pressed": "false",
    "aria-keyshortcuts": "t",
  });
  const root = element(
    "article",
    { class: "pane", "aria-label": label, tabindex: "0" },
    bar,
    content,
    inspector,
  );
  let shown = null;
  let page = null;
  let loaded = Promise.resolve();

  const failedCall = (step) => {
    const failed = [...content.querySelectorAll(".failed-call")].map((one) =>
      Number(one.dataset.span),
    );
    if (!failed.length) return false;
    const next =
      step > 0
        ? failed.find((index) => index > (shown.span ?? -1))
        : failed.findLast((index) => index < (shown.span ?? Infinity));
    page.go(next ?? failed.at(step > 0 ? 0 : -1));
    return true;
  };

  const go = (index) => {
    shown.span = index;
    const section = content.querySelector(`[data-span="${index}"]`);
    section?.querySelector("details:has(> .body)")?.setAttribute("open", "");
    section?.scrollIntoView({ block: "start" });
    section?.querySelector("h3").focus({ preventScroll: true });
  };

  const draw = (episode) => {
    let turn = 0;
    const sections = episode.spans.map((span, index) => {
      if (span.author === "model") turn += 1;
      return spanSection(span, index, turn, page);
    });
    const hasFailed = episode.spans.some((span) => span.call && !span.call.ok);
    fill(
      bar,
      button("Back to the list", actions.back, { class: "back" }),
      hasFailed
        ? button("Previous failed", () => failedCall(-1), { "aria-keyshortcuts": "p" })
        : null,
      hasFailed ? button("Next failed", () => failedCall(1), { "aria-keyshortcuts": "n" }) : null,
      tokensButton,
      button("Side by side", actions.beside, { "aria-keyshortcuts": "s", class: "beside" }),
      button("✕", actions.close, { class: "close", "aria-label": `Close: ${label}` }),
    );
    fill(content, episodeHeader(episode, page), sections);
    root.scrollTop = 0;
  };

  const load = async (run, address) => {
    const mine = { run, address, span: null, tokens: false };
    shown = mine;
    const open = runOf(run);
    fill(content, element("p", { class: "note" }, "Loading …"));
    fill(inspector);
    inspector.hidden = true;
    try {
      const episode = await source.episode(run, address);
      if (shown !== mine) return;
      page = {
        ...links(run),
        address,
        path: open.path,
        title: open.title,
        canRun: open.canRun,
        forks: [...episode.forks, ...links(run).siblings(address)],
        isFork: episode.parent !== null,
        bodies: [],
        go: (span) => {
          go(span);
          onSpan(span);
        },
        again: (call, limit) => source.again(run, address, call, limit),
        rest: (span, from) => source.rest(run, address, span, from),
      };
      draw(episode);
    } catch (error) {
      if (shown !== mine) return;
      page = null;
      fill(bar, button("Back to the list", actions.back, { class: "back" }));
      fill(content, failure(error, location.hash.slice(1)));
    }
  };

  const toggle = async (tokens) => {
    const mine = shown;
    if (!page || mine.tokens === tokens) return;
    mine.tokens = tokens;
    tokensButton.setAttribute("aria-pressed", String(tokens));
    inspector.hidden = !tokens;
    content.querySelector(".legend")?.remove();
    if (!tokens) return page.bodies.forEach(({ plain }) => plain());
    content.querySelector("[data-span]")?.before(legend());
    try {
      const found = await source.tokens(mine.run, mine.address);
      if (shown === mine && mine.tokens) showTokens(found, page.bodies, inspector);
    } catch (error) {
      if (shown === mine) fill(inspector, alertBox(error));
    }
  };

  return {
    root,
    show(run, address, tokens, span) {
      if (shown?.run !== run || shown.address !== address) {
        tokensButton.setAttribute("aria-pressed", "false");
        loaded = load(run, address);
      }
      const mine = shown;
      loaded = loaded
        .then(() => (shown === mine ? toggle(tokens) : null))
        .then(() =>
          shown === mine && page && span !== null && span !== mine.span ? go(span) : null,
        );
      return loaded;
    },
    failedCall,
    focus: () => (content.querySelector("h2") ?? root).focus(),
    shown: () => shown,
  };
}
