"""Receives webhooks: prints its port, reads the secret from stdin, then prints a line of JSON for each request, and whether its signature is right.

The signature is computed as https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md says.
"""

import base64
import hashlib
import hmac
import http.server
import json
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + body
        signature = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
        is_right = hmac.compare_digest(f"v1,{signature}", self.headers["webhook-signature"])
        print(json.dumps({"id": self.headers["webhook-id"], "is_right": is_right, "body": json.loads(body)}), flush=True)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
SECRET = base64.b64decode(sys.stdin.readline().strip().removeprefix("whsec_"))
server.serve_forever()
