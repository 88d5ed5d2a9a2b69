// Follows the changes of a space as a stream. EventSource cannot: it sends no Authorization.
const LONGEST_PAUSE = 60_000
// A comment comes every 15 seconds: a stream that is silent for longer is dead.
const LONGEST_SILENCE = 40_000

const sleep = (ms) => new Promise((done) => setTimeout(done, ms))

// `open(cursor)` asks for the stream and returns the response. `onEvent` gets each event with its parsed `data`, `onLive` gets true when a
// stream begins and false when it ends, so that the page can poll meanwhile. Ends when the space is gone.
export async function follow({ open, onEvent, onLive }) {
  let cursor = null
  let retry = 5000
  for (let failures = 0; ; ) {
    let pause = Math.min(retry * 2 ** failures, LONGEST_PAUSE)
    failures += 1
    try {
      const answer = await open(cursor)
      if (answer.ok) {
        for await (const event of events(answer.body)) {
          onLive(true)
          failures = 0
          pause = retry = Number(event.retry ?? retry)
          cursor = event.id ?? cursor
          if (event.data) onEvent(JSON.parse(event.data))
          if (event.event === 'space.gone') return
          if (event.event === 'space.reset') {
            // What came meanwhile is lost: begin again.
            cursor = null
            break
          }
        }
      } else {
        // 429 and 503 say how long to wait. After any other refusal, such as 406, a later attempt may do better.
        pause = 1000 * Number(answer.headers.get('Retry-After') ?? pause / 1000)
      }
    } catch (error) {
      console.info(`The stream ended: ${error.message}`)
    } finally {
      onLive(false)
    }
    await sleep(pause)
  }
}

// The events of a stream, each an object of its fields.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  try {
    for (;;) {
      const { done, value } = await within(LONGEST_SILENCE, reader.read())
      if (done) return
      const blocks = (text + value).split('\n\n')
      text = blocks.pop()
      yield* blocks.map(parse)
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

// `name: value` lines. A comment has an empty name; several lines of data are one text.
function parse(block) {
  const fields = {}
  for (const line of block.split('\n')) {
    const [, name, value] = line.match(/^([^:]*):? ?(.*)$/)
    fields[name] = name === 'data' && fields.data !== undefined ? `${fields.data}\n${value}` : value
  }
  return fields
}

async function within(ms, promise) {
  let timer
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('nothing came for too long')), ms)
  })
  return Promise.race([promise, silence]).finally(() => clearTimeout(timer))
}
