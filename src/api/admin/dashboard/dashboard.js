// Draws GET /status and GET /metrics every two seconds. Every number is a sample of /metrics, or a sum of some.

const EVERY_MS = 2000
const PATIENCE_MS = 10_000
const MOST_SAMPLES = 300
// The credentials of a URL such as http://x:key@host/ must not be part of what is fetched.
const BASE = location.origin

const OUTCOMES = {
  hit: 'Stored and fresh',
  stale_while_revalidate: 'Stale, refreshed in the background',
  stale_if_error: 'Stale, instead of an error',
  stale_if_slow: 'Stale, because the fetch takes long',
  quota: 'Stale, because of the quota',
  max_stale: 'Stale, which the client accepts',
  only_if_cached: 'Stale, because the client wanted no upstream request',
  assembled: 'Assembled from other stored pages',
  miss: 'Not stored: fetched',
  stale: 'Stale: revalidated first',
  joined: 'Waited for a fetch in flight',
  not_cached: 'Not stored, and the client wanted no upstream request',
  quota_exhausted: 'Rejected: the quota is used up',
  circuit_open: 'Rejected: the circuit breaker is open',
  overloaded: 'Rejected: too many requests are waiting',
}
const FROM_STORE = ['hit', 'stale_while_revalidate', 'stale_if_error', 'stale_if_slow', 'quota', 'max_stale', 'only_if_cached', 'assembled']

const ROUTES = {
  tasks: 'Tasks',
  runs: 'Runs',
  run_tasks: 'Tasks of a run',
  browser_tokens: 'Browser tokens',
  openapi: 'OpenAPI document',
  healthz: 'Health checks',
  other: 'Other paths',
}

const ERRORS = {
  invalid_space_token: 'A client sent an invalid space token.',
  invalid_run_id: 'A client sent an invalid run id.',
  invalid_parameter: 'A client sent a page or page_size out of range.',
  unknown_parameter: 'A client sent an unknown query parameter.',
  invalid_body: 'A client requested a browser token with an invalid body.',
  unauthenticated: 'A client sent no key, or an invalid one.',
  identity_unavailable: 'A client sent a token, but the identity provider’s keys have not been loaded yet.',
  space_not_allowed: 'A client requested a space that it may not read.',
  minting_not_allowed: 'A browser token tried to mint a browser token.',
  space_access_denied: 'Unpod denies the gateway’s user access to the space.',
  space_not_found: 'Unpod has no such space.',
  route_not_found: 'A client requested an unknown path.',
  method_not_allowed: 'A client used a method that the path does not support.',
  upstream_rejected: 'Unpod rejected a request.',
  rate_limited: 'A client exceeded its rate limit, or an address failed to authenticate too often.',
  upstream_auth_failed: 'Unpod rejects the gateway’s token: replace it.',
  upstream_failed: 'Unpod failed.',
  upstream_invalid_response: 'Unpod’s response was not a page of tasks.',
  upstream_unreachable: 'Unpod could not be reached.',
  upstream_timeout: 'Unpod did not respond in time.',
  not_cached: 'A client sent only-if-cached, and nothing usable was stored.',
  upstream_quota_exhausted: 'This minute’s quota is used up.',
  upstream_unavailable: 'The circuit breaker is open: Unpod keeps failing.',
  overloaded: 'Too many concurrent requests.',
  internal: 'A bug: see the log.',
}

const CIRCUITS = {
  closed: 'Closed',
  half_open: 'Half open: one call at a time probes Unpod',
  open: 'Open: Unpod keeps failing',
}

const $ = (id) => document.getElementById(id)
const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const short = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 })

const percent = (share) => (share === null ? '–' : `${(100 * share).toFixed(1)} %`)
const perSecond = (rate) => short.format(rate)

function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB']
  let unit = 0
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024
    unit += 1
  }
  return `${short.format(count)} ${units[unit]}`
}

function duration(seconds) {
  if (seconds === null) return '–'
  if (seconds < 0.001) return `${short.format(seconds * 1e6)} µs`
  if (seconds < 1) return `${short.format(seconds * 1000)} ms`
  if (seconds < 120) return `${short.format(seconds)} s`
  if (seconds < 7200) return `${whole.format(seconds / 60)} min`
  return `${whole.format(seconds / 3600)} h`
}

// --- Samples ---

