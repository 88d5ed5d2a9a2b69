// The dashboard in a real browser, with a real gateway under load.
// DASHBOARD_SCREENSHOTS: a folder for screenshots, such as docs/.
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import AxeBuilder from '@axe-core/playwright'
import { openPage, startGateway, startSimulator, until } from './lib.mjs'

const CLIENT_KEY = 'ugw_dashboard_test_client'
const OPERATOR_KEY = 'ugw_dashboard_test_operator'
const SUPPORT = 'SUPPORT0000000000000000A'
const SPACES = [SUPPORT, 'ARCHIVE0000000000000000C', 'UNICODE0000000000000000D', 'TRANSCRIPTS000000000000B']
// Those with a height are shown in docs/.
const LOOKS = [
  { width: 360, colorScheme: 'light' },
  { width: 360, colorScheme: 'dark', height: 1100 },
  { width: 1280, colorScheme: 'light', height: 900 },
  { width: 1280, colorScheme: 'dark' },
]

const FOCUSABLE = 'a, button, input, select, summary, [tabindex="0"]'

const sha256 = (text) => createHash('sha256').update(text).digest('hex')

function configuration(upstream, admin, rest = '') {
  return `
[server]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
${admin}
[upstream]
base_url = "${upstream}"
quota_per_minute = 600
[upstream.credentials.default]
token = "a11ce00000000000000000000000000000000001"
org_handle = "acme.test"
[[clients]]
name = "crm"
key_sha256 = ["${sha256(CLIENT_KEY)}"]
spaces = ["*"]
${rest}
`
}

