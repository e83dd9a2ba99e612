"""A server that takes what W&B's client sends, as far as a run without artifacts needs it."""

import json
import math
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub(BaseHTTPRequestHandler):
    """Answers, and notes in `server.runs` each upsert's variables, in `server.rows` the history."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.server.requests += 1
        if self.server.requests > self.server.hangs_after:
            self.server.over.wait()
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.loads(data) if self.path != "/upload" else {}
        answer = {}
        if self.path == "/graphql":
            answer = {"data": self.graphql(body["query"], body.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.rows += map(json.loads, lines)
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self):
        self.do_POST()

    def graphql(self, query, variables):
        if "createRunFiles" in query:
            names = variables["files"]
            files = [{"name": name, "uploadUrl": self.server.url + "/upload"} for name in names]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "upsertBucket" not in query:
            return {}
        self.server.runs.append(variables)
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
        bucket = {
            "id": "b",
            "name": variables["name"],
            "displayName": variables["displayName"],
            "description": None,
            "config": variables["config"],
            "sweepName": None,
            "historyLineCount": 0,
            "project": project,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}


@contextmanager
def serve(hangs_after=math.inf):
    """The server, on a free port of this machine; after some requests it may answer no more."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.runs, server.rows, server.requests = [], [], 0
    server.hangs_after, server.over = hangs_after, threading.Event()
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
