"""Makes the calls of a plan by PostHog's client for Python, over its v0 or its v1. Fails if the client reports an error."""

import json
import sys
from datetime import datetime

from posthog import Posthog

mode, host, key, path = sys.argv[1:]
errors = []
client = Posthog(
    key,
    host=host,
    capture_mode=mode,
    gzip=mode == "v0",
    capture_compression="gzip",
    flush_at=20,
    max_retries=6,
    on_error=lambda error, batch: errors.append(error),
)
with open(path, encoding="utf-8") as file:
    plan = json.load(file)
for call in plan["calls"]:
    shared = {"distinct_id": call["user"], "uuid": call["id"], "timestamp": datetime.fromisoformat(call["time"].replace("Z", "+00:00"))}
    match call["call"]:
        case "identify":
            client.set(properties=call["properties"], **shared)
        case "exposure":
            flag = {"$feature_flag": plan["experiment"], "$feature_flag_response": call["variant"]}
            client.capture("$feature_flag_called", properties=flag, **shared)
        case "order":
            order = {**call["properties"], "revenue": call["value"], "currency": call["currency"]}
            client.capture("Order Completed", properties=order, **shared)
        case "other":
            client.capture("Video Watched", properties=call["properties"], **shared)
client.flush(timeout_seconds=None)
client.shutdown()
if errors:
    sys.exit(f"{len(errors)} errors, the first one: {errors[0]}")
