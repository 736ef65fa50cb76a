/**
 * The list of episodes. Only the rows in sight are in the document, so ten thousand rows stay
 * quick. Each row is a link, one of which has the keyboard's focus.
 */
import { count, element, fill } from "./dom.js";
import { isolated } from "./text.js";

const SPARE = 8;

const VERDICTS = new Map([
  [true, { name: "right", text: "✓ right" }],
  [false, { name: "wrong", text: "✗ wrong" }],
  [null, { name: "ungraded", text: "– not graded" }],
]);

/** The result of an episode in words, with a sign and a colour. */
export function verdict(right) {
  const { name, text } = VERDICTS.get(right ?? null);
  return element("span", { class: `verdict ${name}` }, text);
}

/** The position of an episode in its run, in words: sample, arm, fork and step. */
export function whereabouts(row) {
  return [
    row.step === null || row.step === undefined ? null : `step ${row.step}`,
    [row.protocol, row.arm].filter(Boolean).join("/") || null,
    row.parent === null || row.parent === undefined ? null : `of #${row.parent}, call ${row.call}`,
    `#${row.sample}`,
  ]
    .filter(Boolean)
    .join(" · ");
}

function rowFacts(row) {
  return [
    count(row.calls, "call"),
    ...(row.failed ? [`${row.failed} failed`] : []),
    ...row.errors,
    ...(row.faults.length ? [`injected: ${row.faults.join(", ")}`] : []),
    ...(row.void ? [count(row.void, "void turn")] : []),
    ...(row.tokens === null ? [] : [count(row.tokens, "token")]),
    ...(row.stop && row.stop !== "answered" ? [row.stop.replaceAll("_", " ")] : []),
  ].join(" · ");
}

/**
 * Makes the list.
 *
 * @param {Element} scroll The element that scrolls.
 * @param {Element} place The `ol` inside of it.
 * @param {Object} given `href(row)`, the link of a row; `again()`, called where a row is open
 *   already; `beside(row)`, which opens a row beside the open episode.
 * @returns {Object} `show(rows, chosen)`, `move(step)`, `focus()`, `reveal()`, `length()`.
 */
export function makeList(scroll, place, { href, again, beside }) {
  let rows = [];
  let chosen = [];
  let cursor = 0;
  let height = 0;

  const item = (row, index) => {
    const open = chosen.indexOf(row.address);
    const link = element(
      "a",
      {
        href: href(row),
        tabindex: index === cursor ? 0 : -1,
        "data-index": index,
        "aria-current": open < 0 ? null : "true",
      },
      element(
        "span",
        { class: "line head" },
        verdict(row.right),
        element("span", { class: "problem" }, isolated(row.problem)),
        element("span", { class: "where" }, isolated(whereabouts(row))),
      ),
      element("span", { class: "line question" }, isolated(row.question)),
      element("span", { class: "line facts" }, isolated(rowFacts(row))),
    );
    return element("li", { "aria-setsize": rows.length, "aria-posinset": index + 1 }, link);
  };

  const measure = () => {
    if (rows.length && !height) {
      fill(place, item(rows[0], 0));
      height = place.firstChild.getBoundingClientRect().height;
    }
  };

  const draw = () => {
    measure();
    const focused = place.contains(document.activeElement);
    const first = Math.max(0, Math.floor(scroll.scrollTop / (height || 1)) - SPARE);
    const last = Math.min(
      rows.length,
      first + Math.ceil(scroll.clientHeight / (height || 1)) + 2 * SPARE,
    );
    const shown = [];
    for (let index = first; index < last; index += 1) shown.push(item(rows[index], index));
    fill(place, shown);
    place.style.height = `${rows.length * height}px`;
    place.style.paddingTop = `${first * height}px`;
    if (!shown.length) return;
    const current = place.querySelector('[tabindex="0"]');
    if (current && focused) current.focus({ preventScroll: true });
    if (!current) shown[0].firstChild.tabIndex = 0;
  };

  const intoSight = (index) => {
    const top = index * height;
    if (top < scroll.scrollTop) scroll.scrollTop = top;
    const bottom = top + height - scroll.clientHeight;
    if (bottom > scroll.scrollTop) scroll.scrollTop = bottom;
  };

  const focus = () => {
    if (!rows.length) return;
    intoSight(cursor);
    draw();
    place.querySelector(`[data-index="${cursor}"]`)?.focus({ preventScroll: true });
  };

  const show = (next, open) => {
    const address = rows[cursor]?.address;
    const top = rows[Math.floor(scroll.scrollTop / (height || 1))]?.address;
    const shift = height ? scroll.scrollTop % height : 0;
    const before = rows;
    rows = next;
    chosen = open;
    cursor = Math.max(
      0,
      rows.findIndex((row) => row.address === (address ?? open[0])),
    );
    measure();
    place.style.height = `${rows.length * height}px`;
    if (before !== rows && top !== undefined && scroll.scrollTop > 0) {
      const at = rows.findIndex((row) => row.address === top);
      scroll.scrollTop = at < 0 ? 0 : at * height + shift;
    }
    draw();
  };

  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
  scroll.addEventListener("scroll", soon);
  window.addEventListener("resize", () => {
    height = 0;
    soon();
  });
  place.addEventListener("focusin", (event) => {
    const link = event.target.closest("[data-index]");
    if (!link || Number(link.dataset.index) === cursor) return;
    place.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    cursor = Number(link.dataset.index);
    link.tabIndex = 0;
  });
  const aside = (event) => {
    const link = event.target.closest("[data-index]");
    if (link?.hash === location.hash && !event.shiftKey) again();
    if (!event.shiftKey || !link) return;
    event.preventDefault();
    beside(rows[Number(link.dataset.index)]);
  };
  place.addEventListener("click", aside);

  return {
    show,
    focus,
    move(step) {
      const inside = place.contains(document.activeElement);
      if (inside || chosen.length) cursor = Math.min(rows.length - 1, Math.max(0, cursor + step));
      focus();
    },
    reveal(address) {
      const at = rows.findIndex((row) => row.address === address);
      if (at < 0) return;
      cursor = at;
      intoSight(at);
      draw();
    },
    length: () => rows.length,
  };
}
