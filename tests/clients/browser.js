// Chromium fetches pages, one after the other, and then talks over a WebSocket. For each page it prints the version of TLS, the
// protocol and the page, and then what the WebSocket heard.
//
// node browser.js CERTIFICATE WEBSOCKET_URL URL...
//
// Chromium trusts the certificate of the server by its key. CHROMIUM is the path of the browser, if it is not /usr/bin/chromium.
"use strict";
const { createHash, X509Certificate } = require("node:crypto");
const { readFileSync } = require("node:fs");
const puppeteer = require("puppeteer-core");

const [certificate, websocketUrl, ...urls] = process.argv.slice(2);
const key = new X509Certificate(readFileSync(certificate)).publicKey.export({ type: "spki", format: "der" });
const args = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  `--ignore-certificate-errors-spki-list=${createHash("sha256").update(key).digest("base64")}`,
];

// Runs in the page. Says a text, and returns what came back and whether the end was clean.
function converse(url) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.onopen = () => socket.send("text of a browser");
    socket.onmessage = (event) => {
      socket.onclose = (end) => resolve(`${event.data} clean: ${end.wasClean}`);
      socket.close(1000);
    };
    socket.onerror = () => reject(new Error("the WebSocket failed"));
  });
}

async function main() {
  const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args });
  try {
    const page = await browser.newPage();
    for (const url of urls) {
      const answer = await page.goto(url, { waitUntil: "load" });
      const protocol = await page.evaluate(() => performance.getEntriesByType("navigation")[0].nextHopProtocol);
      console.log(`${answer.securityDetails().protocol()} ${protocol} page: ${(await answer.text()).trim()}`);
    }
    console.log(`websocket: ${await page.evaluate(converse, websocketUrl)}`);
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
