// Prints the tasks of a space, one line of JSON each: walks all pages by `Link`.
//
// Usage: GATEWAY_URL=http://127.0.0.1:8080 GATEWAY_KEY=... SPACE=... node tasks.mjs

import { setTimeout as sleep } from 'node:timers/promises'

const { GATEWAY_URL, GATEWAY_KEY, SPACE } = process.env
const TRIES = 5
// Pages as they were last read: one that did not change costs a 304 without a body.
const known = new Map()

// The rows of a page and the next page's URL. Ends the program on what trying again does not mend.
async function get(url) {
  for (let attempt = 1; ; attempt++) {
    const before = known.get(url)
    const headers = { Authorization: `Bearer ${GATEWAY_KEY}`, ...(before && { 'If-None-Match': before.etag }) }
    const answer = await fetch(url, { headers, signal: AbortSignal.timeout(30_000) })
    if (answer.status === 304) return before.page
    const body = await answer.json()
    if ([429, 503].includes(answer.status) && attempt < TRIES) {
      await sleep(1000 * Number(answer.headers.get('Retry-After') ?? 2 ** attempt))
      continue
    }
    // Such as 401 `unauthenticated` or 404 `space_not_found`; operators find the request by its id.
    if (!answer.ok) {
      console.error(`${body.code}: ${body.message} (request ${body.request_id})`)
      process.exit(1)
    }
    const next = answer.headers.get('Link')?.match(/<([^>]*)>; *rel="?next"?/)?.[1]
    const page = { rows: body.data, next: next && new URL(next, url).href }
    known.set(url, { etag: answer.headers.get('ETag'), page })
    return page
  }
}

const seen = new Set()
let url = `${GATEWAY_URL}/spaces/${SPACE}/tasks?page=1&page_size=100`
while (url) {
  const { rows, next } = await get(url)
  for (const task of rows) {
    // A task that is created while this runs moves the others one place down, and one may show twice.
    if (seen.has(task.task_id)) continue
    seen.add(task.task_id)
    console.log(JSON.stringify(task))
  }
  url = next
}
console.error(`${seen.size} tasks`)
