/**
 * Elements of the page. Every text enters the page as a text node, so a transcript can hold any
 * markup.
 */

/**
 * Makes an element.
 *
 * @param {string} tag The name of the element.
 * @param {Object} properties Attributes by name; a function is the listener of the event of its
 *   name; null, undefined and false leave an attribute out, true sets it without a value.
 * @param {...(Node|string|null)} children The content; null is left out.
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") {
      made.addEventListener(name, value);
    } else if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(name, value === true ? "" : value);
    }
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Makes a button with a text. */
export function button(text, click, properties = {}) {
  return element("button", { type: "button", click, ...properties }, text);
}

/** Makes the list of names and values; a pair with the value null is left out. */
export function definitions(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined);
  return element(
    "dl",
    {},
    known.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value)),
    ),
  );
}

/** Makes the box of an error, which a screen reader announces. */
export function alertBox(error) {
  return element("p", { class: "alert", role: "alert" }, error.message);
}

/** Replaces the children of an element. */
export function fill(parent, ...children) {
  parent.replaceChildren(...children.flat().filter((child) => child !== null));
}

/** A number with the noun in its right form, as in "1 call" and "2 calls". */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** Seconds with at most two digits after the point. */
export function seconds(value) {
  return value < 0.01 ? "under 0.01 s" : `${Number(value.toFixed(value < 10 ? 2 : 0))} s`;
}

/** Copies a text and says so on the button for a moment. */
export async function copy(text, pressed) {
  const before = pressed.textContent;
  try {
    await navigator.clipboard.writeText(text);
    pressed.textContent = "Copied";
  } catch {
    pressed.textContent = "Copying is not allowed here";
  }
  setTimeout(() => (pressed.textContent = before), 2000);
}
