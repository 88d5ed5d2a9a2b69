// Starts real processes on free ports, and a headless Chromium in which any error fails the test.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createServer } from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout as pause } from 'node:timers/promises'
import { chromium } from 'playwright-core'

// The project's folder; the tests run from a copy next to their tools.
export const root = process.env.PROJECT_ROOT
export const binary = `${root}target/debug/unpod-gateway`
const PATIENCE = 30_000
const BETWEEN = 100

const CHROMIUM_ARGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
  // Coloured edges of letters make screenshots half as large again.
  '--disable-lcd-text',
]

export async function freePort() {
  const server = createServer()
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening))
  const { port } = server.address()
  await new Promise((closed) => server.close(closed))
  return port
}

// Starts a process and waits for the first line for which `wanted` returns something; it is stopped with the test, where it is a group
// with what it started.
export async function start(t, command, args, { env = {}, wanted, cwd = root, isGroup = false }) {
  const options = { cwd, env: { PATH: process.env.PATH, ...env }, stdio: ['ignore', 'pipe', 'pipe'], detached: isGroup }
  const child = spawn(command, args, options)
  t.after(() => (isGroup ? process.kill(-child.pid, 'SIGKILL') : child.kill('SIGKILL')))
  const lines = []
  const ready = new Promise((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        lines.push(line)
        const found = wanted(line)
        if (found) resolve(found)
      })
    }
    child.on('exit', (code) => reject(new Error(`${command} ended with ${code}:\n${lines.join('\n')}`)))
    setTimeout(() => reject(new Error(`${command} is not ready:\n${lines.join('\n')}`)), PATIENCE).unref()
  })
  return { child, lines, found: await ready }
}

export async function startSimulator(t) {
  const { found } = await start(t, binary, ['simulate-upstream', '--listen', '127.0.0.1:0'], {
    wanted: (line) => line.match(/http:\/\/127\.0\.0\.1:\d+/)?.[0],
  })
  return found
}

// A gateway with the configuration file `config`; `env` overrides it.
export async function startGateway(t, config, env, cwd = root) {
  const { found, child, lines } = await start(t, binary, ['serve', '--config', config], {
    cwd,
    env: {
      UNPOD_GATEWAY__SERVER__LISTEN: '127.0.0.1:0',
      UNPOD_GATEWAY__ADMIN__LISTEN: '127.0.0.1:0',
      UNPOD_GATEWAY__TELEMETRY__FORMAT: 'json',
      ...env,
    },
    wanted: (line) => (line.includes('gateway is ready') ? JSON.parse(line) : null),
  })
  return { data: `http://${found['server.listen']}`, admin: `http://${found['admin.listen']}`, child, lines }
}

// A page in which errors and console messages fail the test, with a record of its requests.
export async function openPage(t, options = {}) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: CHROMIUM_ARGS })
  t.after(() => browser.close())
  const context = await browser.newContext(options)
  const page = await context.newPage()
  page.setDefaultTimeout(PATIENCE)
  const complaints = []
  page.on('pageerror', (error) => complaints.push(String(error)))
  page.on('console', (message) => {
    if (message.type() === 'error') complaints.push(message.text())
  })
  const requests = []
  page.on('request', (request) => requests.push(request))
  return { page, context, requests, complaints, assertQuiet: () => assert.deepEqual(complaints, []) }
}

// Calls `ask` until `condition` holds for its result, slowly enough for the page's rate limit.
export async function until(ask, condition, patience = PATIENCE) {
  const end = Date.now() + patience
  for (;;) {
    const answer = await ask()
    if (condition(answer)) return answer
    assert.ok(Date.now() < end, 'it did not come true')
    await pause(BETWEEN)
  }
}
