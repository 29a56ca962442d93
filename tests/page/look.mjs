// Looks at the status page as an operator does, in Chromium, and checks what can be checked.
//   node look.mjs URL FOLDER
// It prints one line for each check and exits with 1 if one failed. FOLDER receives the screenshots.
// CHROMIUM is the path of the browser, if it is not /usr/bin/chromium.
import { mkdir, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import puppeteer from "puppeteer-core";

const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const VIEWS = [
  { name: "light-1280", scheme: "light", width: 1280, height: 900, mobile: false },
  { name: "dark-1280", scheme: "dark", width: 1280, height: 900, mobile: false },
  { name: "light-360", scheme: "light", width: 360, height: 740, mobile: true },
  { name: "dark-360", scheme: "dark", width: 360, height: 740, mobile: true },
];
const WAIT = 15000;

export function launch() {
  return puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"],
    acceptInsecureCerts: true,
  });
}

// Collects the results of checks. `check` prints a line and counts a failure.
export function results(label) {
  const state = { failed: 0 };
  state.check = (name, good, detail = "") => {
    if (!good) state.failed += 1;
    console.log(`${good ? "ok  " : "FAIL"} ${label} ${name}${detail ? `: ${detail}` : ""}`);
    return good;
  };
  return state;
}

export async function open(browser, url, view, log) {
  const page = await browser.newPage();
  await page.setViewport({
    width: view.width, height: view.height, isMobile: view.mobile, hasTouch: view.mobile,
    deviceScaleFactor: view.mobile ? 2 : 1,
  });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: view.scheme }]);
  page.on("console", (message) => message.type() === "error" && log.errors.push(message.text()));
  page.on("pageerror", (error) => log.errors.push(String(error)));
  page.on("dialog", (dialog) => {
    log.errors.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("request", (request) => log.requests.push(request.url()));
  // Keeps the history that the page receives, to compare it with the charts.
  await page.evaluateOnNewDocument(() => {
    window.look = { history: null, snapshots: 0 };
    window.EventSource = class extends EventSource {
      constructor(...options) {
        super(...options);
        this.addEventListener("history", (event) => (window.look.history = JSON.parse(event.data)));
        this.addEventListener("snapshot", () => (window.look.snapshots += 1));
      }
    };
  });
  await page.goto(url, { waitUntil: "load" });
  return page;
}

export const shown = (page) =>
  page.waitForFunction(() => window.look.snapshots && !document.getElementById("content").hidden, { timeout: WAIT })
    .then(() => true, () => false);

export async function axe(page) {
  await page.evaluate(AXE);
  return page.evaluate(async () => {
    const { violations, incomplete, passes } = await window.axe.run(document, { resultTypes: ["violations", "incomplete"] });
    const brief = (found) => found.map((v) => `${v.id} (${v.nodes.length}: ${v.nodes[0].target.join(" ")})`).join("; ");
    return { violations: violations.length, text: brief(violations), incomplete: brief(incomplete), passes: passes.length };
  });
}

async function charts(page, check) {
  const found = await page.evaluate(() => {
    const span = (name) => {
      const points = window.look.history?.[name] ?? [];
      const path = document.querySelector(`#chart-${name} .line`)?.getAttribute("d") ?? "";
      return {
        points: points.length,
        rates: points.filter((p) => p.full + p.resumed > 0).length,
        drawn: (path.match(/[ML]/g) ?? []).length,
        bad: /NaN|Infinity|undefined/.test(document.querySelector(`#chart-${name} .plot`).innerHTML),
      };
    };
    return { hour: span("hour"), day: span("day") };
  });
  for (const [name, f] of Object.entries(found)) {
    // A step can end between the history and the look, so one step more or less is right.
    check(`${name} chart draws the history`, Math.abs(f.drawn - f.rates) <= 1 && !f.bad, `${f.points} steps, ${f.rates} with a rate, ${f.drawn} drawn`);
  }
}

// Walks through the page by Tab, in both directions of the document, and looks at each focus.
async function tab(page, check) {
  const wanted = await page.evaluate(() => {
    const all = document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]");
    return [...all].filter((e) => e.tabIndex >= 0 && e.checkVisibility()).map((e, i) => {
      e.dataset.look = i;
      return e.textContent.slice(0, 30) || e.getAttribute("aria-label");
    });
  });
  const seen = new Set();
  const bad = [];
  await page.evaluate(() => {
    document.activeElement?.blur();
    scrollTo(0, 0);
  });
  for (let i = 0; i < wanted.length + 3; i++) {
    await page.keyboard.press("Tab");
    const focus = await page.evaluate(() => {
      const e = document.activeElement;
      if (!e || e === document.body) return null;
      const style = getComputedStyle(e);
      const box = e.getBoundingClientRect();
      const bar = document.querySelector("header").getBoundingClientRect();
      return {
        look: e.dataset.look, name: e.getAttribute("aria-label") ?? e.textContent.slice(0, 30),
        outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && e.matches(":focus-visible"),
        inside: box.width > 0 && box.height > 0 && box.bottom > bar.bottom && box.top < innerHeight,
        labelled: Boolean(e.getAttribute("aria-label") || e.textContent.trim()),
      };
    });
    if (!focus) continue;
    seen.add(focus.look);
    if (!focus.outlined || !focus.inside || !focus.labelled) bad.push(JSON.stringify(focus));
  }
  const missed = wanted.filter((_, i) => !seen.has(String(i)));
  check("Tab reaches each element with visible focus", !bad.length && !missed.length && wanted.length > 0,
    [`${seen.size} of ${wanted.length}`, ...bad, ...missed.map((m) => `not reached: ${m}`)].join("; "));
}

