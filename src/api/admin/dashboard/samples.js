// Reads Prometheus's text format, and writes numbers for people.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const short = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 })

export const count = (number) => whole.format(number)
export const rate = (number) => short.format(number)
export const percent = (share) => (share === null ? '–' : `${(100 * share).toFixed(1)} %`)
export const share = (part, of) => (of > 0 ? part / of : null)
export const clock = (date, seconds = true) =>
  date.toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit', ...(seconds && { second: '2-digit' }) })

export function bytes(size) {
  const units = ['B', 'KiB', 'MiB', 'GiB']
  let unit = 0
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024
    unit += 1
  }
  return `${short.format(size)} ${units[unit]}`
}

export function duration(seconds) {
  if (seconds === null) return '–'
  if (seconds === 0) return '0 s'
  if (seconds < 0.001) return `${short.format(seconds * 1e6)} µs`
  if (seconds < 1) return `${short.format(seconds * 1000)} ms`
  if (seconds < 120) return `${short.format(seconds)} s`
  if (seconds < 7200) return `${whole.format(seconds / 60)} min`
  return `${whole.format(seconds / 3600)} h`
}

// The samples by name, each { labels, value }.
export function parse(text) {
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

// The samples of `name` whose labels are these.
function matching(metrics, name, wanted) {
  const pairs = Object.entries(wanted)
  return (metrics[name] ?? []).filter(({ labels }) => pairs.every(([label, value]) => labels[label] === value))
}

export const total = (metrics, name, wanted = {}) => matching(metrics, name, wanted).reduce((sum, { value }) => sum + value, 0)

// What `label` is in the samples of `name` whose labels are `wanted`, with the sum for each.
export function by(metrics, name, label, wanted = {}) {
  const sums = new Map()
  for (const { labels, value } of matching(metrics, name, wanted)) {
    sums.set(labels[label], (sums.get(labels[label]) ?? 0) + value)
  }
  return sums
}

// The value that this share of all observations did not exceed, on a line through its bucket, as Prometheus does it.
export function quantile(metrics, name, wanted, share) {
  const buckets = [...by(metrics, `${name}_bucket`, 'le', wanted)]
    .map(([le, count]) => ({ le: le === '+Inf' ? Infinity : Number(le), count }))
    .sort((a, b) => a.le - b.le)
  const all = buckets.at(-1)?.count ?? 0
  if (all === 0) return null
  const rank = share * all
  const place = buckets.findIndex(({ count }) => count >= rank)
  const below = place > 0 ? buckets[place - 1] : { le: 0, count: 0 }
  const { le, count } = buckets[place]
  if (le === Infinity) return below.le
  return below.le + (le - below.le) * ((rank - below.count) / (count - below.count))
}
