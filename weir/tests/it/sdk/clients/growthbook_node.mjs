// Makes the calls of a plan by GrowthBook's client for JavaScript and its tracking plugin, one for all users, as a server has.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout } from "node:timers/promises";

const [folder, ingestorHost, clientKey, path] = process.argv.slice(2);
const require = createRequire(`${folder}/package.json`);
const { GrowthBookClient } = require("@growthbook/growthbook");
const { growthbookTrackingPlugin } = require("@growthbook/growthbook/plugins");
const plan = JSON.parse(readFileSync(path, "utf8"));
const client = new GrowthBookClient({ clientKey, plugins: [growthbookTrackingPlugin({ ingestorHost })] });
console.error = () => {}; // What was lost, which the test counts.
for (const [at, call] of plan.calls.entries()) {
  const { properties } = call;
  const user = { attributes: { user_id: call.user } };
  if (call.call === "exposure") {
    const experiment = {
      key: plan.experiment,
      variations: ["a", "b"],
      meta: [{ key: "a" }, { key: "b" }],
      weights: call.variant === "a" ? [1, 0] : [0, 1],
      hashAttribute: "user_id",
    };
    client.runInlineExperiment(experiment, user);
  }
  if (call.call === "order") {
    client.logEvent("Order Completed", { ...properties, revenue: call.value, currency: call.currency }, user);
  }
  if (call.call === "other") client.logEvent("Video Watched", properties, user);
  // What is logged within 100 ms goes in one request.
  if (at % 40 === 39) await setTimeout(150);
}
