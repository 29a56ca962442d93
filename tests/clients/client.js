// A worker in Node. It makes the calls that tests/it/clients.rs expects of every client, with messages from the protos.
//
// client.js PROTOS tcp ADDRESS | unix PATH | tls ADDRESS FOLDER
const { readFileSync } = require('fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const [protos, kind, where, folder] = process.argv.slice(2);
const files = ['connection', 'context'].map((name) => `tls/sessiond/v1/${name}_service.proto`);
const options = { includeDirs: [protos], enums: String, oneofs: true };
const api = grpc.loadPackageDefinition(loader.loadSync(files, options)).tls.sessiond.v1;
// The details of an error. proto-loader defines only Any.
const rpc = protobuf.parse(`
  syntax = "proto3"; package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; }`).root.lookup('google.rpc');

function credentials() {
  if (kind !== 'tls') return grpc.credentials.createInsecure();
  const [ca, key, chain] = ['ca.pem', 'web.key', 'web.crt'].map((name) => readFileSync(`${folder}/${name}`));
  return grpc.credentials.createSsl(ca, key, chain);
}

async function main() {
  const target = kind === 'unix' ? `unix:${where}` : where;
  const contexts = new api.ContextService(target, credentials());
  const connections = new api.ConnectionService(target, credentials());
  const deadline = () => ({ deadline: Date.now() + 20000 });
  const call = (client, method, request) =>
    new Promise((done, failed) =>
      client[method](request, deadline(), (error, answer) => (error ? failed(error) : done(answer))));

  const listed = await call(contexts, 'ListContexts', {});
  console.log('contexts', ...listed.contexts.map((context) => context.name));

  const wanted = { role: 'ROLE_CLIENT', serverName: 'localhost' };
  const { connection } = await call(connections, 'New', wanted);
  const free = { connectionId: connection.id };
  await call(connections, 'Free', free);
  console.log('freed', connection.id.length);

  const stream = connections.Drive(deadline());
  stream.write({ new: wanted });
  stream.end();
  const answers = [];
  for await (const answer of stream) answers.push(answer);
  console.log('drive', ...answers.map((answer) => answer.event), answers[1].ciphertext[0]);

  await call(connections, 'Free', free).catch((error) => {
    const status = rpc.Status.decode(error.metadata.get('grpc-status-details-bin')[0]);
    const info = rpc.ErrorInfo.decode(status.details[0].value);
    console.log('error', grpc.status[error.code], info.reason, info.domain);
  });
  contexts.close();
  connections.close();
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
