// WebSockets in Node. The server says back what it hears. The client sends a text of LENGTH bytes over one connection to each address,
// with the TLS session of the connection before it. It prints how much of the text came back, and whether TLS was resumed.
//
// node websocket.js serve
// node websocket.js visit CA TLSv1.2|TLSv1.3 LENGTH ADDRESS...
"use strict";
const { readFileSync } = require("node:fs");
const { WebSocket, WebSocketServer } = require("ws");

function serve() {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
  server.on("connection", (socket) => socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary })));
  server.on("listening", () => console.log(`listening on ${server.address().port}`));
}

function visit(address, options, text) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`wss://${address}/`, options);
    const visited = {};
    socket.on("upgrade", (response) => {
      visited.resumed = response.socket.isSessionReused();
      visited.session = response.socket.getSession();
      response.socket.on("session", (session) => (visited.session = session));
    });
    socket.on("open", () => socket.send(text));
    socket.on("message", (data) => {
      visited.heard = data.toString() === text ? text.length : 0;
      socket.close(1000);
    });
    socket.on("close", (code) => resolve({ ...visited, code }));
    socket.on("error", reject);
  });
}

async function main() {
  const [ca, version, length, ...addresses] = process.argv.slice(3);
  const options = { ca: readFileSync(ca), servername: "localhost", minVersion: version, maxVersion: version };
  for (const [place, address] of addresses.entries()) {
    const { resumed, session, heard, code } = await visit(address, options, String(place).repeat(Number(length)));
    options.session = session;
    console.log(`${heard} of ${length} bytes, resumed: ${resumed} code: ${code}`);
  }
}

if (process.argv[2] === "serve") serve();
else
  main().catch((error) => {
    console.error(error);
    process.exit(1);
  });
