// Makes the calls of a plan by Segment's client for Node. Fails if the client reports an error.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, host, writeKey, path] = process.argv.slice(2);
const { Analytics } = createRequire(`${folder}/package.json`)("@segment/analytics-node");
const plan = JSON.parse(readFileSync(path, "utf8"));
const errors = [];
const client = new Analytics({ host, writeKey, maxRetries: 5, flushAt: 20 });
client.on("error", (error) => errors.push(error));
for (const call of plan.calls) {
  const { properties } = call;
  const shared = { userId: call.user, messageId: `call ${call.id}`, timestamp: new Date(call.time) };
  if (call.call === "identify") client.identify({ ...shared, traits: properties });
  if (call.call === "exposure") {
    const names = { experiment_name: plan.experiment, variation_name: call.variant };
    client.track({ ...shared, event: "Experiment Viewed", properties: names });
  }
  if (call.call === "order") {
    const order = { ...properties, revenue: call.value, currency: call.currency };
    client.track({ ...shared, event: "Order Completed", properties: order });
  }
  if (call.call === "other") client.track({ ...shared, event: "Video Watched", properties });
}
await client.closeAndFlush({ timeout: 60_000 });
if (errors.length > 0) {
  console.error(`${errors.length} errors, the first one:`, errors[0]);
  process.exit(1);
}
