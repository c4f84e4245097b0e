"""What one would write first: a thread for each job, which asks Ray's own client every 5 s.

python -m tests.benchmarks.measured.naive <address> <file with submission ids>
"""

import os
import random
import sys
import threading
import time
from pathlib import Path

from tests.benchmarks.measured.meter import Meter

_INTERVAL_SECONDS = 5.0


def poll(client: "object", submission_id: str) -> None:
    time.sleep(random.uniform(0, _INTERVAL_SECONDS))
    while True:
        try:
            if client.get_job_status(submission_id).is_terminal():
                return
        except Exception as exc:
            print(exc, file=sys.stderr)
        time.sleep(_INTERVAL_SECONDS)


def main(address: str, ids: list[str]) -> None:
    # Both override the address that is given (Ray 2.60).
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(address)
    for submission_id in ids:
        threading.Thread(target=poll, args=(client, submission_id), daemon=True).start()
    meter = Meter()
    meter.serve()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).read_text().split())
