// Makes the calls of a plan by Snowplow's tracker for pages.

import { flushBuffer, newTracker, setUserId, trackSelfDescribingEvent, trackStructEvent } from "@snowplow/browser-tracker";

const { mode, url, key, plan } = given;
newTracker("plan", url, { appId: key, eventMethod: mode, bufferSize: mode === "post" ? 20 : 1 });
const track = (name, data, timestamp) =>
  trackSelfDescribingEvent({ event: { schema: `iglu:com.acme/${name}/jsonschema/1-0-0`, data }, timestamp });
for (const call of plan.calls) {
  const { properties } = call;
  const timestamp = { type: "ttm", value: call.millis };
  setUserId(call.user);
  if (call.call === "exposure") {
    const names = { label: plan.experiment, property: call.variant };
    trackStructEvent({ category: "experiments", action: "Experiment Viewed", ...names, timestamp });
  }
  if (call.call === "order") {
    track("order_completed", { ...properties, revenue: call.value, currency: call.currency }, timestamp);
  }
  if (call.call === "other") track("video_watched", properties, timestamp);
}
// What failed is kept, and goes again with the next flush.
setInterval(flushBuffer, 1_000);
document.title = "done";
