// Shows a page of tasks, live: changes come by a stream. While there is none, the page is read again every few seconds.
import { follow } from './follow.js'

const PAGE_SIZE = 10
const EVERY = 5000
// Renewed before it expires, so that no request fails.
const AHEAD = 10_000

const $ = (id) => document.getElementById(id)
const shown = { page: 1, pages: 1, etag: null }
// By task: what the stream said last. A stored page may be older than that.
const statuses = new Map()
let live = false
let token = null

async function freshToken(renew = false) {
  const left = token ? Date.parse(token.expires_at) - Date.now() : 0
  if (renew || left < Math.min(AHEAD, token?.lifetime / 2 || AHEAD)) {
    const answer = await fetch('/token', { method: 'POST' })
    if (!answer.ok) throw new Error('no token: sign in again')
    token = await answer.json()
    token.lifetime = Date.parse(token.expires_at) - Date.now()
  }
  return token
}

// Asks the gateway for something of the space.
async function ask(path, headers = {}) {
  const attempt = async (renew) => {
    const { gateway, space, token } = await freshToken(renew)
    return fetch(`${gateway}/spaces/${space}/${path}`, { headers: { ...headers, Authorization: `Bearer ${token}` } })
  }
  const answer = await attempt()
  // Revoked, or the clock is wrong: try one new token.
  return answer.status === 401 ? attempt(true) : answer
}

async function read(page) {
  // The browser stores the page and revalidates it by its ETag. If we set If-None-Match, Chromium would send a preflight each time.
  const answer = await ask(`tasks?page=${page}&page_size=${PAGE_SIZE}`)
  const body = await answer.json()
  if (!answer.ok) throw new Error(`${body.message} (${body.code}, request ${body.request_id})`)
  const etag = answer.headers.get('ETag')
  if (page === shown.page && etag === shown.etag) return 'unchanged'
  Object.assign(shown, { page, etag, pages: Math.max(1, Math.ceil(body.count / PAGE_SIZE)) })
  show(body)
  return `${body.count} tasks`
}

function show({ data }) {
  const cell = (text) => Object.assign(document.createElement('td'), { textContent: text ?? '' })
  const rows = data.map((task) => {
    const row = document.createElement('tr')
    row.dataset.task = task.task_id
    row.append(cell(task.task_id), cell(statuses.get(task.task_id) ?? task.status), cell(task.created))
    return row
  })
  $('tasks').replaceChildren(...rows)
  $('page').textContent = `Page ${shown.page} of ${shown.pages}`
  $('previous').disabled = shown.page <= 1
  $('next').disabled = shown.page >= shown.pages
}

async function tell(page) {
  try {
    $('state').textContent = `${await read(page)}, ${new Date().toLocaleTimeString()}`
  } catch (error) {
    $('state').textContent = `Not read: ${error.message}`
  }
}

// One request at a time, so that a late response never replaces a newer page.
let turn = Promise.resolve()
const refresh = (step = 0) => (turn = turn.then(() => tell(Math.min(Math.max(1, shown.page + step), shown.pages))))

// Many changes at once are one request.
let soon = null
const refreshSoon = () => (soon ??= setTimeout(() => (soon = null, refresh()), 200))

function onEvent({ type, task_id, status }) {
  if (type === 'task.created' || type === 'task.updated') {
    statuses.set(task_id, status)
    const row = document.querySelector(`[data-task="${CSS.escape(task_id)}"]`)
    if (row) row.cells[1].textContent = status
    else if (type === 'task.created') refreshSoon()
  } else if (type === 'space.reset' || type === 'space.gone') {
    refreshSoon()
  }
}

function onLive(now) {
  live = now
  // Without a stream nobody corrects them.
  if (!live) statuses.clear()
  $('live').textContent = live ? 'Live' : `Read every ${EVERY / 1000} seconds`
}

$('previous').addEventListener('click', () => refresh(-1))
$('next').addEventListener('click', () => refresh(+1))
onLive(false)
await refresh()
setInterval(() => live || refresh(), EVERY)
follow({
  // Without a cursor: all tasks that are watched, then each change.
  open: (cursor) => ask('changes?after=start', { Accept: 'text/event-stream', ...(cursor && { 'Last-Event-ID': cursor }) }),
  onEvent,
  onLive,
})
