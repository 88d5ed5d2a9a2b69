// examples/browser as its users would run it: a backend that mints, a page that reads, a real gateway and a simulated Unpod.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { binary, freePort, openPage, root, start, startGateway, startSimulator, until } from './lib.mjs'

const KEY = 'ugw_example_key_of_the_frontend_backend'
const SPACE = 'SUPPORT0000000000000000A'

// Runs the example. Its files are copied, since the signing key is created next to them.
async function startExample(t, { ttl = '300', upstream, env = {} } = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'example-'))
  t.after(() => rmSync(folder, { recursive: true }))
  cpSync(`${root}examples/browser`, folder, { recursive: true })
  writeFileSync(join(folder, 'browser-key.pem'), execFileSync(binary, ['key', 'browser-signing']), { mode: 0o600 })
  const port = await freePort()
  const listen = `127.0.0.1:${await freePort()}`
  const settings = {
    UNPOD_GATEWAY__UPSTREAM__BASE_URL: upstream ?? (await startSimulator(t)),
    UNPOD_GATEWAY__CORS__ORIGINS: JSON.stringify([`http://127.0.0.1:${port}`]),
    UNPOD_GATEWAY__SERVER__LISTEN: listen,
    ...env,
  }
  const startAgain = () => startGateway(t, 'gateway.toml', settings, folder)
  const gateway = await startAgain()
  const { found: page } = await start(t, process.execPath, ['backend.mjs'], {
    cwd: folder,
    env: { GATEWAY_URL: gateway.data, GATEWAY_KEY: KEY, SPACE, PORT: String(port), TTL_SECONDS: ttl },
    wanted: (line) => line.match(/^http:\S+/)?.[0],
  })
  return { gateway, url: page, startAgain }
}

// A simulated Unpod whose tasks have whatever status `statuses` names.
async function startChanging(t) {
  const simulator = await startSimulator(t)
  const statuses = {}
  const server = createServer(async (request, response) => {
    const headers = { ...request.headers, 'accept-encoding': 'identity' }
    delete headers.host
    const answer = await fetch(simulator + request.url, { headers })
    const body = await answer.json()
    for (const task of body.data) task.status = statuses[task.task_id] ?? task.status
    response.writeHead(answer.status, { 'Content-Type': 'application/json' }).end(JSON.stringify(body))
  })
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening))
  t.after(() => server.close())
  return { upstream: `http://127.0.0.1:${server.address().port}`, statuses }
}

// Takes a stream as another client would.
async function holdStream(gateway) {
  const abort = new AbortController()
  const headers = { Authorization: `Token ${KEY}`, Accept: 'text/event-stream' }
  const answer = await fetch(`${gateway.data}/spaces/${SPACE}/changes`, { headers, signal: abort.signal })
  assert.equal(answer.status, 200)
  return () => abort.abort()
}

const POLLING = 'Read every 5 seconds'
const liveIs = (page, text) => page.locator('#live').getByText(text, { exact: true }).waitFor()

const isTasks = (message) => message.url().includes('/tasks?')

const metricsOf = async (gateway) => (await fetch(`${gateway.admin}/metrics`)).text()

// The number of tasks requests so far, by status; preflights are the 204s.
async function answers(gateway) {
  const metrics = await metricsOf(gateway)
  const samples = metrics.matchAll(/^gateway_http_requests_total\{route="tasks",status="(\d+)"[^}]*\} (\d+)$/gm)
  const counted = [...samples].filter(([, , count]) => count !== '0')
  return counted.reduce((sum, [, status, count]) => ({ ...sum, [status]: (sum[status] ?? 0) + Number(count) }), {})
}

