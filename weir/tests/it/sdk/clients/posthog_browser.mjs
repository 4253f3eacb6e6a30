// Makes the calls of a plan by PostHog's client for pages.

import posthog from "posthog-js";

const { url, key, plan } = given;
posthog.init(key, {
  api_host: url,
  autocapture: false,
  capture_pageview: false,
  capture_pageleave: false,
  disable_session_recording: true,
  // A page does not make a thousand calls at once; by default those after the hundredth are dropped.
  rate_limiting: { events_per_second: 10_000, events_burst_limit: 10_000 },
});
for (const call of plan.calls) {
  const { properties } = call;
  const options = { timestamp: new Date(call.time), uuid: call.id };
  if (call.call === "identify") {
    posthog.reset();
    posthog.identify(call.user, properties);
  }
  if (call.call === "exposure") {
    const flag = { $feature_flag: plan.experiment, $feature_flag_response: call.variant };
    posthog.capture("$feature_flag_called", flag, options);
  }
  if (call.call === "order") {
    posthog.capture("Order Completed", { ...properties, revenue: call.value, currency: call.currency }, options);
  }
  if (call.call === "other") posthog.capture("Video Watched", properties, options);
}
document.title = "done";