// The samples of Prometheus's text form, by name: each { labels, value }.
function parse(text) {
  const metrics = {}
  for (const [, name, labels = '', value] of text.matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm)) {
    const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)]
    metrics[name] ??= []
    metrics[name].push({
      labels: Object.fromEntries(pairs.map(([, label, quoted]) => [label, quoted.replace(/\\(.)/g, (_, escaped) => (escaped === 'n' ? '\n' : escaped))])),
      value: Number(value),
    })
  }
  return metrics
}

const sum = (samples) => samples.reduce((total, { value }) => total + value, 0)

// The sum of the samples of `name` whose labels are these.
function total(metrics, name, labels = {}) {
  const wanted = Object.entries(labels)
  const fits = (sample) => wanted.every(([label, value]) => sample.labels[label] === value)
  return sum((metrics[name] ?? []).filter(fits))
}

// What `label` is in the samples of `name`, with the sum for each.
function by(metrics, name, label) {
  const sums = new Map()
  for (const { labels, value } of metrics[name] ?? []) {
    sums.set(labels[label], (sums.get(labels[label]) ?? 0) + value)
  }
  return sums
}

function hits(metrics) {
  return FROM_STORE.reduce((sum, outcome) => sum + total(metrics, 'gateway_cache_lookups_total', { outcome }), 0)
}

const share = (part, of) => (of > 0 ? part / of : null)

// The value that `quantile` of all observations did not exceed, on a line through its bucket, as Prometheus does it.
function quantile(metrics, name, labels, quantile) {
  const buckets = [...by({ [name]: (metrics[`${name}_bucket`] ?? []).filter((sample) =>
    Object.entries(labels).every(([label, value]) => sample.labels[label] === value)) }, name, 'le')]
    .map(([le, count]) => ({ le: le === '+Inf' ? Infinity : Number(le), count }))
    .sort((a, b) => a.le - b.le)
  const all = buckets.at(-1)?.count ?? 0
  if (all === 0) return null
  const rank = quantile * all
  const place = buckets.findIndex(({ count }) => count >= rank)
  const below = place > 0 ? buckets[place - 1] : { le: 0, count: 0 }
  const { le, count } = buckets[place]
  if (le === Infinity) return below.le
  return below.le + (le - below.le) * ((rank - below.count) / (count - below.count))
}

// --- Drawing ---

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}

// Makes `body` show `rows`, each { key, cells, action }, and leaves alone what has not changed: the focus stays where it is.
function showRows(body, rows) {
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]))
  const focused = document.activeElement
  rows.forEach(({ key, cells, action }, place) => {
    const row = known.get(key) ?? newRow(key, cells.length, action)
    known.delete(key)
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null)
    cells.forEach((cell, column) => {
      setText(row.cells[column], cell.text ?? cell)
      row.cells[column].className = cell.className ?? ''
    })
  })
  for (const row of known.values()) row.remove()
  if (focused?.isConnected && document.activeElement !== focused) focused.focus()
}

function newRow(key, columns, action) {
  const row = document.createElement('tr')
  row.dataset.key = key
  for (let column = 0; column < columns; column += 1) {
    const cell = document.createElement(column === 0 ? 'th' : 'td')
    if (column === 0) cell.scope = 'row'
    row.append(cell)
  }
  if (action) row.insertCell().append(action())
  return row
}

// A line through `values`, from 0 at the bottom to `most` at the top; a null is a gap.
function drawLine(svg, values, most) {
  const step = 300 / Math.max(values.length - 1, 1)
  let path = ''
  let gap = true
  values.forEach((value, place) => {
    if (value === null) {
      gap = true
      return
    }
    path += `${gap ? 'M' : 'L'}${(place * step).toFixed(1)} ${(78 - (76 * value) / most).toFixed(1)}`
    gap = false
  })
  let line = svg.querySelector('path')
  if (!line) {
    line = document.createElementNS('http://www.w3.org/2000/svg', 'path')
    svg.append(line)
  }
  line.setAttribute('d', path)
}

// --- What is shown ---

function showNumbers(metrics) {
  const lookups = total(metrics, 'gateway_cache_lookups_total')
  const numbers = {
    requests: whole.format(total(metrics, 'gateway_http_requests_total')),
    'hit-ratio': percent(share(hits(metrics), lookups)),
    'upstream-calls': whole.format(total(metrics, 'gateway_upstream_requests_total')),
    'in-flight': whole.format(total(metrics, 'gateway_http_requests_in_flight')),
    connections: whole.format(total(metrics, 'gateway_connections')),
    entries: whole.format(total(metrics, 'gateway_cache_entries')),
    bytes: bytes(total(metrics, 'gateway_cache_bytes')),
  }
  for (const [name, text] of Object.entries(numbers)) {
    setText(document.querySelector(`[data-number="${name}"]`), text)
  }
}