test('a page lists tasks, asks by ETag, and never holds the key', async (t) => {
  const { gateway, url } = await startExample(t, { env: { UNPOD_GATEWAY__CHANGES__MAX_STREAMS: '1' } })
  const endOther = await holdStream(gateway)
  const { page, requests, complaints } = await openPage(t)
  await page.clock.install()
  await page.goto(url)
  // The only stream is taken: 503. Meanwhile the page is read again and again.
  await liveIs(page, POLLING)
  await page.getByText('57 tasks').waitFor()
  assert.equal(await page.locator('#tasks tr').count(), 10)

  for (const _ of [1, 2, 3]) {
    const unchanged = page.waitForResponse(isTasks)
    await page.clock.fastForward(5000)
    await unchanged
  }
  await page.getByText('unchanged').waitFor()
  // The browser revalidated by ETag, with a single preflight: If-None-Match set by the page would need one each time.
  assert.deepEqual(await answers(gateway), { 200: 1, 204: 1, 304: 3 })
  await page.getByRole('button', { name: 'Next' }).click()
  await page.getByText('Page 2 of 6').waitFor()

  // The view hides what a browser must not see, including a field that the view does not list.
  const shown = await page.evaluate(async ([gateway, space]) => {
    const { token } = await (await fetch('/token', { method: 'POST' })).json()
    const answer = await fetch(`${gateway}/spaces/${space}/tasks?page_size=1`, { headers: { Authorization: `Bearer ${token}` } })
    return { members: Object.keys((await answer.json()).data[0]), headers: [...answer.headers.keys()] }
  }, [gateway.data, SPACE])
  assert.deepEqual(
    shown.members.filter((name) => !['task_id', 'status', 'created', 'modified', 'execution_type'].includes(name)),
    [],
  )
  for (const name of ['etag', 'link', 'cache-status', 'x-request-id', 'ratelimit', 'x-list-generation']) {
    assert.ok(shown.headers.includes(name), `${name} is exposed`)
  }

  // The stream is tried again.
  endOther()
  await until(() => metricsOf(gateway), (metrics) => /^gateway_changes_streams 0$/m.test(metrics))
  await page.clock.fastForward(5000)
  await liveIs(page, 'Live')

  for (const request of requests) {
    const said = JSON.stringify([request.url(), await request.allHeaders(), request.postData()])
    const isStream = request.url().includes('/changes')
    const response = isStream ? null : await request.response()
    const heard = response && request.method() !== 'OPTIONS' ? await response.body().catch(() => '') : ''
    assert.ok(!said.includes(KEY) && !String(heard).includes(KEY), `${request.url()} shows the key`)
  }
  // Chromium itself logs the 503 as an error.
  assert.deepEqual(complaints.filter((complaint) => !complaint.includes('503')), [])
})

test('a change is shown without a request for the page, and after a restart of the gateway too', async (t) => {
  const { upstream, statuses } = await startChanging(t)
  const { gateway, url, startAgain } = await startExample(t, { upstream })
  const { page, requests } = await openPage(t)
  await page.goto(url)
  await liveIs(page, 'Live')
  const row = page.locator('#tasks tr').first()
  const task = await row.getAttribute('data-task')
  const statusIs = (status) => row.locator('td').nth(1).getByText(status, { exact: true }).waitFor()
  const before = requests.filter(isTasks).length

  statuses[task] = 'hold'
  await statusIs('hold')
  assert.equal(requests.filter(isTasks).length, before)

  // The cursor is of the process before.
  const gone = new Promise((exited) => gateway.child.once('exit', exited))
  gateway.child.kill('SIGKILL')
  await gone
  await liveIs(page, POLLING)
  statuses[task] = 'completed'
  await startAgain()
  await liveIs(page, 'Live')
  await statusIs('completed')
})

test('the page is read again and again while there is no stream', async (t) => {
  const { url } = await startExample(t)
  const { page } = await openPage(t)
  await page.clock.install()
  let refuse
  await page.route('**/changes?*', (route) => refuse(route))
  const fulfill = (status, headers = {}) => (route) =>
    route.fulfill({ status, headers: { 'Access-Control-Allow-Origin': '*', ...headers }, body: '{}' })
  const refusals = [fulfill(406), fulfill(429, { 'Retry-After': '1' }), (route) => route.abort(), (route) => route.continue()]
  refuse = refusals[0]
  await page.goto(url)
  for (const refusal of refusals.slice(0, -1)) {
    refuse = refusal
    await liveIs(page, POLLING)
    const again = page.waitForResponse((response) => isTasks(response) && response.ok())
    await page.clock.fastForward(5000)
    await again
  }
  refuse = refusals.at(-1)
  await page.clock.fastForward(60_000)
  await liveIs(page, 'Live')
})

