// Makes the calls of a plan by Statsig's client for Node, which decides by a specification that it is started with.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, url, key, path] = process.argv.slice(2);
const statsig = createRequire(`${folder}/package.json`)("statsig-node");
const plan = JSON.parse(readFileSync(path, "utf8"));
const usersOf = (variant) => plan.calls.filter((call) => call.variant === variant).map((call) => call.user);
const rule = (variant) => ({
  name: variant,
  id: variant,
  groupName: variant,
  salt: "",
  passPercentage: 100,
  idType: "userID",
  returnValue: {},
  conditions: [{ type: "user_field", field: "userID", operator: "any_case_sensitive", targetValue: usersOf(variant) }],
});
const experiment = {
  name: plan.experiment,
  type: "dynamic_config",
  entity: "experiment",
  salt: "",
  enabled: true,
  isActive: true,
  idType: "userID",
  defaultValue: {},
  rules: [rule("a"), rule("b")],
};
const specification = { has_updates: true, time: 1, feature_gates: [], dynamic_configs: [experiment], layer_configs: [] };
await statsig.initialize(key, {
  api: `${url}/v1`,
  bootstrapValues: JSON.stringify(specification),
  disableRulesetsSync: true,
  disableIdListsSync: true,
  initStrategyForIDLists: "none",
  initStrategyForIP3Country: "none",
  postLogsRetryBackoff: () => 500,
  loggingMaxBufferSize: 2_000,
});
// What it waits for before it sends again keeps no program from its end; a server goes on anyway.
setInterval(() => {}, 1_000);
for (const [at, call] of plan.calls.entries()) {
  const user = { userID: call.user };
  const { properties } = call;
  if (call.call === "exposure") statsig.getExperimentSync(user, plan.experiment);
  if (call.call === "order") statsig.logEvent(user, "Order Completed", call.value, { ...properties, currency: call.currency });
  if (call.call === "other") statsig.logEvent(user, "Video Watched", null, properties);
  if (at % 20 === 19) await statsig.flush();
}
await statsig.flush();
await statsig.shutdown();
process.exit(0);
