// Makes the calls of a plan by Snowplow's tracker for Node.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout } from "node:timers/promises";

const [folder, endpoint, appId, path] = process.argv.slice(2);
const snowplow = createRequire(`${folder}/package.json`)("@snowplow/node-tracker");
const { newTracker, buildSelfDescribingEvent, buildStructEvent } = snowplow;
const plan = JSON.parse(readFileSync(path, "utf8"));
let delivered = 0;
const tracker = newTracker(
  { namespace: "plan", appId },
  { endpoint, bufferSize: 20, onRequestSuccess: (events) => (delivered += events.length) },
);
const described = (name, data) => buildSelfDescribingEvent({ event: { schema: `iglu:com.acme/${name}/jsonschema/1-0-0`, data } });
let calls = 0;
for (const call of plan.calls) {
  const { properties } = call;
  const track = (event) => {
    calls += 1;
    tracker.setUserId(call.user);
    tracker.track(event, [], { type: "ttm", value: call.millis });
  };
  if (call.call === "exposure") {
    const names = { label: plan.experiment, property: call.variant };
    track(buildStructEvent({ category: "experiments", action: "Experiment Viewed", ...names }));
  }
  if (call.call === "order") {
    track(described("order_completed", { ...properties, revenue: call.value, currency: call.currency }));
  }
  if (call.call === "other") track(described("video_watched", properties));
}
// What failed is kept, and goes again with the next flush.
while (delivered < calls) {
  tracker.flush();
  await setTimeout(100);
}
