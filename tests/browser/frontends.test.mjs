// examples/browser as its users would run it: a backend that mints, a page that reads, a real gateway and a simulated Unpod.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { freePort, openPage, root, start, startGateway, startSimulator, until } from './lib.mjs'

const KEY = 'ugw_example_key_of_the_frontend_backend'
const SPACE = 'SUPPORT0000000000000000A'

// Runs the example. Its files are copied, since the signing key is created next to them.
async function startExample(t, { ttl = '300' } = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'example-'))
  t.after(() => rmSync(folder, { recursive: true }))
  cpSync(`${root}examples/browser`, folder, { recursive: true })
  execFileSync('openssl', ['genpkey', '-algorithm', 'ed25519', '-out', join(folder, 'browser-key.pem')])
  const port = await freePort()
  const gateway = await startGateway(
    t,
    'gateway.toml',
    {
      UNPOD_GATEWAY__UPSTREAM__BASE_URL: await startSimulator(t),
      UNPOD_GATEWAY__CORS__ORIGINS: JSON.stringify([`http://127.0.0.1:${port}`]),
    },
    folder,
  )
  const { found: page } = await start(t, process.execPath, ['backend.mjs'], {
    cwd: folder,
    env: { GATEWAY_URL: gateway.data, GATEWAY_KEY: KEY, SPACE, PORT: String(port), TTL_SECONDS: ttl },
    wanted: (line) => line.match(/^http:\S+/)?.[0],
  })
  return { gateway, url: page }
}

const isTasks = (message) => message.url().includes('/tasks?')

// The number of tasks requests so far, by status; preflights are the 204s.
async function answers(gateway) {
  const metrics = await (await fetch(`${gateway.admin}/metrics`)).text()
  const samples = metrics.matchAll(/^gateway_http_requests_total\{route="tasks",status="(\d+)"[^}]*\} (\d+)$/gm)
  const counted = [...samples].filter(([, , count]) => count !== '0')
  return counted.reduce((sum, [, status, count]) => ({ ...sum, [status]: (sum[status] ?? 0) + Number(count) }), {})
}

test('a page lists tasks, asks by ETag, and never holds the key', async (t) => {
  const { gateway, url } = await startExample(t)
  const { page, requests, assertQuiet } = await openPage(t)
  await page.clock.install()
  await page.goto(url)
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

  for (const request of requests) {
    const said = JSON.stringify([request.url(), await request.allHeaders(), request.postData()])
    const response = await request.response()
    const heard = response && request.method() !== 'OPTIONS' ? await response.body().catch(() => '') : ''
    assert.ok(!said.includes(KEY) && !String(heard).includes(KEY), `${request.url()} shows the key`)
  }
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
  const { createServer } = await import('node:http')
  const server = createServer((_, response) => response.writeHead(200, { 'Content-Type': 'text/html' }).end('<!doctype html>'))
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening))
  t.after(() => server.close())
  return `http://127.0.0.1:${server.address().port}/`
}
