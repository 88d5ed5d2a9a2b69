// Reads a page of tasks from the gateway every few seconds. An unchanged page is a 304; the token is renewed before it expires.
const PAGE_SIZE = 10
const EVERY = 5000
// Renewed before it expires, so that no request fails.
const AHEAD = 10_000

const $ = (id) => document.getElementById(id)
const shown = { page: 1, pages: 1, etag: null }
let token = null

async function freshToken(anew = false) {
  const left = token ? Date.parse(token.expires_at) - Date.now() : 0
  if (anew || left < Math.min(AHEAD, token?.lifetime / 2 || AHEAD)) {
    const answer = await fetch('/token', { method: 'POST' })
    if (!answer.ok) throw new Error('no token is to be had: sign in again')
    token = await answer.json()
    token.lifetime = Date.parse(token.expires_at) - Date.now()
  }
  return token
}

async function ask(page, anew) {
  const { gateway, space, token } = await freshToken(anew)
  const url = `${gateway}/spaces/${space}/tasks?page=${page}&page_size=${PAGE_SIZE}`
  // The browser stores the page and revalidates it by its ETag. If we set If-None-Match, Chromium would send a preflight each time.
  return fetch(url, { headers: { Authorization: `Bearer ${token}` } })
}

async function read(page) {
  let answer = await ask(page)
  // Revoked, or the clock is wrong: try one new token.
  if (answer.status === 401) answer = await ask(page, true)
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
    row.append(cell(task.task_id), cell(task.status), cell(task.created))
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

$('previous').addEventListener('click', () => refresh(-1))
$('next').addEventListener('click', () => refresh(+1))
await refresh()
setInterval(refresh, EVERY)
