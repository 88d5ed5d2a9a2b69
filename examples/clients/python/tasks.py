"""Prints the tasks of a space, one line of JSON each: walks all pages by `Link`.

Usage: GATEWAY_URL=http://127.0.0.1:8080 GATEWAY_KEY=... SPACE=... python tasks.py
"""

import json
import os
import sys
import time

import httpx

URL, KEY, SPACE = (os.environ[name] for name in ("GATEWAY_URL", "GATEWAY_KEY", "SPACE"))
TRIES = 5


class Pages:
    """Pages as they were last read: one that did not change costs a 304 without a body."""

    def __init__(self, client):
        self.client = client
        self.known = {}

    def get(self, url):
        """Returns the rows of a page and the next page's URL. Raises on what trying again does not mend."""
        for attempt in range(TRIES):
            etag, answer = self.known.get(url, (None, None))
            headers = {"If-None-Match": etag} if etag else {}
            response = self.client.get(url, headers=headers)
            if response.status_code == 304:
                response = answer
            elif response.status_code in (429, 503) and attempt + 1 < TRIES:
                time.sleep(int(response.headers.get("Retry-After", 2**attempt)))
                continue
            elif response.is_error:
                problem = response.json()
                # Such as 401 `unauthenticated` or 404 `space_not_found`; operators find the request by its id.
                raise SystemExit(f"{problem['code']}: {problem['message']} (request {problem['request_id']})")
            self.known[url] = (response.headers["ETag"], response)
            following = response.links.get("next")
            return response.json()["data"], following and str(response.url.join(following["url"]))


def main():
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=URL, headers=headers, timeout=30) as client:
        pages, url, seen = Pages(client), f"/spaces/{SPACE}/tasks?page=1&page_size=100", set()
        while url:
            rows, url = pages.get(url)
            for task in rows:
                # A task that is created while this runs moves the others one place down, and one may show twice.
                if task["task_id"] not in seen:
                    seen.add(task["task_id"])
                    print(json.dumps(task))
    print(f"{len(seen)} tasks", file=sys.stderr)


if __name__ == "__main__":
    main()
