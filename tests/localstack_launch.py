"""Run LocalStack on loopback: `python localstack_launch.py PORT DIRECTORY`, with the Python of .venv-localstack.

LocalStack listens on all interfaces whatever GATEWAY_LISTEN names, so the endpoint it listens with is wrapped here.
Everything it writes goes below DIRECTORY. Healthy when GET /_localstack/health answers.
"""

import functools
import importlib
import os
import sys
from typing import Any

SETTINGS = {
    "SERVICES": "kms,s3,sqs,events,sts,iam",
    "STRICT_SERVICE_LOADING": "1",
    "DNS_ADDRESS": "0",
    "DISABLE_EVENTS": "1",  # no telemetry
    "SKIP_SSL_CERT_DOWNLOAD": "1",
    "USE_SSL": "0",
    "S3_SKIP_KMS_KEY_VALIDATION": "0",
    "S3_SKIP_SIGNATURE_VALIDATION": "0",
    "SQS_ENDPOINT_STRATEGY": "path",  # queue addresses on localhost itself, not on a name below it
    "OVERRIDE_IN_DOCKER": "0",  # inside a container too, FILESYSTEM_ROOT is to count
}


def main(port: int, directory: str) -> None:
    """Start the server; it ends with SIGTERM or SIGINT."""
    os.environ.update(
        SETTINGS,
        GATEWAY_LISTEN=f"127.0.0.1:{port}",
        LOCALSTACK_HOST=f"localhost:{port}",
        FILESYSTEM_ROOT=directory,
        TMPDIR=directory,
    )
    # By name: none of this is installed where the project's own types are checked.
    endpoints: Any = importlib.import_module("twisted.internet.endpoints")
    endpoints.TCP4ServerEndpoint = functools.partial(endpoints.TCP4ServerEndpoint, interface="127.0.0.1")
    # The settings above are read when LocalStack is imported. S3's bytes go to a fixed folder unless told here.
    provider: Any = importlib.import_module("localstack.services.s3.provider")
    provider.DEFAULT_S3_TMP_DIR = f"{directory}/s3"
    importlib.import_module("localstack.runtime.main").main()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
