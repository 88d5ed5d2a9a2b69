// Follows the changes of a space and writes each state of a task once, as a line of JSON.
//
// Usage: GATEWAY_URL=http://127.0.0.1:8080 GATEWAY_KEY=... SPACE=... node follow.mjs changes.jsonl
//
// The file is output and position in one: behind the events of an answer stands its cursor. A run that was killed goes on from there.

import { appendFileSync, existsSync, readFileSync, truncateSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

const { GATEWAY_URL, GATEWAY_KEY, SPACE } = process.env
const LONGEST_PAUSE = 60

// The newest digest of each task and the last cursor. Cuts off a line that was not written to its end.
function load(path) {
  const digests = new Map()
  let cursor = 'start'
  const text = existsSync(path) ? readFileSync(path, 'utf8') : ''
  const whole = text.slice(0, text.lastIndexOf('\n') + 1)
  for (const line of whole.split('\n').slice(0, -1)) {
    const entry = JSON.parse(line)
    cursor = entry.cursor ?? cursor
    if (entry.task_id) digests.set(entry.task_id, entry.digest)
  }
  if (whole !== text) truncateSync(path, Buffer.byteLength(whole))
  return { digests, cursor }
}

// The next answer that is good, or says that the cursor is gone. Anything else is tried again, after a pause.
async function ask(cursor) {
  const query = new URLSearchParams({ after: cursor, wait: 30 })
  for (let attempt = 0; ; attempt++) {
    let pause = Math.min(2 ** attempt, LONGEST_PAUSE)
    try {
      const answer = await fetch(`${GATEWAY_URL}/spaces/${SPACE}/changes?${query}`, {
        headers: { Authorization: `Bearer ${GATEWAY_KEY}` },
        signal: AbortSignal.timeout(60_000),
      })
      const body = await answer.json()
      if (answer.ok || answer.status === 410) return { status: answer.status, body }
      // 429 and 503 say how long to wait. 401 does not: a key that is being replaced works again once the gateway knows it.
      pause = Number(answer.headers.get('Retry-After') ?? pause)
      console.error(`${answer.status}: ${body.message}`)
    } catch (error) {
      console.error(`no answer: ${error.cause ?? error}`)
    }
    await sleep(pause * 1000)
  }
}

const path = process.argv[2]
let { digests, cursor } = load(path)
for (;;) {
  const { status, body } = await ask(cursor)
  if (status === 410) {
    // What happened meanwhile is not known: all tasks are read again. Those that did not change are skipped below.
    cursor = 'start'
    continue
  }
  // The gateway may send a state twice, never a newer one first.
  const lines = []
  for (const event of body.data) {
    if (!event.digest || digests.get(event.task_id) === event.digest) continue
    digests.set(event.task_id, event.digest)
    lines.push(JSON.stringify(event))
  }
  if (body.cursor !== cursor) {
    cursor = body.cursor
    lines.push(JSON.stringify({ cursor }))
  }
  if (lines.length) appendFileSync(path, lines.join('\n') + '\n')
}
