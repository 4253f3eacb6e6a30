// Makes the calls of a plan by Segment's client for pages: each event in a request of its own, as it does by default, or in batches.

import { AnalyticsBrowser } from "@segment/analytics-next";

const { mode, url, key, plan } = given;
const deliveryStrategy = { strategy: mode, config: { size: 10, timeout: 500 } };
const destination = { apiHost: `${new URL(url).host}/v1`, protocol: "http", deliveryStrategy };
const analytics = AnalyticsBrowser.load(
  { writeKey: key, cdnSettings: { integrations: { "Segment.io": { apiKey: key } } } },
  { integrations: { "Segment.io": destination } },
);

async function deliver() {
  for (const call of plan.calls) {
    const { properties } = call;
    const options = { timestamp: new Date(call.time), messageId: `call ${call.id}` };
    if (call.call === "identify") {
      await analytics.reset();
      await analytics.identify(call.user, properties, options);
    }
    if (call.call === "exposure") {
      const names = { experiment_name: plan.experiment, variation_name: call.variant };
      await analytics.track("Experiment Viewed", names, options);
    }
    if (call.call === "order") {
      const order = { ...properties, revenue: call.value, currency: call.currency };
      await analytics.track("Order Completed", order, options);
    }
    if (call.call === "other") await analytics.track("Video Watched", properties, options);
  }
  document.title = "done";
}

deliver();
