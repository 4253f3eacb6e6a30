"""Makes the calls of a plan by RudderStack's client for Python. Fails if the client reports an error."""

import json
import sys
from datetime import datetime

from rudderstack.analytics.client import Client

host, write_key, path = sys.argv[1:]
errors = []
client = Client(write_key, host=host, upload_size=20, on_error=lambda error, batch: errors.append(error))
with open(path, encoding="utf-8") as file:
    plan = json.load(file)
for call in plan["calls"]:
    shared = {
        "user_id": call["user"],
        "message_id": f"call {call['id']}",
        "timestamp": datetime.fromisoformat(call["time"].replace("Z", "+00:00")),
    }
    match call["call"]:
        case "identify":
            client.identify(traits=call["properties"], **shared)
        case "exposure":
            names = {"experiment_name": plan["experiment"], "variation_name": call["variant"]}
            client.track(event="Experiment Viewed", properties=names, **shared)
        case "order":
            order = {**call["properties"], "revenue": call["value"], "currency": call["currency"]}
            client.track(event="Order Completed", properties=order, **shared)
        case "other":
            client.track(event="Video Watched", properties=call["properties"], **shared)
client.flush()
client.join()
if errors:
    sys.exit(f"{len(errors)} errors, the first one: {errors[0]}")
