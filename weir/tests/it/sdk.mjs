// Makes the calls that stand in a file, one in a line, by Segment's own client for Node. Fails if the client reports an error.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, host, writeKey, path] = process.argv.slice(2);
const { Analytics } = createRequire(`${folder}/package.json`)("@segment/analytics-node");
const errors = [];
const client = new Analytics({ host, writeKey, maxRetries: 3, flushAt: 50 });
client.on("error", (error) => errors.push(error));
for (const line of readFileSync(path, "utf8").split("\n")) {
  const { call, user_id: userId, message_id: messageId, timestamp, event, properties, traits } = JSON.parse(line);
  const shared = { userId, messageId, timestamp: new Date(timestamp) };
  if (call === "track") client.track({ ...shared, event, properties });
  else client.identify({ ...shared, traits });
}
await client.closeAndFlush({ timeout: 30_000 });
if (errors.length > 0) {
  console.error(`${errors.length} errors, the first one:`, errors[0]);
  process.exit(1);
}