const samples = []

function note(metrics, uptime) {
  const sample = {
    uptime,
    requests: total(metrics, 'gateway_http_requests_total'),
    lookups: total(metrics, 'gateway_cache_lookups_total'),
    hits: hits(metrics),
  }
  // Another process counts from 0.
  if (samples.length > 0 && uptime < samples.at(-1).uptime) {
    samples.length = 0
    lastSeen.clear()
  }
  samples.push(sample)
  if (samples.length > MOST_SAMPLES) samples.shift()
}

function showCharts() {
  const pairs = samples.slice(1).map((sample, place) => [samples[place], sample])
  const rates = pairs.map(([before, after]) => (after.requests - before.requests) / Math.max(after.uptime - before.uptime, 0.001))
  const ratios = pairs.map(([before, after]) => share(after.hits - before.hits, after.lookups - before.lookups))
  const most = Math.max(...rates, 1)
  drawLine($('rate'), rates, most)
  drawLine($('ratio'), ratios, 1)
  const now = rates.at(-1)
  setText($('rate-text'), now === undefined ? 'Requests per second' : `Requests per second: ${perSecond(now)} now, peak ${perSecond(most)}`)
  setText($('ratio-text'), `Hit ratio: ${percent(ratios.at(-1) ?? null)} now`)
}

function showCredentials(credentials) {
  showRows($('credentials'), credentials.map((credential) => ({
    key: credential.name,
    cells: [
      credential.name,
      credential.refused
        ? { text: 'Rejected: replace its token', className: 'wide bad' }
        : { text: 'Accepted', className: 'wide good' },
      { text: CIRCUITS[credential.circuit] ?? credential.circuit, className: credential.circuit === 'closed' ? 'wide good' : 'wide bad' },
      credential.calls_per_minute === null
        ? 'No quota known'
        : `${whole.format(credential.calls_left)} of ${whole.format(credential.calls_per_minute)}`,
      duration(credential.page_lifetime_seconds),
    ],
  })))
}

function showLatency(metrics) {
  const row = (key, text, name, labels) => ({
    key,
    cells: [
      text,
      whole.format(total(metrics, `${name}_count`, labels)),
      duration(quantile(metrics, name, labels, 0.5)),
      duration(quantile(metrics, name, labels, 0.95)),
    ],
  })
  const routes = [...by(metrics, 'gateway_http_request_duration_seconds_count', 'route')]
  const rows = routes
    .filter(([route, count]) => count > 0 || route === 'tasks')
    .map(([route]) => row(route, ROUTES[route] ?? route, 'gateway_http_request_duration_seconds', { route }))
  rows.push(row('fill', 'Fetches from Unpod', 'gateway_fill_duration_seconds', {}))
  showRows($('latency'), rows)
}

function showOutcomes(metrics) {
  const outcomes = by(metrics, 'gateway_cache_lookups_total', 'outcome')
  const all = [...outcomes.values()].reduce((sum, count) => sum + count, 0)
  const order = Object.keys(OUTCOMES)
  const rows = [...outcomes].sort(([a], [b]) => order.indexOf(a) - order.indexOf(b))
  showRows($('outcomes'), rows.map(([outcome, count]) => ({
    key: outcome,
    cells: [OUTCOMES[outcome] ?? outcome, whole.format(count), percent(share(count, all))],
  })))
}

// By code: how many there were by the last sample, and when they became more.
const lastSeen = new Map()

