// Makes the calls of a plan by RudderStack's client for Node. Fails if the client reports an error.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, dataPlaneUrl, writeKey, path] = process.argv.slice(2);
const Analytics = createRequire(`${folder}/package.json`)("@rudderstack/rudder-sdk-node");
const plan = JSON.parse(readFileSync(path, "utf8"));
const client = new Analytics(writeKey, { dataPlaneUrl, flushAt: 20, retryCount: 8, logLevel: "none" });
const sent = [];
for (const call of plan.calls) {
  const { properties } = call;
  const shared = { userId: call.user, messageId: `call ${call.id}`, originalTimestamp: new Date(call.time) };
  const send = (method, message) =>
    sent.push(new Promise((done) => client[method]({ ...shared, ...message }, (error) => done(error))));
  if (call.call === "identify") send("identify", { traits: properties });
  if (call.call === "exposure") {
    const names = { experiment_name: plan.experiment, variation_name: call.variant };
    send("track", { event: "Experiment Viewed", properties: names });
  }
  if (call.call === "order") {
    const order = { ...properties, revenue: call.value, currency: call.currency };
    send("track", { event: "Order Completed", properties: order });
  }
  if (call.call === "other") send("track", { event: "Video Watched", properties });
}
// A flush sends no more than a batch.
for (let at = 0; at < sent.length; at += 20) await client.flush();
const errors = (await Promise.all(sent)).filter((error) => error);
if (errors.length > 0) {
  console.error(`${errors.length} errors, the first one:`, errors[0]);
  process.exit(1);
}
process.exit(0);
