"""Makes the calls of a plan by Snowplow's tracker for Python."""

import json
import sys
import time

from snowplow_tracker import Emitter, SelfDescribing, SelfDescribingJson, StructuredEvent, Subject, Tracker

host, key, path = sys.argv[1:]
delivered = 0


def count(events):
    global delivered
    delivered += len(events)


emitter = Emitter(host, batch_size=20, max_retry_delay_seconds=1, on_success=count)
tracker = Tracker("plan", emitter, app_id=key)
with open(path, encoding="utf-8") as file:
    plan = json.load(file)


def described(name, data):
    return SelfDescribingJson(f"iglu:com.acme/{name}/jsonschema/1-0-0", data)


calls = [call for call in plan["calls"] if call["call"] != "identify"]
for call in calls:
    shared = {"event_subject": Subject().set_user_id(call["user"]), "true_timestamp": call["millis"]}
    match call["call"]:
        case "exposure":
            tracker.track(StructuredEvent("experiments", "Experiment Viewed", plan["experiment"], call["variant"], **shared))
        case "order":
            order = {**call["properties"], "revenue": call["value"], "currency": call["currency"]}
            tracker.track(SelfDescribing(described("order_completed", order), **shared))
        case "other":
            tracker.track(SelfDescribing(described("video_watched", call["properties"]), **shared))
# What failed is sent again by a timer of the tracker's, which ends with the program.
while delivered < len(calls):
    tracker.flush()
    time.sleep(0.05)
