/**
 * Texts of transcripts, which may be hostile: control characters are made visible, directions are
 * isolated, and a long text is shown part by part.
 */
import { button, count, element } from "./dom.js";

const INVISIBLE = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029\u115f\u1160\u3164\uffa0]/gu;
const FIRST_PART = { characters: 20_000, lines: 300 };
const NEXT_PART = { characters: 100_000, lines: 2_000 };

function marker(character) {
  const code = character.codePointAt(0);
  const name = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  const sign = code < 0x20 ? String.fromCodePoint(0x2400 + code) : code === 0x7f ? "␡" : name;
  return element("span", { class: "control", title: name }, sign);
}

/**
 * The nodes of a text in which every character is visible.
 *
 * A bidirectional override, for example, becomes a marker "U+202E" and reorders nothing.
 */
export function visible(text) {
  const nodes = [];
  let start = 0;
  for (const found of text.matchAll(INVISIBLE)) {
    if (found.index > start) nodes.push(text.slice(start, found.index));
    nodes.push(marker(found[0]));
    start = found.index + found[0].length;
  }
  if (start < text.length) nodes.push(text.slice(start));
  return nodes;
}

/** An inline element with a text whose direction does not leave it. */
export function isolated(text, properties = {}) {
  return element("bdi", properties, visible(text));
}

/** The place at which a part of a text ends: after the most characters or lines. */
function partEnd(text, room) {
  let end = Math.min(text.length, room.characters);
  let lines = 0;
  for (let at = text.indexOf("\n"); at >= 0 && at < end; at = text.indexOf("\n", at + 1)) {
    lines += 1;
    if (lines === room.lines) end = at + 1;
  }
  const code = text.charCodeAt(end - 1);
  const pair = end < text.length && code >= 0xd800 && code < 0xdc00;
  return { end: pair ? end + 1 : end, lines };
}

/** Moves the pieces of one part from `pieces` into the block. */
function showPart(block, pieces, room) {
  const left = { ...room };
  while (pieces.length && left.characters > 0 && left.lines > 0) {
    const [name, text] = pieces.shift();
    const { end, lines } = partEnd(text, left);
    left.characters -= end;
    left.lines -= lines;
    const nodes = visible(text.slice(0, end));
    block.append(...(name ? [element("span", { class: name }, nodes)] : nodes));
    if (end < text.length) pieces.unshift([name, text.slice(end)]);
  }
}

/**
 * A block of text that shows its beginning, and a button for each further part.
 *
 * @param {string} name The class of the block.
 * @param {Array} pieces The text in pieces: [class, text]; an empty class has no element.
 * @param {Object} more The rest that the server holds: `cut`, its number of characters, and
 *   `rest()`, which loads it; null: the text is whole.
 */
export function longText(name, pieces, more = null) {
  const block = element("pre", { class: name });
  const whole = element("div", { class: "long" }, block);
  const waiting = pieces.filter(([, text]) => text);
  const missing = () => waiting.reduce((sum, [, text]) => sum + text.length, more ? more.cut : 0);
  const grow = async (pressed) => {
    try {
      if (!waiting.length && more) {
        pressed.disabled = true;
        waiting.push(["", await more.rest()]);
        more = null;
      }
      pressed.remove();
      showPart(block, waiting, NEXT_PART);
    } catch (error) {
      pressed.disabled = false;
      pressed.textContent = `${error.message} Try again`;
      return;
    }
    offer();
  };
  const offer = () => {
    if (!missing()) return;
    const text = `Show more (${count(missing(), "further character")})`;
    whole.append(button(text, (event) => grow(event.currentTarget), { class: "more" }));
  };
  showPart(block, waiting, FIRST_PART);
  offer();
  return whole;
}