// Moves the readout of the hour chart by keyboard, and opens its table.
async function readout(page, check) {
  await page.focus("#chart-hour .plot");
  const before = await page.$eval("#chart-hour .readout", (e) => e.textContent);
  await page.keyboard.press("End");
  await page.keyboard.press("ArrowLeft");
  const after = await page.$eval("#chart-hour .readout", (e) => e.textContent);
  const value = await page.$eval("#chart-hour .plot", (e) => e.getAttribute("aria-valuetext"));
  const points = await page.evaluate(() => window.look.history?.hour.length ?? 0);
  check("arrow keys move the readout", !points || (after !== before && /resumed/.test(value)), points ? value : "no history");
  await page.focus("#chart-hour summary");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("#chart-hour details").open);
  await new Promise((resolve) => setTimeout(resolve, 200));
  const rows = await page.$$eval("#chart-hour tbody tr", (found) => found.length);
  check("the table of the hour chart has its steps", Math.abs(rows - points) <= 1, `${rows} rows`);
}

async function changes(page, check) {
  const texts = () => page.evaluate(() => {
    const all = [...document.querySelectorAll("main td .cut, main dd .cut, main .big, main #lookups-sum, #facts, #status-note")];
    return all.map((e) => e.textContent);
  });
  const before = await texts();
  const end = Date.now() + WAIT;
  let changed = [];
  // Gives a number of the page preference over the clock, but an idle daemon may only have the clock.
  while (Date.now() < end) {
    const now = await texts();
    changed = now.filter((text, i) => text !== before[i]);
    if (changed.some((text) => !text.startsWith("State of"))) break;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  check("numbers change by themselves", changed.length > 0, `${changed.length} texts, for example ${changed[0]?.slice(0, 60)}`);
}

async function screenshot(page, file) {
  await page.evaluate(() => {
    document.activeElement?.blur();
    scrollTo(0, 0);
  });
  await page.screenshot({ path: file, fullPage: true });
}

export async function look(browser, url, folder, label = "") {
  await mkdir(folder, { recursive: true });
  let failed = 0;
  for (const view of VIEWS) {
    const result = results(`${label}${view.name}`);
    const { check } = result;
    const log = { errors: [], requests: [] };
    const page = await open(browser, url, view, log);
    if (check("a snapshot arrives", await shown(page))) {
      await charts(page, check);
      await changes(page, check);
      await screenshot(page, `${folder}/${view.name}.png`);
      const { wide, all } = await page.evaluate(() => ({ wide: innerWidth, all: document.documentElement.scrollWidth }));
      check("no horizontal overflow", all <= view.width && wide <= view.width, `${all} px of ${view.width} px`);
      const closed = await axe(page);
      check("axe finds no violation", closed.violations === 0, closed.text || `${closed.passes} rules pass; to look at: ${closed.incomplete || "none"}`);
      await tab(page, check);
      await readout(page, check);
      await tab(page, (name, ...rest) => check(`${name}, with the table open`, ...rest));
      const opened = await axe(page);
      check("axe finds no violation, with the table open", opened.violations === 0, opened.text);
      const text = await page.evaluate(() => document.body.innerText);
      const odd = text.match(/\b(NaN|undefined|null|Infinity|\[object)\b/);
      check("no text is NaN, undefined or null", !odd, odd?.[0]);
    }
    check("no console error", !log.errors.length, log.errors.join("; "));
    const origin = new URL(url).origin;
    const foreign = log.requests.filter((r) => !r.startsWith("data:") && new URL(r).origin !== origin);
    check("no request leaves the origin", !foreign.length, foreign.join(" ") || `${log.requests.length} requests`);
    await page.close();
    failed += result.failed;
  }
  return failed;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [url, folder] = process.argv.slice(2);
  if (!url || !folder) {
    console.error("usage: node look.mjs URL FOLDER");
    process.exit(2);
  }
  const browser = await launch();
  const failed = await look(browser, url, folder).finally(() => browser.close());
  console.log(failed ? `${failed} checks failed` : "all checks passed");
  process.exit(failed ? 1 : 0);
}
