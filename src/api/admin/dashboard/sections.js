// The sections of the page: each shows what it is given of /status, /history or /metrics.
import { drawChart } from './charts.js'
import { fold, setText, showRows } from './rows.js'
import { by, bytes, clock, count, duration, percent, quantile, rate, share, total } from './samples.js'
import { CIRCUITS, CLIENTS, ERRORS, FROM_STORE, OUTCOMES, PARTS, ROUTES, STATES, WATCHES, reason } from './words.js'

const MOST_CLIENTS = 20

const $ = (id) => document.getElementById(id)

// Of the credential with the least.
export function callsLeft(credentials) {
  const limited = credentials.filter(({ calls_per_minute: calls }) => calls !== null)
  if (limited.length === 0) return 'No quota known'
  const left = ({ calls_left: calls, calls_per_minute: of }) => calls / Math.max(of, 1)
  const least = limited.reduce((least, other) => (left(other) < left(least) ? other : least))
  return `${count(least.calls_left)} of ${count(least.calls_per_minute)}${credentials.length > 1 ? ` (${least.name})` : ''}`
}

export function showHistory({ windows }) {
  const last = windows.at(-1)
  const perSecond = (name) => (window) => window[name] / Math.max(window.seconds, 0.1)
  const series = (names) => Object.entries(names).map(([key, name]) => ({ name, value: perSecond(key) }))
  drawChart($('requests-chart'), windows, [{
    series: series({ fresh: 'Fresh', stale: 'Stale', fetched: 'Fetched', client_errors: '4xx', server_errors: '5xx' }),
    format: rate,
    most: 1,
  }])
  drawChart($('latency-chart'), windows, [{
    series: ['p50', 'p95'].map((name) => ({ name, value: (window) => window[name] })),
    format: duration,
    most: 0.001,
  }])
  const hits = (window) => window.fresh + window.stale
  drawChart($('cache-chart'), windows, [
    { series: [{ name: 'Hit ratio', value: (window) => share(hits(window), hits(window) + window.fetched + window.rejected) }], format: percent, tick: (part) => `${100 * part} %`, most: 1 },
    { series: [{ name: 'Calls a minute', value: (window) => 60 * perSecond('upstream_calls')(window) }], format: rate, most: 1 },
  ])
  setText($('error-rate'), rate(perSecond('server_errors')(last)))
}

const hits = (metrics, wanted = {}) =>
  FROM_STORE.reduce((sum, outcome) => sum + total(metrics, 'gateway_cache_lookups_total', { ...wanted, outcome }), 0)

export function showNumbers(metrics) {
  const lookups = total(metrics, 'gateway_cache_lookups_total')
  const numbers = {
    requests: count(total(metrics, 'gateway_http_requests_total')),
    'hit-ratio': percent(share(hits(metrics), lookups)),
    'upstream-calls': count(total(metrics, 'gateway_upstream_requests_total')),
    'in-flight': count(total(metrics, 'gateway_http_requests_in_flight')),
    connections: count(total(metrics, 'gateway_connections')),
    entries: count(total(metrics, 'gateway_cache_entries')),
    bytes: bytes(total(metrics, 'gateway_cache_bytes')),
  }
  for (const [name, text] of Object.entries(numbers)) setText(document.querySelector(`[data-number="${name}"]`), text)
  setText($('hit-ratio-of'), `of ${count(lookups)} cache lookups`)
}

export function showReadiness({ parts }) {
  showRows($('readiness'), Object.entries(parts).map(([part, { status, since, ...why }]) => ({
    key: part,
    cells: [
      PARTS[part] ?? part,
      { text: STATES[status] ?? status, className: status === 'ready' ? 'good' : 'bad' },
      since ? new Date(since).toLocaleString('en-GB') : '–',
      { text: reason(part, why), className: 'wide' },
    ],
  })))
}

export function showCredentials(credentials) {
  showRows($('credentials'), credentials.map((credential) => ({
    key: credential.name,
    cells: [
      credential.name,
      credential.refused
        ? { text: 'Rejected: replace its token', className: 'wide bad' }
        : { text: 'Accepted', className: 'wide good' },
      { text: CIRCUITS[credential.circuit] ?? credential.circuit, className: credential.circuit === 'closed' ? 'wide good' : 'wide bad' },
      callsLeft([credential]),
      duration(credential.page_lifetime_seconds),
    ],
  })))
}

export function showClients(metrics) {
  const requests = by(metrics, 'gateway_http_requests_total', 'client')
  const calls = by(metrics, 'gateway_upstream_requests_total', 'client')
  const lookups = by(metrics, 'gateway_cache_lookups_total', 'client')
  const used = (client) => (requests.get(client) ?? 0) + (calls.get(client) ?? 0)
  const clients = [...new Set([...requests.keys(), ...calls.keys()])].filter(used).sort((a, b) => used(b) - used(a))
  const answered = (client, status) => count(total(metrics, 'gateway_http_requests_total', { client, status }))
  showRows($('clients'), clients.slice(0, MOST_CLIENTS).map((client) => ({
    key: client,
    cells: [
      CLIENTS[client] ?? client,
      count(requests.get(client) ?? 0),
      percent(share(hits(metrics, { client }), lookups.get(client) ?? 0)),
      count(calls.get(client) ?? 0),
      answered(client, '401'),
      answered(client, '429'),
    ],
  })))
  fold('clients-more', clients.slice(MOST_CLIENTS).map((client) => CLIENTS[client] ?? client), 'with fewer requests')
  const named = clients.filter((client) => !(client in CLIENTS)).slice(0, 5 * MOST_CLIENTS)
  if ($('client-names').children.length !== named.length) $('client-names').replaceChildren(...named.map((name) => new Option(name, name)))
}

