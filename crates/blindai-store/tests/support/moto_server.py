"""An S3 server that also answers to clients of Google Cloud Storage: ``moto_server.py PORT``.

Google's XML API is S3's, with some headers of its own. Those that a store sends and reads are
translated here. It ends with its standard input.
"""

import itertools
import os
import sys
import threading

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple

# Moto looks at who signed for what and not at the signature, which Google's clients do not make.
SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
GENERATIONS = itertools.count(1)


class Server(DomainDispatcherApplication):
    def __call__(self, environ, start_response):
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4"):
            environ["HTTP_AUTHORIZATION"] = SIGNED
        generation = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
        if generation not in (None, "0"):
            start_response("501 Not Implemented", [])
            return []
        if generation == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"

        def start(status, headers, *rest):
            generation = ("x-goog-generation", str(next(GENERATIONS)))
            return start_response(status, [*headers, generation], *rest)

        return super().__call__(environ, start)


def end_with_standard_input():
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    application = Server(create_backend_app)
    port = int(sys.argv[1])
    run_simple("127.0.0.1", port, application, threaded=True, request_handler=MotoRequestHandler)
