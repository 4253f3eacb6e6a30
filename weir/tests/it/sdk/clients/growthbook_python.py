"""Makes the calls of a plan by GrowthBook's client for Python and its tracking plugin: an instance for each user, as a server has."""

import json
import sys
import threading

from growthbook import Experiment, GrowthBook
from growthbook.plugins import GrowthBookTrackingPlugin

host, key, path = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    plan = json.load(file)
instances = {}
for call in plan["calls"]:
    user = call["user"]
    if user not in instances:
        # Features come from elsewhere, and this has none.
        plugin = GrowthBookTrackingPlugin(ingestor_host=host)
        instances[user] = GrowthBook(api_host="http://127.0.0.1:9", client_key=key, attributes={"user_id": user}, plugins=[plugin])
    client = instances[user]
    match call["call"]:
        case "exposure":
            weights = [1, 0] if call["variant"] == "a" else [0, 1]
            meta = [{"key": "a"}, {"key": "b"}]
            client.run(Experiment(plan["experiment"], ["a", "b"], hashAttribute="user_id", weights=weights, meta=meta))
        case "order":
            order = {**call["properties"], "revenue": call["value"], "currency": call["currency"]}
            client.log_event("Order Completed", order)
        case "other":
            client.log_event("Video Watched", call["properties"])
for client in instances.values():
    client.destroy()
# Its threads are daemons, which end with the program, whatever they have not sent by then.
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join()