test('the commands of docs/frontends.md start the example, and a new task appears by itself', async (t) => {
  const page = readFileSync(`${root}docs/frontends.md`, 'utf8')
  const blocks = [...page.matchAll(/^```sh\n(.*?)^```/gms)].map(([, block]) => block)
  assert.equal(blocks.length, 3)
  const folder = mkdtempSync(join(tmpdir(), 'example-'))
  t.after(() => rmSync(folder, { recursive: true }))
  cpSync(`${root}examples`, join(folder, 'examples'), { recursive: true })
  const ports = { 3000: await freePort(), 8080: await freePort(), 8090: await freePort(), 9090: await freePort() }
  const at = (port) => `127.0.0.1:${ports[port]}`
  // Built already, on free ports, and with a new task sooner.
  const script = (block) =>
    block
      .replace('cargo run --locked -- simulate-upstream', `${binary} simulate-upstream --listen ${at(8090)}`)
      .replace('cargo build --locked\n', '')
      .replaceAll('../../target/debug/unpod-gateway', binary)
      .replace('20s', '2s')
      .replace('127.0.0.1:8080', at(8080))
  const run = (block, wanted, env = {}) => start(t, 'sh', ['-euc', script(block)], { cwd: folder, env, wanted, isGroup: true })
  await run(blocks[0], (line) => line.includes(at(8090)))
  await run(blocks[1], (line) => line.includes('gateway is ready'), {
    UNPOD_GATEWAY__SERVER__LISTEN: at(8080),
    UNPOD_GATEWAY__ADMIN__LISTEN: at(9090),
    UNPOD_GATEWAY__UPSTREAM__BASE_URL: `http://${at(8090)}`,
    UNPOD_GATEWAY__CORS__ORIGINS: JSON.stringify([`http://${at(3000)}`]),
  })
  await run(blocks[2], (line) => line.includes(at(3000)), { PORT: String(ports[3000]) })

  const { page: shown, assertQuiet } = await openPage(t)
  await shown.goto(`http://${at(3000)}/`)
  await liveIs(shown, 'Live')
  const newest = () => shown.locator('#tasks tr').first().getAttribute('data-task')
  const first = await newest()
  await until(newest, (task) => task !== first)
  assertQuiet()
})

test('a token that ends is renewed and the page goes on', async (t) => {
  const { gateway, url } = await startExample(t, { ttl: '6' })
  const { page, assertQuiet } = await openPage(t)
  const minted = page.waitForResponse((response) => response.url().endsWith('/token'))
  await page.goto(url)
  const { token, expires_at } = await (await minted).json()
  assert.ok(Date.parse(expires_at) > Date.now() - 1000)
  await page.getByText('57 tasks').waitFor()

  const ask = () => fetch(`${gateway.data}/spaces/${SPACE}/tasks`, { headers: { Authorization: `Bearer ${token}` } })
  await until(async () => (await ask()).status, (status) => status === 401)

  await page.getByRole('button', { name: 'Next' }).click()
  await page.getByText('Page 2 of 6').waitFor()
  assertQuiet()
})

test('a foreign origin reads nothing', async (t) => {
  const { gateway, url } = await startExample(t)
  const { page } = await openPage(t)
  const minted = page.waitForResponse((response) => response.url().endsWith('/token'))
  await page.goto(url)
  const { token } = await (await minted).json()

  const foreign = await openPage(t)
  const server = await startForeign(t)
  await foreign.page.goto(server)
  const outcome = await foreign.page.evaluate(async ([gateway, space, token]) => {
    try {
      const answer = await fetch(`${gateway}/spaces/${space}/tasks`, { headers: { Authorization: `Bearer ${token}` } })
      return `read ${answer.status}`
    } catch (error) {
      return error.name
    }
  }, [gateway.data, SPACE, token])
  assert.equal(outcome, 'TypeError', 'the browser refuses it')
})

// Another origin: an empty page on a port of its own.
async function startForeign(t) {
  const server = createServer((_, response) => response.writeHead(200, { 'Content-Type': 'text/html' }).end('<!doctype html>'))
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening))
  t.after(() => server.close())
  return `http://127.0.0.1:${server.address().port}/`
}
