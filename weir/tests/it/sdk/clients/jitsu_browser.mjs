// Makes the calls of a plan by Jitsu's client for pages.

import { jitsuAnalytics } from "@jitsu/js";

const { url, key, plan } = given;
const analytics = jitsuAnalytics({ host: url, writeKey: key });

async function deliver() {
  for (const call of plan.calls) {
    const { properties } = call;
    if (call.call === "identify") {
      await analytics.reset();
      await analytics.identify(call.user, properties);
    }
    if (call.call === "exposure") {
      await analytics.track("Experiment Viewed", { experiment_name: plan.experiment, variation_name: call.variant });
    }
    if (call.call === "order") {
      await analytics.track("Order Completed", { ...properties, revenue: call.value, currency: call.currency });
    }
    if (call.call === "other") await analytics.track("Video Watched", properties);
  }
  document.title = "done";
}

deliver();