// A gateway whose configuration file the test can rewrite.
async function startOwn(t, admin = '') {
  const folder = mkdtempSync(join(tmpdir(), 'dashboard-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const upstream = await startSimulator(t)
  const file = join(folder, 'gateway.toml')
  const write = (rest) => writeFileSync(file, configuration(upstream, admin, rest))
  write('')
  return { ...(await startGateway(t, file, {})), write }
}

function askTasks(gateway, space, query = '', key = CLIENT_KEY) {
  return fetch(`${gateway.data}/spaces/${space}/tasks${query}`, { headers: { Authorization: `Token ${key}` } })
}

// Listens to the changes of a space until the test ends.
async function listen(t, gateway, space) {
  const abort = new AbortController()
  t.after(() => abort.abort())
  const headers = { Authorization: `Token ${CLIENT_KEY}`, Accept: 'text/event-stream' }
  const answer = await fetch(`${gateway.data}/spaces/${space}/changes`, { headers, signal: abort.signal })
  assert.equal(answer.status, 200)
  // A stream that nobody reads is closed.
  answer.text().catch(() => {})
}

// Sends hits, misses and errors of several kinds until it is told to stop.
function startLoad(gateway) {
  let going = true
  const round = async () => {
    for (const space of SPACES) {
      for (const query of ['', '?page=2', '?page_size=5']) await (await askTasks(gateway, space, query)).text()
    }
    await (await askTasks(gateway, 'NOSUCHSPACE000000000000Z')).text()
    await (await askTasks(gateway, SUPPORT, '?page=0')).text()
    await (await askTasks(gateway, SUPPORT, '', 'wrong')).text()
  }
  const ended = (async () => {
    while (going) await round()
  })()
  return async () => {
    going = false
    await ended
  }
}

const hitRatio = (hits, lookups) => `${((100 * hits) / lookups).toFixed(1)} %`
const metricsOf = async (gateway) => (await fetch(`${gateway.admin}/metrics`)).text()

// The sum of the samples of `name` whose line contains `part`.
function sampled(metrics, name, part = '') {
  return metrics
    .split('\n')
    .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
    .filter((line) => line.includes(part))
    .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0)
}

const FROM_STORE = ['hit', 'stale_while_revalidate', 'stale_if_error', 'stale_if_slow', 'quota', 'max_stale', 'only_if_cached', 'assembled']
const sampledHits = (metrics) => FROM_STORE.reduce((sum, outcome) => sum + sampled(metrics, 'gateway_cache_lookups_total', `outcome="${outcome}"`), 0)

const numberIn = (text) => Number(text.replaceAll(',', ''))
const shown = async (page, name) => numberIn(await page.locator(`[data-number="${name}"]`).textContent())
const cell = async (page, body, key, column) => numberIn(await page.locator(`#${body} tr[data-key="${key}"] > *`).nth(column).textContent())

const stateIs = (page, state) => page.locator('#state').filter({ hasText: new RegExp(`^${state}$`) }).waitFor()

// Waits until a poll that starts from now on is drawn.
async function nextPoll(page) {
  const isPoll = (message) => message.url().endsWith('/status')
  const begun = await page.waitForRequest(isPoll)
  await (await begun.response()).finished()
  await page.waitForRequest(isPoll)
}

test('the numbers on the page are those of /metrics', async (t) => {
  const gateway = await startOwn(t)
  const endLoad = startLoad(gateway)
  for (const space of [SUPPORT, SUPPORT, SPACES[1]]) await listen(t, gateway, space)
  const { page, assertQuiet } = await openPage(t)
  await page.goto(gateway.admin)
  await stateIs(page, 'Ready')
  // It grows during the load.
  const first = await shown(page, 'requests')
  await until(() => shown(page, 'requests'), (requests) => requests > first)
  await endLoad()

  await nextPoll(page)
  const metrics = await metricsOf(gateway)
  assert.equal(await shown(page, 'requests'), sampled(metrics, 'gateway_http_requests_total'))
  assert.equal(await shown(page, 'upstream-calls'), sampled(metrics, 'gateway_upstream_requests_total'))
  assert.equal(await shown(page, 'entries'), sampled(metrics, 'gateway_cache_entries'))
  assert.equal(await cell(page, 'outcomes', 'hit', 1), sampled(metrics, 'gateway_cache_lookups_total', 'outcome="hit"'))
  assert.equal(await cell(page, 'outcomes', 'miss', 1), sampled(metrics, 'gateway_cache_lookups_total', 'outcome="miss"'))
  assert.equal(await cell(page, 'latency', 'tasks', 1), sampled(metrics, 'gateway_http_request_duration_seconds_count', 'route="tasks"'))
  assert.equal(await cell(page, 'latency', 'fill', 1), sampled(metrics, 'gateway_upstream_requests_total'))
  for (const code of ['space_not_found', 'invalid_parameter', 'unauthenticated']) {
    const counted = sampled(metrics, 'gateway_http_errors_total', `code="${code}"`)
    assert.ok(counted > 0, code)
    assert.equal(await cell(page, 'errors', code, 2), counted, code)
  }
  const lookups = sampled(metrics, 'gateway_cache_lookups_total')
  const hits = sampledHits(metrics)
  assert.equal(await page.locator('[data-number="hit-ratio"]').textContent(), hitRatio(hits, lookups))
  assert.equal(await page.locator('#hit-ratio-of').textContent(), `of ${lookups.toLocaleString('en')} cache lookups`)
  const clients = [['crm', 'client="crm"'], ['none', 'client="none"']]
  for (const [client, label] of clients) {
    const requests = (status = '') => sampled(metrics, 'gateway_http_requests_total', `${status}${label}`)
    assert.equal(await cell(page, 'clients', client, 1), requests(), client)
    assert.equal(await cell(page, 'clients', client, 3), sampled(metrics, 'gateway_upstream_requests_total', label), client)
    assert.equal(await cell(page, 'clients', client, 4), requests('status="401",'), client)
    assert.equal(await cell(page, 'clients', client, 5), requests('status="429",'), client)
  }
  assert.equal(await page.locator('#clients tr[data-key="crm"] > *').nth(2).textContent(), hitRatio(hits, lookups))
  assert.ok((await cell(page, 'clients', 'none', 4)) > 0)
  // All rows that are shown have requests; the others are folded.
  const zero = metrics.split('\n').filter((line) => /^gateway_cache_lookups_total\{.*client="none"\} 0$/.test(line)).length
  const rows = await page.locator('#outcomes tr').count()
  assert.equal(await page.locator('#outcomes-more summary').textContent(), `${zero - rows} more without requests`)
  assert.equal(await page.locator('#calls-left').textContent(), await page.locator('#credentials tr td').nth(2).textContent())
  const quota = await page.locator('#credentials tr[data-key="default"] td').nth(2).textContent()
  assert.match(quota, /^\d+ of 600$/)
  const pages = await page.locator('#spaces tr').evaluateAll((rows) => rows.map((row) => Number(row.cells[2].textContent)))
  assert.equal(pages.reduce((sum, count) => sum + count, 0), sampled(metrics, 'gateway_cache_entries'))
  const watches = await page.locator('#watches tr').evaluateAll((rows) => rows.map(({ cells }) => [...cells].slice(2).map((cell) => cell.textContent)))
  const sumOf = (column) => watches.reduce((sum, cells) => sum + numberIn(cells[column]), 0)
  assert.equal(watches.length, sampled(metrics, 'gateway_changes_spaces'))
  assert.deepEqual(watches.map(([state]) => state), ['Watching', 'Watching'])
  assert.equal(sumOf(1), sampled(metrics, 'gateway_changes_streams'))
  assert.equal(sumOf(3), sampled(metrics, 'gateway_changes_ranges'))
  // Each range is read every ten seconds.
  assert.equal(sumOf(5), 6 * sumOf(3))
  assert.match(await page.locator('#watches-all').textContent(), /^2 spaces, \d+ ranges, 3 streams\. /)
  assert.ok(!SPACES.some((space) => metrics.includes(space)))
  assert.ok(!(await page.content()).includes(SUPPORT), 'no token is shown')
  assertQuiet()
})

test('p50 and p95 are where the buckets say', async (t) => {
  const gateway = await startOwn(t)
  const { page, assertQuiet } = await openPage(t)
  const name = 'gateway_http_request_duration_seconds'
  const buckets = [['0.1', 40], ['0.2', 90], ['0.4', 98], ['+Inf', 100]]
  await page.route('**/metrics', async (route) => {
    const answer = await route.fetch()
    const others = (await answer.text()).split('\n').filter((line) => !line.startsWith(name))
    const samples = buckets.map(([le, value]) => `${name}_bucket{le="${le}",route="tasks"} ${value}`)
    const body = [...others, ...samples, `${name}_count{route="tasks"} 100`, ''].join('\n')
    await route.fulfill({ response: answer, body })
  })
  await page.goto(gateway.admin)
  const row = page.locator('#latency tr[data-key="tasks"] > *')
  await row.first().waitFor()
  assert.deepEqual(await row.allTextContents(), ['Tasks', '100', '120 ms', '325 ms'])
  assertQuiet()
})

test('each part says how it is and why', async (t) => {
  const gateway = await startOwn(t)
  const { page, assertQuiet } = await openPage(t)
  await page.route('**/status', async (route) => {
    const answer = await route.fetch()
    const status = await answer.json()
    const since = '2026-01-01T00:00:00Z'
    status.readiness.parts.circuits = { status: 'degraded', since, not_closed: { default: 'open' } }
    status.readiness.parts.answers = { status: 'degraded', nothing_with: { default: 'upstream_unavailable' } }
    status.readiness.parts.redis = { status: 'degraded', since, answers: false, members: 2, pending_purges: 1 }
    status.readiness.parts.identity = { status: 'ready', since, keys: 'current' }
    await route.fulfill({ response: answer, json: status })
  })
  await page.goto(gateway.admin)
  const rows = page.locator('#readiness tr')
  await rows.first().waitFor()
  // All but since when.
  const cells = await rows.evaluateAll((rows) => rows.map(({ cells }) => [0, 1, 3].map((place) => cells[place].textContent)))
  assert.deepEqual(cells, [
    ['Listener', 'Ready', ''],
    ['Credentials', 'Ready', ''],
    ['Circuit breakers', 'Degraded', 'default – Open: Unpod keeps failing'],
    ['Responses', 'Degraded', 'default – The circuit breaker is open: Unpod keeps failing.'],
    ['Redis', 'Degraded', 'No answer. Purges pending: 1.'],
    ['Identity provider', 'Ready', 'Keys: current.'],
  ])
  assertQuiet()
})

test('a watch that cannot read says since when and why, and those that nobody reads are folded', async (t) => {
  const gateway = await startOwn(t)
  const { page, assertQuiet } = await openPage(t)
  const watch = (space, state, rest = {}) => ({
    space, credential: 'default', state, since: null, code: null, listeners: 0, tasks: 20, ranges: 1, interval: 24, calls_per_minute: 2.5, ...rest,
  })
  await page.route('**/status', async (route) => {
    const answer = await route.fetch()
    const status = await answer.json()
    status.watches = [
      watch('space-1', 'delayed', { since: '2026-01-01T01:02:03Z', code: 'upstream_quota_exhausted' }),
      watch('space-2', 'gone', { code: 'space_access_denied' }),
      watch('space-3', 'lingering'),
      watch('space-4', 'kept'),
    ]
    await route.fulfill({ response: answer, json: status })
  })
  await page.goto(gateway.admin)
  const rows = page.locator('#watches tr')
  await rows.first().waitFor()
  const cells = await rows.evaluateAll((rows) => rows.map(({ cells }) => [0, 2, 6, 7].map((place) => cells[place].textContent)))
  assert.match(cells[0][1], /^Delayed since \d\d:\d\d:03: This minute’s quota is used up\.$/)
  assert.deepEqual(cells.slice(1), [
    ['space-2', 'Gone: Unpod denies the gateway’s user access to the space.', '24 s', '2.5'],
    ['space-3', 'Nobody listens, still reading', '24 s', '2.5'],
  ])
  assert.equal(await page.locator('#watches-more summary').textContent(), '1 more that nobody listens to')
  assertQuiet()
})

test('pages are purged by token, by fingerprint and all at once, each after a question', async (t) => {
  const gateway = await startOwn(t)
  const { page, assertQuiet } = await openPage(t)
  const outcome = async (space) => (await askTasks(gateway, space)).headers.get('cache-status').split('; ')[1]
  const dialog = page.getByRole('dialog')
  const [, ARCHIVE] = SPACES
  assert.equal(await outcome(SUPPORT), 'fwd=uri-miss')
  await page.goto(gateway.admin)
  const purge = () => page.getByRole('button', { name: /^Purge the pages of space-/ })

  await page.getByLabel('Space token').fill(SUPPORT)
  await page.getByRole('button', { name: 'Purge its pages' }).click()
  await dialog.getByRole('button', { name: 'Keep them' }).click()
  await dialog.waitFor({ state: 'hidden' })
  assert.equal(await outcome(SUPPORT), 'hit', 'nothing was purged')
  await page.getByRole('button', { name: 'Purge its pages' }).click()
  await dialog.getByRole('button', { name: 'Purge', exact: true }).click()
  await page.getByText('The pages of that space are purged.').waitFor()
  assert.equal(await outcome(SUPPORT), 'fwd=uri-miss')

  await purge().click()
  await dialog.getByRole('button', { name: 'Purge', exact: true }).click()
  await page.getByText(/^The pages of space-[0-9a-f]{12} are purged\.$/).waitFor()
  // Its row disappears with the next poll.
  await purge().waitFor({ state: 'detached' })
  assert.equal(await outcome(SUPPORT), 'fwd=uri-miss')

  assert.equal(await outcome(ARCHIVE), 'fwd=uri-miss')
  await page.getByRole('button', { name: 'Purge all pages' }).click()
  await dialog.getByRole('button', { name: 'Purge', exact: true }).click()
  await page.getByText('All pages are purged.').waitFor()
  assert.equal(await outcome(SUPPORT), 'fwd=uri-miss')
  assert.equal(await outcome(ARCHIVE), 'fwd=uri-miss')
  assertQuiet()
})

test('a reload says what it did, or what is wrong', async (t) => {
  const gateway = await startOwn(t)
  const { page, complaints } = await openPage(t)
  await page.goto(gateway.admin)
  const reload = page.getByRole('button', { name: 'Reload the configuration' })
  const result = page.locator('#result')

  await reload.click()
  await result.getByText('Reloaded.').waitFor()

  gateway.write('[cache]\nttl = "x"\n[views]\n"a b" = {fields = ["a"]}')
  await reload.click()
  await result.getByText('The new configuration is rejected').waitFor()
  await result.getByText(/^cache\.ttl: /).waitFor()
  await result.getByText(/^views\.a b: /).waitFor()
  // Chromium itself logs the 422 as an error.
  assert.deepEqual(complaints.filter((complaint) => !complaint.includes('422')), [])
})

test('a browser asks for the key, and the page works with it', async (t) => {
  const gateway = await startOwn(t, `key_sha256 = ["${sha256(OPERATOR_KEY)}"]`)
  const stranger = await openPage(t)
  // What Chromium logs when it cannot ask for a password.
  await assert.rejects(stranger.page.goto(gateway.admin), /ERR_INVALID_AUTH_CREDENTIALS/)

  const { page, assertQuiet } = await openPage(t, { httpCredentials: { username: 'anybody', password: OPERATOR_KEY } })
  await page.goto(gateway.admin)
  await stateIs(page, 'Ready')
  await page.getByRole('button', { name: 'Purge all pages' }).click()
  await page.getByRole('dialog').getByRole('button', { name: 'Purge', exact: true }).click()
  await page.getByText('All pages are purged.').waitFor()
  assertQuiet()
})

test('the charts begin before the page was opened, and add up to /metrics', async (t) => {
  const gateway = await startOwn(t)
  const endLoad = startLoad(gateway)
  await until(() => metricsOf(gateway), (metrics) => sampled(metrics, 'gateway_http_requests_total') > 100)
  await endLoad()
  const { page, assertQuiet } = await openPage(t)
  const polled = page.waitForResponse((response) => response.url().endsWith('/history'))
  await page.goto(gateway.admin)
  const { windows } = await (await polled).json()

  const metrics = await metricsOf(gateway)
  const sum = (...names) => windows.reduce((sum, window) => names.reduce((sum, name) => sum + window[name], sum), 0)
  assert.equal(sum('fresh', 'stale'), sampledHits(metrics))
  assert.equal(sum('fresh', 'stale', 'fetched', 'rejected'), sampled(metrics, 'gateway_cache_lookups_total'))
  assert.equal(sum('client_errors'), sampled(metrics, 'gateway_http_requests_total', 'status="4'))
  assert.equal(sum('upstream_calls'), sampled(metrics, 'gateway_upstream_requests_total'))
  assert.ok(sum('fresh') > 0 && sum('client_errors') > 0)
  for (const [chart, lines, unit] of [['requests', 5, /^\d/], ['latency', 2, / (µs|ms|s)$/], ['cache', 2, / %$/]]) {
    const figure = page.locator(`#${chart}-chart`)
    await figure.locator('path.line-0').waitFor({ state: 'attached' })
    assert.equal(await figure.locator('path.line').count(), lines, chart)
    assert.match(await figure.locator('path.line-0').getAttribute('d'), /^M[\d.]+ [\d.]+H[\d.]+/, chart)
    const texts = await figure.locator('svg text').allTextContents()
    assert.ok(texts.some((text) => /^\d\d:\d\d/.test(text)), `${chart} has times: ${texts}`)
    assert.ok(texts.filter((text) => unit.test(text)).length >= 3, `${chart} has units: ${texts}`)
    assert.match(await figure.locator('svg').getAttribute('aria-label'), / from \d\d:\d\d:\d\d to .*Now: /, chart)
  }
  assertQuiet()
})

test('a request is explained as the gateway explains it', async (t) => {
  const gateway = await startOwn(t)
  const { page, assertQuiet } = await openPage(t)
  await page.goto(gateway.admin)
  const explanation = page.getByLabel('Explanation')
  const explain = () => page.getByRole('button', { name: 'Explain a request' }).click()

  await page.getByLabel('Space token').fill(SUPPORT)
  await explain()
  await explanation.getByText('fill: not stored: fetched').waitFor()
  await (await askTasks(gateway, SUPPORT)).text()
  await page.getByLabel('Client (optional)').fill('crm')
  await explain()
  await explanation.getByText('hit: stored and fresh').waitFor()
  await explanation.getByText('default, accepted').waitFor()
  await page.getByLabel('Page', { exact: true }).fill('2')
  await page.getByLabel('Page size').fill('5')
  await explain()
  await explanation.getByText(/^(fill|assembled): /).waitFor()
  await page.getByLabel('List', { exact: true }).selectOption('Tasks of a run')
  await page.getByLabel('Run id').fill('R1')
  await explain()
  await explanation.getByText(/^fill: not stored/).waitFor()
  await page.getByLabel('List', { exact: true }).selectOption('Tasks')
  assertQuiet()

  await page.getByLabel('Client (optional)').fill('nobody')
  await explain()
  await explanation.getByText('client: no client of this name is configured').waitFor()
})

test('a gateway that has gone is told, and so is its return', async (t) => {
  const gateway = await startOwn(t)
  const { page } = await openPage(t)
  await page.goto(gateway.admin)
  await stateIs(page, 'Ready')
  const colours = () => page.evaluate(() => {
    const of = (selector, name) => getComputedStyle(document.querySelector(selector))[name]
    return { strip: of('#strip', 'backgroundColor'), number: of('[data-number]', 'color'), bad: of('#lost', 'color'), title: document.title }
  })
  const before = await colours()
  // One fails, the other hangs.
  for (const gone of [(route) => route.abort(), () => {}]) {
    await page.route('**/status', gone)
    await stateIs(page, 'Not answering')
    await page.getByRole('alert').getByText(/^No answer from the gateway since \d\d:\d\d:\d\d\. .*out of date\./).waitFor()
    const during = await colours()
    assert.equal(during.strip, during.bad, 'the strip is red')
    assert.notEqual(during.number, before.number, 'the numbers are grey')
    assert.match(during.title, /^Not answering/)
    for (const id of ['calls-left', 'error-rate']) assert.equal(await page.locator(`#${id}`).textContent(), '–', id)
    await page.unroute('**/status')
    await stateIs(page, 'Ready')
    assert.equal(await page.getByRole('alert').textContent(), '')
    assert.equal((await colours()).number, before.number)
  }
})

test('everything is reached and done by keyboard, and a poll takes no focus away', async (t) => {
  const gateway = await startOwn(t)
  for (const space of SPACES) await askTasks(gateway, space)
  const { page, assertQuiet } = await openPage(t)
  await page.goto(gateway.admin)
  await page.locator('#spaces button').nth(SPACES.length - 1).waitFor()

  const all = await page.locator(FOCUSABLE).filter({ visible: true }).count()
  const reached = new Set()
  for (let presses = 0; presses < all; presses += 1) {
    await page.keyboard.press('Tab')
    reached.add(await page.evaluate((focusable) => {
      const at = document.activeElement
      const every = [...document.querySelectorAll(focusable)]
      const { outlineStyle } = getComputedStyle(at)
      return outlineStyle === 'none' ? `no outline: ${at.outerHTML}` : every.indexOf(at)
    }, FOCUSABLE))
  }
  assert.equal(reached.size, all)
  assert.ok([...reached].every((place) => Number.isInteger(place) && place >= 0), [...reached].join())

  await page.locator('#spaces button').first().focus()
  await nextPoll(page)
  await page.keyboard.press('Enter')
  const dialog = page.getByRole('dialog')
  await dialog.waitFor()
  await page.keyboard.press('Escape')
  await dialog.waitFor({ state: 'hidden' })
  assert.equal(await page.locator('#spaces button').count(), SPACES.length, 'Escape purges nothing')
  await page.keyboard.press('Enter')
  await dialog.waitFor()
  await page.keyboard.press('Tab')
  await dialog.locator('button:focus').getByText('Purge', { exact: true }).waitFor()
  await page.keyboard.press('Enter')
  await page.getByText(/are purged\.$/).waitFor()
  assertQuiet()
})

for (const { width, colorScheme, height } of LOOKS) {
  test(`axe finds nothing serious at ${width} px, ${colorScheme}`, async (t) => {
    const gateway = await startOwn(t)
    const endLoad = startLoad(gateway)
    for (const space of SPACES) await listen(t, gateway, space)
    const { page, assertQuiet } = await openPage(t, { viewport: { width, height: 800 }, colorScheme })
    await page.goto(gateway.admin)
    await page.locator('#requests-chart path.line').first().waitFor({ state: 'attached' })
    const screenshot = process.env.DASHBOARD_SCREENSHOTS && height
    // Some windows, so that there is something to see.
    const windows = async () => (await page.locator('#requests-chart path.line').first().getAttribute('d')).split('H').length - 1
    if (screenshot) await until(windows, (count) => count > 3, 90_000)
    await endLoad()
    await nextPoll(page)

    const isSerious = ({ impact }) => impact === 'serious' || impact === 'critical'
    const judge = async () => {
      const { violations } = await new AxeBuilder({ page }).analyze()
      assert.deepEqual(violations.filter(isSerious).map(({ id, nodes }) => [id, nodes.map((node) => node.html)]), [])
    }
    await judge()
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth)
    assert.equal(overflow, 0, 'the page does not scroll sideways')
    if (screenshot) {
      const path = join(process.env.DASHBOARD_SCREENSHOTS, `dashboard-${width}-${colorScheme}.png`)
      await page.screenshot({ path, fullPage: true, clip: { x: 0, y: 0, width, height } })
      const watches = page.locator('section[aria-labelledby="watches-title"]')
      if (width > 360) await watches.screenshot({ path: join(process.env.DASHBOARD_SCREENSHOTS, 'dashboard-watches.png') })
    }
    await page.getByRole('button', { name: 'Purge all pages' }).click()
    await page.getByRole('dialog').waitFor()
    await judge()
    assertQuiet()
    await page.keyboard.press('Escape')
    await page.route('**/status', (route) => route.abort())
    await stateIs(page, 'Not answering')
    await judge()
  })
}
