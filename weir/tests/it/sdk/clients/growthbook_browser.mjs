// Makes the calls of a plan by GrowthBook's client for JavaScript and its tracking plugin, an instance for each user, as a page has.

import { GrowthBook } from "@growthbook/growthbook";
import { growthbookTrackingPlugin } from "@growthbook/growthbook/plugins";

const { url, key, plan } = given;

async function deliver() {
  let client;
  for (const call of plan.calls) {
    const { properties } = call;
    if (call.call === "identify") {
      client?.destroy();
      // Browsers refuse requests that outlive their page once 64 KiB of them are on their way.
      await new Promise((done) => setTimeout(done, 20));
      const plugins = [growthbookTrackingPlugin({ ingestorHost: url })];
      client = new GrowthBook({ clientKey: key, attributes: { user_id: call.user }, plugins });
    }
    if (call.call === "exposure") {
      const weights = call.variant === "a" ? [1, 0] : [0, 1];
      const meta = [{ key: "a" }, { key: "b" }];
      client.run({ key: plan.experiment, variations: ["a", "b"], meta, weights, hashAttribute: "user_id" });
    }
    if (call.call === "order") {
      client.logEvent("Order Completed", { ...properties, revenue: call.value, currency: call.currency });
    }
    if (call.call === "other") client.logEvent("Video Watched", properties);
  }
  client.destroy();
  document.title = "done";
}

deliver();
