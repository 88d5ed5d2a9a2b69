// Serves the page and mints its tokens. Only it has a key for the gateway.
// Usage: GATEWAY_URL=http://127.0.0.1:8080 GATEWAY_KEY=ugw_… SPACE=… node backend.mjs
// Needs only Node 18 or later.
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'

const { GATEWAY_URL, GATEWAY_KEY, SPACE, PORT = '3000', TTL_SECONDS = '300' } = process.env
if (!GATEWAY_URL || !GATEWAY_KEY || !SPACE) {
  console.error('GATEWAY_URL, GATEWAY_KEY and SPACE are required')
  process.exit(2)
}

const SCRIPT = 'text/javascript; charset=utf-8'
const FILES = { '/': ['index.html', 'text/html; charset=utf-8'], '/app.js': ['app.js', SCRIPT], '/follow.js': ['follow.js', SCRIPT] }
// The page may only load itself and call the gateway, in case text of a task is ever executed.
const POLICY = `default-src 'none'; img-src data:; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self' ${new URL(GATEWAY_URL).origin}`

// In a real application: check who is signed in, and which spaces they may read.
const allowedSpaces = (_request) => [SPACE]

async function mint(request) {
  const answer = await fetch(new URL('/browser-tokens', GATEWAY_URL), {
    method: 'POST',
    headers: { Authorization: `Token ${GATEWAY_KEY}`, 'Content-Type': 'application/json' },
    body: JSON.stringify({ spaces: allowedSpaces(request), ttl_seconds: Number(TTL_SECONDS) }),
    signal: AbortSignal.timeout(5000),
  })
  if (!answer.ok) throw new Error(`the gateway answered ${answer.status}: ${(await answer.json()).code}`)
  const { token, expires_at } = await answer.json()
  return { token, expires_at, gateway: GATEWAY_URL, space: SPACE }
}

async function respond(request, response) {
  const { pathname } = new URL(request.url, 'http://localhost')
  // A form on another site can send a POST, but not with this header.
  const fromThePage = request.headers['sec-fetch-site'] === 'same-origin'
  if (request.method === 'POST' && pathname === '/token' && fromThePage) {
    const body = JSON.stringify(await mint(request))
    response.writeHead(200, { 'Content-Type': 'application/json', 'Cache-Control': 'no-store' }).end(body)
  } else if (request.method === 'GET' && pathname in FILES) {
    const [name, type] = FILES[pathname]
    const body = await readFile(new URL(name, import.meta.url))
    response.writeHead(200, { 'Content-Type': type, 'Content-Security-Policy': POLICY }).end(body)
  } else {
    response.writeHead(404).end()
  }
}

const server = createServer((request, response) =>
  respond(request, response).catch((error) => {
    console.error(error.message)
    response.writeHead(502).end()
  }),
)
server.listen(Number(PORT), '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}/`))
