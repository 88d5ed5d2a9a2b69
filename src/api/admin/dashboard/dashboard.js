// Draws GET /status and GET /metrics every two seconds, and GET /history every ten. Every number is a sample of /metrics, or a sum of some.
import { setText } from './rows.js'
import { bytes, clock, duration, parse } from './samples.js'
import { callsLeft, showClients, showCredentials, showErrors, showHistory, showLatency, showNumbers, showOutcomes, showReadiness, showSpaces, showWatches } from './sections.js'
import { CIRCUITS, ERRORS, STATES } from './words.js'

const EVERY_MS = 2000
const HISTORY_EVERY = 5
const PATIENCE_MS = 10_000
// Numbers older than this are not shown as current, whatever the poll under way may bring.
const STALE_MS = 6000
// The credentials of a URL such as http://x:key@host/ must not be part of what is fetched.
const BASE = location.origin

const $ = (id) => document.getElementById(id)

// --- The strip ---

let answeredAt = null

function showStrip({ instance, version, uptime_seconds: uptime, readiness, credentials }) {
  const state = STATES[readiness.status] ?? readiness.status
  const name = instance ?? location.host
  document.body.className = ''
  $('strip').className = readiness.status === 'ready' ? 'good' : 'bad'
  setText($('state'), state)
  setText($('lost'), '')
  setText($('instance'), name)
  setText($('version'), version)
  setText($('uptime'), duration(Math.floor(uptime)))
  setText($('calls-left'), callsLeft(credentials))
  document.title = `${state} – ${name} – unpod-gateway`
}

// What is on the page is no longer true: red above, grey below.
function showLost(why) {
  document.body.className = 'lost'
  $('strip').className = 'bad'
  setText($('state'), 'Not answering')
  for (const id of ['uptime', 'calls-left', 'error-rate']) setText($(id), '–')
  document.title = 'Not answering – unpod-gateway'
  const since = answeredAt === null ? '' : ` since ${clock(new Date(answeredAt))}. All numbers are from then and out of date`
  setText($('lost'), `No answer from the gateway${since}. ${why}`)
}

// A computer that slept, or a poll that hangs, must not leave an old state standing.
function checkAge() {
  if (answeredAt !== null && Date.now() - answeredAt > STALE_MS && document.body.className === '') {
    showLost('It is asked every two seconds.')
  }
}

function show(status, metrics) {
  answeredAt = Date.now()
  showStrip(status)
  showReadiness(status.readiness)
  showNumbers(metrics)
  showCredentials(status.credentials)
  showClients(metrics)
  showLatency(metrics)
  showOutcomes(metrics)
  showErrors(metrics, answeredAt)
  showSpaces(status.spaces, purge)
  showWatches(status.watches, metrics)
}

// --- Asking ---

const ask = (path, method = 'GET') => fetch(`${BASE}/${path}`, { method, cache: 'no-store', signal: AbortSignal.timeout(PATIENCE_MS) })

async function refresh(withHistory = false) {
  try {
    const paths = ['status', 'metrics', ...(withHistory ? ['history'] : [])]
    const answers = await Promise.all(paths.map((path) => ask(path)))
    const failed = answers.find(({ ok }) => !ok)
    if (failed) throw new Error(`it answers ${failed.status}`)
    const [status, metrics, history] = answers
    const samples = parse(await metrics.text())
    show(await status.json(), samples)
    if (history) showHistory(await history.json())
  } catch (error) {
    showLost(`The last attempt failed: ${error.message}.`)
  }
}

async function keepRefreshing(polls = 0) {
  await refresh(polls % HISTORY_EVERY === 0)
  setTimeout(keepRefreshing, EVERY_MS, polls + 1)
}

// --- Acting ---

function tell(text, className = '', details = []) {
  const result = $('result')
  const paragraph = document.createElement('p')
  paragraph.textContent = text
  paragraph.className = className
  const list = document.createElement('ul')
  list.append(...details.map((detail) => {
    const item = document.createElement('li')
    item.textContent = detail
    return item
  }))
  result.replaceChildren(paragraph, ...(details.length > 0 ? [list] : []))
}

async function confirmed(text) {
  const dialog = $('confirm')
  $('confirm-text').textContent = text
  dialog.returnValue = 'no'
  dialog.showModal()
  // A `close` that comes while it is open tells of the time before.
  do await new Promise((closed) => dialog.addEventListener('close', closed, { once: true }))
  while (dialog.open)
  return dialog.returnValue === 'yes'
}

