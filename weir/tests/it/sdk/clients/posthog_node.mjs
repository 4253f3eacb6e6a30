// Makes the calls of a plan by PostHog's client for Node. Fails if the client reports an error.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, host, key, path] = process.argv.slice(2);
const { PostHog } = createRequire(`${folder}/package.json`)("posthog-node");
const plan = JSON.parse(readFileSync(path, "utf8"));
const errors = [];
const client = new PostHog(key, { host, flushAt: 20, fetchRetryCount: 8, fetchRetryDelay: 500 });
client.on("error", (error) => errors.push(error));
for (const call of plan.calls) {
  const { properties } = call;
  const shared = { distinctId: call.user, uuid: call.id, timestamp: new Date(call.time) };
  if (call.call === "exposure") {
    const flag = { $feature_flag: plan.experiment, $feature_flag_response: call.variant };
    client.capture({ ...shared, event: "$feature_flag_called", properties: flag });
  }
  if (call.call === "order") {
    const order = { ...properties, revenue: call.value, currency: call.currency };
    client.capture({ ...shared, event: "Order Completed", properties: order });
  }
  if (call.call === "other") client.capture({ ...shared, event: "Video Watched", properties });
}
await client.shutdown(60_000);
if (errors.length > 0) {
  console.error(`${errors.length} errors, the first one:`, errors[0]);
  process.exit(1);
}
