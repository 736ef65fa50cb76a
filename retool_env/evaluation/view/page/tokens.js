/**
 * The tokens of an episode: each token with its log-prob as a colour, and a line below it if the
 * loss mask leaves it out.
 */
import { button, count, definitions, element, fill } from "./dom.js";
import { isolated, visible } from "./text.js";

const LEVELS = [
  [0.9, "above 90 %"],
  [0.5, "50 to 90 %"],
  [0.1, "10 to 50 %"],
  [0.01, "1 to 10 %"],
  [-1, "below 1 %"],
];
const AT_ONCE = 3000;

function level(logprob) {
  return LEVELS.findIndex(([least]) => Math.exp(logprob) > least);
}

/** The legend of the colours and the line. */
export function legend() {
  const colours = LEVELS.map(([, text], index) =>
    element("li", {}, element("span", { class: `token level-${index}` }, "token"), ` ${text}`),
  );
  return element(
    "div",
    { class: "legend", role: "group", "aria-label": "Legend of the tokens" },
    element("p", {}, "Probability with which the token was sampled:"),
    element(
      "ul",
      {},
      colours,
      element(
        "li",
        {},
        element("span", { class: "token masked" }, "token"),
        " masked out: no loss",
      ),
    ),
    element("p", { class: "note" }, "Tab reaches the tokens, the arrow keys move between them."),
  );
}

function shownToken(text) {
  const nodes = visible(text);
  return nodes.flatMap((node) => {
    if (typeof node !== "string" || !node.includes("\n")) return [node];
    return node
      .split(/(?=\n)/)
      .flatMap((line) =>
        line.startsWith("\n") ? [element("span", { class: "break" }, "⏎"), line] : [line],
      );
  });
}

function tokenFacts(span, index) {
  const at = (values) => (values ? values[index] : null);
  const fixed = (value) => (value === null || value === undefined ? null : value.toFixed(4));
  const logprob = at(span.logprobs);
  return definitions([
    ["Token", isolated(span.texts ? JSON.stringify(span.texts[index]) : "text not known")],
    ["Id", String(span.ids[index])],
    ["Loss mask", span.mask[index] ? "1: trained" : "0: masked out"],
    ["Log-prob", logprob === null ? "none: not sampled" : fixed(logprob)],
    ["Probability", logprob === null ? null : `${(100 * Math.exp(logprob)).toPrecision(3)} %`],
    ["Weight version", at(span.versions) === null ? null : String(at(span.versions))],
    ["Trained log-prob", fixed(at(span.trained))],
    ["Ratio", fixed(at(span.ratio))],
  ]);
}

function tokenElement(span, index) {
  const colour = span.logprobs ? ` level-${level(span.logprobs[index])}` : "";
  const masked = span.mask[index] ? "" : " masked";
  const text = span.texts ? shownToken(span.texts[index]) : [`${span.ids[index]} `];
  const content = text.length ? text : [element("span", { class: "control" }, "empty")];
  return element(
    "span",
    { class: `token${colour}${masked}`, "data-token": index, tabindex: "-1" },
    content,
  );
}

function tokenBlock(span, name) {
  const block = element("div", {
    class: "tokens",
    role: "group",
    "aria-label": `Tokens of ${name}`,
  });
  let shown = 0;
  const more = element("div");
  const grow = () => {
    const last = Math.min(span.ids.length, shown + AT_ONCE);
    for (; shown < last; shown += 1) block.append(tokenElement(span, shown));
    const left = span.ids.length - shown;
    fill(
      more,
      left ? button(`Show more (${count(left, "further token")})`, grow, { class: "more" }) : null,
    );
  };
  grow();
  block.querySelector("[data-token]")?.setAttribute("tabindex", "0");
  return [block, more];
}

/** Moves the keyboard's focus between the tokens of a block. */
function moveToken(event) {
  const steps = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" };
  const token = event.target.closest("[data-token]");
  const next = token?.[steps[event.key]];
  if (!next) return;
  event.preventDefault();
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/**
 * Shows the tokens in place of the texts.
 *
 * @param {Object} tokens The answer of the server.
 * @param {Object[]} bodies The elements of the spans' texts (see `spans.js`).
 * @param {Element} inspector The element that shows the facts of one token.
 */
export function showTokens(tokens, bodies, inspector) {
  const why = tokens.known ? null : element("p", { class: "note" }, tokens.why);
  const inspect = (span) => (event) => {
    const token = event.target.closest?.("[data-token]");
    if (token) fill(inspector, why, tokenFacts(span, Number(token.dataset.token)));
  };
  bodies.forEach(({ text, name }, index) => {
    const span = tokens.spans[index];
    if (!span?.ids?.length) return;
    const [block, more] = tokenBlock(span, name);
    block.addEventListener("mouseover", inspect(span));
    block.addEventListener("focusin", inspect(span));
    block.addEventListener("keydown", moveToken);
    fill(text, block, more);
  });
  const none = tokens.spans.every((span) => !span?.ids?.length);
  fill(
    inspector,
    why,
    element("p", {}, none ? "The episode has no token ids." : "Point at a token."),
  );
}