async function purge(path, question, done) {
  if (!(await confirmed(question))) return false
  return act(async () => {
    const answer = await ask(path, 'DELETE')
    if (!answer.ok) throw new Error(await answer.text())
    tell(done, 'good')
  })
}

// Does it, tells what went wrong, and shows what it changed.
async function act(deed) {
  try {
    await deed()
    await refresh()
    return true
  } catch (error) {
    tell(`This failed: ${error.message}`, 'bad')
    return false
  }
}

async function reload() {
  const answer = await ask('reload', 'POST')
  if (answer.status === 422) {
    const { problems } = await answer.json()
    tell('The new configuration is rejected; the old one stays in effect:', 'bad', problems.map(({ key, problem }) => `${key}: ${problem}`))
    return
  }
  if (!answer.ok) throw new Error(await answer.text())
  const { changed, needs_restart: later } = await answer.json()
  const details = changed.map((key) => (later.includes(key) ? `${key} (after a restart)` : key))
  const waiting = later.filter((key) => !changed.includes(key)).map((key) => `${key} (changed before, waits for a restart)`)
  tell(details.length > 0 ? 'Reloaded. Changed:' : 'Reloaded. Nothing has changed.', 'good', [...details, ...waiting])
}

// What `/cache/explain` says, line by line.
function explained({ verdict, why, credential, credential_refused: refused, circuit, circuit_wait: circuitWait, quota_wait: quotaWait, refusal, stored }) {
  const lines = [['Verdict', `${verdict}: ${why}`]]
  if (credential === undefined) return lines
  const wait = (seconds) => (seconds === null ? '' : `, the next call in ${duration(seconds)}`)
  lines.push(['Credential', `${credential}, ${refused ? 'rejected by Unpod' : 'accepted'}`])
  lines.push(['Circuit breaker', `${CIRCUITS[circuit] ?? circuit}${wait(circuitWait)}`])
  lines.push(['Quota', quotaWait === null ? 'A call is left' : `Used up${wait(quotaWait)}`])
  if (refusal) lines.push(['Remembered', `${ERRORS[refusal[0]] ?? refusal[0]} For another ${duration(refusal[1])}.`])
  lines.push(['Stored', stored ? `${duration(stored.age)} old, TTL ${stored.ttl} s, ${bytes(stored.bytes)}, generation ${stored.generation}` : 'No'])
  return lines
}

async function explain() {
  const fields = { space: $('token').value.trim(), collection: $('collection').value, page: $('page').value, page_size: $('page-size').value }
  if (needsRun()) fields.run_id = $('run').value.trim()
  const client = $('client').value.trim()
  const query = new URLSearchParams(client ? { ...fields, client } : fields)
  const answer = await ask(`cache/explain?${query}`)
  const lines = answer.ok ? explained(await answer.json()) : [['Not explained', await answer.text()]]
  $('explanation').replaceChildren(...lines.flatMap((line) => line.map((text, place) => {
    const part = document.createElement(place === 0 ? 'dt' : 'dd')
    part.textContent = text
    return part
  })))
}

const needsRun = () => $('collection').value === 'run_tasks'

$('collection').addEventListener('change', () => {
  $('run-field').hidden = $('run').disabled = !needsRun()
})

$('space').addEventListener('submit', (event) => {
  event.preventDefault()
  act(explain)
})

$('purge-space').addEventListener('click', async () => {
  const input = $('token')
  if (!input.reportValidity()) return
  const purged = await purge(
    `cache/spaces/${encodeURIComponent(input.value.trim())}`,
    'This purges all stored pages of the space with that token. They are fetched from Unpod when they are next requested.',
    'The pages of that space are purged.',
  )
  if (purged) input.value = ''
})

$('purge-all').addEventListener('click', () => purge(
  'cache',
  'This purges all stored pages of all spaces. They are fetched from Unpod when they are next requested.',
  'All pages are purged.',
))

$('reload').addEventListener('click', async () => {
  const button = $('reload')
  button.disabled = true
  await act(reload)
  button.disabled = false
  button.focus()
})

setInterval(checkAge, 1000)
document.addEventListener('visibilitychange', checkAge)
keepRefreshing()
