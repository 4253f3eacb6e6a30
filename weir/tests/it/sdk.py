"""Makes the calls that stand in a file, one in a line, by Segment's own client. Fails if the client reports an error."""

import json
import sys
from datetime import datetime

from segment.analytics.client import Client

host, write_key, path = sys.argv[1:]
errors = []
client = Client(write_key, host=host, gzip=True, on_error=lambda error, batch: errors.append(error), max_retries=3)
with open(path, encoding="utf-8") as lines:
    for line in lines:
        call = json.loads(line)
        method = getattr(client, call.pop("call"))
        call["timestamp"] = datetime.fromisoformat(call["timestamp"])
        method(**call)
client.flush()
client.shutdown()
if errors:
    sys.exit(f"{len(errors)} errors, the first one: {errors[0]}")