function showErrors(metrics, now) {
  const answers = by(metrics, 'gateway_http_errors_total', 'code')
  const fetches = by(metrics, 'gateway_fills_total', 'outcome')
  const rows = Object.keys(ERRORS)
    .map((code) => ({ code, answered: answers.get(code) ?? 0, failed: fetches.get(code) ?? 0 }))
    .filter(({ answered, failed }) => answered + failed > 0)
  for (const { code, answered, failed } of rows) {
    const count = answered + failed
    const seen = lastSeen.get(code)
    // What the first sample holds came before this page was opened.
    if (seen?.count !== count) lastSeen.set(code, { count, at: samples.length > 1 ? now : null })
  }
  rows.sort((a, b) => (lastSeen.get(b.code).at ?? 0) - (lastSeen.get(a.code).at ?? 0))
  $('no-errors').hidden = rows.length > 0
  showRows($('errors'), rows.map(({ code, answered, failed }) => {
    const { at } = lastSeen.get(code)
    return {
      key: code,
      cells: [
        code,
        { text: ERRORS[code], className: 'wide' },
        whole.format(answered),
        whole.format(failed),
        at === null ? 'Before this page' : new Date(at).toLocaleTimeString(),
      ],
    }
  }))
}

function showSpaces(spaces) {
  showRows($('spaces'), spaces.map((space) => ({
    key: `${space.credential} ${space.space}`,
    cells: [
      space.space,
      space.credential,
      whole.format(space.pages),
      whole.format(space.fresh),
      bytes(space.bytes),
      duration(space.youngest_age),
      duration(space.oldest_age),
    ],
    action: () => purgeButton(space.space),
  })))
}

function purgeButton(fingerprint) {
  const button = document.createElement('button')
  button.type = 'button'
  button.textContent = 'Purge'
  button.setAttribute('aria-label', `Purge the pages of ${fingerprint}`)
  button.addEventListener('click', () => purge(
    `cache/fingerprints/${fingerprint}`,
    `This purges all stored pages of ${fingerprint}. They are fetched from Unpod when they are next requested.`,
    `The pages of ${fingerprint} are purged.`,
  ))
  return button
}

const PARTS = { listener: 'Listener', credentials: 'Credentials', circuits: 'Circuit breakers', answers: 'Service', redis: 'Redis', identity: 'Identity provider' }

function showReadiness({ status, parts }) {
  const state = $('state')
  setText(state, { ready: 'Ready', degraded: 'Degraded', draining: 'Draining', unavailable: 'Unavailable' }[status] ?? status)
  state.className = status === 'ready' ? 'good' : 'bad'
  const list = $('readiness')
  const wanted = Object.entries(parts).flatMap(([part, { status, since: _, ...why }]) => {
    const reasons = Object.entries(why).flatMap(([name, reason]) => {
      // That Redis answers says no more than its status.
      if (typeof reason === 'boolean') return []
      if (typeof reason !== 'object') return `${name.replaceAll('_', ' ')} ${reason}`
      return Array.isArray(reason) ? reason : Object.entries(reason).map(([name, state]) => `${name} ${state}`)
    })
    return [PARTS[part] ?? part, reasons.length > 0 ? `${status}: ${reasons.join(', ')}` : status]
  })
  if (list.children.length !== wanted.length) {
    list.replaceChildren(...wanted.map((_, place) => document.createElement(place % 2 === 0 ? 'dt' : 'dd')))
  }
  wanted.forEach((text, place) => setText(list.children[place], text))
}

function show(status, metrics) {
  note(metrics, status.uptime_seconds)
  setText($('about'), `version ${status.version}, up for ${duration(Math.floor(status.uptime_seconds))}`)
  showReadiness(status.readiness)
  showNumbers(metrics)
  showCharts()
  showCredentials(status.credentials)
  showLatency(metrics)
  showOutcomes(metrics)
  showErrors(metrics, Date.now())
  showSpaces(status.spaces)
}

// --- Asking ---

const ask = (path, method = 'GET') => fetch(`${BASE}/${path}`, { method, cache: 'no-store', signal: AbortSignal.timeout(PATIENCE_MS) })

async function refresh() {
  try {
    const answers = await Promise.all([ask('status'), ask('metrics')])
    const failed = answers.find(({ ok }) => !ok)
    if (failed) throw new Error(`it answers ${failed.status}`)
    const [status, metrics] = answers
    show(await status.json(), parse(await metrics.text()))
    setText($('lost'), '')
  } catch (error) {
    setText($('lost'), `The gateway does not report its status (${error.message}). The numbers are out of date.`)
  }
}

async function keepRefreshing() {
  await refresh()
  setTimeout(keepRefreshing, EVERY_MS)
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

$('purge-space').addEventListener('submit', async (event) => {
  event.preventDefault()
  const input = $('token')
  const token = input.value.trim()
  const purged = await purge(
    `cache/spaces/${encodeURIComponent(token)}`,
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

keepRefreshing()
