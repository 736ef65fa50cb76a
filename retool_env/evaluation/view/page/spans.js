/**
 * The spans of an episode: who wrote each, its parts, and the call whose result it shows.
 */
import { count, element, fill, seconds } from "./dom.js";
import { longText } from "./text.js";
import { againForm, faultBox, forkBox, outcome } from "./calls.js";

const LABELS = { program: "Program", answer: "Answer", result: null, text: null };

/** Divides the parts of a span at its surplus: the last characters, as Python counts them. */
function divided(parts, surplus) {
  const kept = parts.map((part) => ({ ...part }));
  let left = surplus;
  let apart = "";
  while (left > 0 && kept.length) {
    const last = kept.at(-1);
    const characters = [...last.text];
    const cut = Math.max(0, characters.length - left);
    apart = characters.slice(cut).join("") + apart;
    left -= characters.length - cut;
    if (cut === 0) kept.pop();
    else Object.assign(last, { text: characters.slice(0, cut).join(""), pieces: null });
  }
  return { kept, apart };
}

/** The pieces of a part without the blank lines at its ends. */
function trimmed(pieces) {
  const kept = pieces.map((piece) => [...piece]);
  if (kept.length) {
    kept[0][1] = kept[0][1].replace(/^\n+/, "");
    kept.at(-1)[1] = kept.at(-1)[1].replace(/\n+$/, "");
  }
  return kept;
}

function partBlock(part, more) {
  const whole = part.pieces ?? [["", part.text]];
  const pieces = trimmed(whole);
  const block = longText(
    part.kind,
    pieces.map(([name, text]) => [name && `py-${name}`, text]),
    more,
  );
  const label = LABELS[part.kind];
  return label
    ? element(
        "div",
        { class: `part ${part.kind}-part` },
        element("p", { class: "label" }, label),
        block,
      )
    : block;
}

/** The parts of a span; the last one offers the rest that the server holds. */
function body(span, index, page) {
  const { kept, apart } = divided(span.parts, span.cut ? 0 : span.surplus);
  const shown = kept.filter((part) => part.text.trim() || span.cut);
  const rest = () => page.rest(index, [...span.text].length);
  const blocks = shown.map((part, at) =>
    partBlock(part, span.cut && at === shown.length - 1 ? { cut: span.cut, rest } : null),
  );
  if (apart) {
    blocks.push(
      element(
        "div",
        { class: "surplus" },
        element(
          "p",
          { class: "label" },
          "Surplus: sampled with the closing tag, not executed or graded",
        ),
        longText("text", [["", apart.replaceAll("\n", "⏎\n").trimEnd()]]),
      ),
    );
  }
  if (!blocks.length) blocks.push(element("p", { class: "note" }, "empty, or only blanks"));
  return blocks;
}

function title(span, turn) {
  if (span.author === "prompt") return "Prompt";
  if (span.author === "model") return `Model · turn ${turn}`;
  return span.call ? `Interpreter · call ${span.call.number}` : "Environment";
}

function meta(span) {
  const parts = [
    ...(span.seconds ? [seconds(span.seconds)] : []),
    ...(span.tokens === null ? [] : [count(span.tokens, "token")]),
  ];
  return element("span", { class: "meta" }, parts.join(" · "));
}

function callParts(span, page) {
  if (!span.call) return [];
  const forks = page.forks.filter((fork) => fork.call === span.call.number);
  const ran = span.call.pieces ? { kind: "program", text: "", pieces: span.call.pieces } : null;
  return [
    ran
      ? element("details", {}, element("summary", {}, "The program that ran"), partBlock(ran, null))
      : null,
    span.call.fault ? faultBox(span.call.fault) : null,
    againForm(span.call, page),
    forks.length ? forkBox(forks, page) : null,
  ];
}

/**
 * Makes the section of one span.
 *
 * @param {Object} span The span.
 * @param {number} index Its number, from 0.
 * @param {number} turn The number of the model's turn, from 1.
 * @param {Object} page Functions and values of the pane (see `pane.js`).
 * @returns {Element} The section. `page.bodies[index]` becomes the element of its text, with a
 *   function `plain()` that shows the text again.
 */
export function spanSection(span, index, turn, page) {
  const text = element("div", { class: "body" });
  const plain = () => fill(text, body(span, index, page));
  plain();
  page.bodies[index] = { text, plain, name: title(span, turn) };
  const heading = element(
    "h3",
    { tabindex: "-1" },
    title(span, turn),
    span.call ? [" ", outcome(span.call)] : null,
    " ",
    meta(span),
  );
  const failed = span.call && !span.call.ok;
  const section = element(
    "section",
    { class: `span ${span.author}${failed ? " failed-call" : ""}`, "data-span": index },
    heading,
    text,
    callParts(span, page),
  );
  if (span.author !== "prompt") return section;
  const closed = element("details", {}, element("summary", {}, "Show the prompt"), text);
  section.append(closed);
  return section;
}
