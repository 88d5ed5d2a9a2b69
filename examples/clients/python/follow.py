"""Follows the changes of a space and writes each state of a task once, as a line of JSON.

Usage: GATEWAY_URL=http://127.0.0.1:8080 GATEWAY_KEY=... SPACE=... python follow.py changes.jsonl

The file is output and position in one: behind the events of an answer stands its cursor. A run that was killed goes on from there.
"""

import json
import os
import sys
import time

import httpx

URL, KEY, SPACE = (os.environ[name] for name in ("GATEWAY_URL", "GATEWAY_KEY", "SPACE"))
LONGEST_PAUSE = 60


def load(path):
    """Returns the newest digest of each task and the last cursor. Cuts off a line that was not written to its end."""
    digests, cursor, length = {}, "start", 0
    with open(path, "a+b") as file:
        file.seek(0)
        for line in file:
            if not line.endswith(b"\n"):
                break
            entry, length = json.loads(line), length + len(line)
            cursor = entry.get("cursor", cursor)
            if "task_id" in entry:
                digests[entry["task_id"]] = entry["digest"]
        file.truncate(length)
    return digests, cursor


def ask(client, cursor):
    """Returns the next answer that is good, or says that the cursor is gone. Anything else is tried again, after a pause."""
    attempt = 0
    while True:
        pause = min(2**attempt, LONGEST_PAUSE)
        try:
            answer = client.get(f"/spaces/{SPACE}/changes", params={"after": cursor, "wait": 30})
            if answer.is_success or answer.status_code == 410:
                return answer
            # 429 and 503 say how long to wait. 401 does not: a key that is being replaced works again once the gateway knows it.
            pause = int(answer.headers.get("Retry-After", pause))
            print(f"{answer.status_code}: {answer.json().get('message')}", file=sys.stderr)
        except (httpx.TransportError, ValueError) as error:
            print(f"no answer: {error}", file=sys.stderr)
        time.sleep(pause)
        attempt += 1


def follow(path):
    digests, cursor = load(path)
    headers = {"Authorization": f"Bearer {KEY}"}
    with open(path, "a", encoding="utf-8") as file, httpx.Client(base_url=URL, headers=headers, timeout=60) as client:
        while True:
            answer = ask(client, cursor)
            if answer.status_code == 410:
                # What happened meanwhile is not known: all tasks are read again. Those that did not change are skipped below.
                cursor = "start"
                continue
            body = answer.json()
            for event in body["data"]:
                # The gateway may send a state twice, never a newer one first.
                if "digest" in event and digests.get(event["task_id"]) != event["digest"]:
                    digests[event["task_id"]] = event["digest"]
                    print(json.dumps(event), file=file)
            if body["cursor"] != cursor:
                cursor = body["cursor"]
                print(json.dumps({"cursor": cursor}), file=file, flush=True)


if __name__ == "__main__":
    try:
        follow(sys.argv[1])
    except KeyboardInterrupt:
        pass