export function showLatency(metrics) {
  const row = (key, text, counted, name, labels) => ({
    key,
    cells: [text, count(counted), duration(quantile(metrics, name, labels, 0.5)), duration(quantile(metrics, name, labels, 0.95))],
  })
  const name = 'gateway_http_request_duration_seconds'
  const rows = [...by(metrics, `${name}_count`, 'route')]
    .filter(([, counted]) => counted > 0)
    .map(([route, counted]) => row(route, ROUTES[route] ?? route, counted, name, { route }))
  const calls = total(metrics, 'gateway_upstream_requests_total')
  showRows($('latency'), [...rows, row('fill', 'Fetched from Unpod', calls, 'gateway_fill_duration_seconds', {})])
}

export function showOutcomes(metrics) {
  const outcomes = by(metrics, 'gateway_cache_lookups_total', 'outcome')
  const all = [...outcomes.values()].reduce((sum, counted) => sum + counted, 0)
  const order = Object.keys(OUTCOMES)
  const sorted = [...outcomes].sort(([a], [b]) => order.indexOf(a) - order.indexOf(b))
  showRows($('outcomes'), sorted.filter(([, counted]) => counted > 0).map(([outcome, counted]) => ({
    key: outcome,
    cells: [OUTCOMES[outcome] ?? outcome, count(counted), percent(share(counted, all))],
  })))
  fold('outcomes-more', sorted.filter(([, counted]) => counted === 0).map(([outcome]) => OUTCOMES[outcome] ?? outcome), 'without requests')
}

// By code: how many there were by the last sample, and when they became more; `null`: before this page was opened.
let lastSeen = null

export function showErrors(metrics, now) {
  const answers = by(metrics, 'gateway_http_errors_total', 'code')
  const fetches = by(metrics, 'gateway_fills_total', 'outcome')
  const rows = Object.keys(ERRORS)
    .map((code) => ({ code, answered: answers.get(code) ?? 0, failed: fetches.get(code) ?? 0 }))
    .filter(({ answered, failed }) => answered + failed > 0)
  const seen = new Map(rows.map(({ code, answered, failed }) => {
    const before = lastSeen?.get(code)
    const counted = answered + failed
    return [code, before?.counted === counted ? before : { counted, at: lastSeen === null ? null : now }]
  }))
  lastSeen = seen
  rows.sort((a, b) => (seen.get(b.code).at ?? 0) - (seen.get(a.code).at ?? 0))
  $('no-errors').hidden = rows.length > 0
  showRows($('errors'), rows.map(({ code, answered, failed }) => {
    const { at } = seen.get(code)
    return {
      key: code,
      cells: [
        code,
        { text: ERRORS[code], className: 'wide' },
        count(answered),
        count(failed),
        at === null ? 'Before this page' : clock(new Date(at)),
      ],
    }
  }))
}

export function showSpaces(spaces, purge) {
  showRows($('spaces'), spaces.map((space) => ({
    key: `${space.credential} ${space.space}`,
    cells: [
      space.space,
      space.credential,
      count(space.pages),
      count(space.fresh),
      bytes(space.bytes),
      duration(space.youngest_age),
      duration(space.oldest_age),
    ],
    action: () => purgeButton(space.space, purge),
  })))
}

// How a watch stands, since when and why.
function standing({ state, since, code }) {
  const from = since ? ` since ${clock(new Date(since))}` : ''
  const why = code ? `: ${ERRORS[code] ?? code}` : ''
  return `${WATCHES[state] ?? state}${from}${why}`
}

export function showWatches(watches, metrics) {
  // Those that nobody reads cost nothing.
  const isRead = ({ state }) => state !== 'kept'
  showRows($('watches'), watches.filter(isRead).map((watch) => ({
    key: `${watch.credential} ${watch.space}`,
    cells: [
      watch.space,
      watch.credential,
      { text: standing(watch), className: watch.state === 'delayed' || watch.state === 'gone' ? 'wide bad' : 'wide' },
      count(watch.listeners),
      count(watch.tasks),
      count(watch.ranges),
      duration(watch.interval),
      rate(watch.calls_per_minute),
    ],
  })))
  fold('watches-more', watches.filter((watch) => !isRead(watch)).map(({ space }) => space), 'that nobody listens to')
  const number = (name) => count(total(metrics, name))
  setText($('watches-all'), watches.length === 0 ? 'None.' : `${number('gateway_changes_spaces')} spaces, ${number('gateway_changes_ranges')} ranges, `
    + `${number('gateway_changes_streams')} streams. Since start: ${number('gateway_changes_seen_total')} changes, ${number('gateway_changes_polls_total')} reads.`)
}

function purgeButton(fingerprint, purge) {
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
