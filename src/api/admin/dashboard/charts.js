// Draws windows of time as step lines in an SVG, with axes, and names the lines beside it.
import { clock } from './samples.js'

const HEIGHT = 180
const EDGE = { top: 8, bottom: 22, left: 52 }
// In seconds, between two times on the axis.
const STEPS = [10, 30, 60, 300, 600, 900]
const SHORTEST = 60

function element(name, attributes, text = '') {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  made.textContent = text
  return made
}

// The smallest of 1, 2 or 5 times a power of ten that is not below `value`.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value))
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.9999)
}

// Where each window begins and ends, with its value; a null is a gap.
function path(windows, value, x, y) {
  let drawn = ''
  let gap = true
  for (const window of windows) {
    const height = value(window)
    if (height === null) {
      gap = true
      continue
    }
    const at = y(height).toFixed(1)
    drawn += `${gap ? 'M' : 'L'}${x(window.end - window.seconds).toFixed(1)} ${at}H${x(window.end).toFixed(1)}`
    gap = false
  }
  return drawn
}

// Draws `axes`, the first on the left and the second on the right: each { series, format, tick, most }, where `tick` writes the numbers on the
// axis, `most` is the least that its top stands for, and a line of `series` is { name, value }.
export function drawChart(figure, windows, axes) {
  const svg = figure.querySelector('svg')
  const width = Math.max(svg.clientWidth, 240)
  const right = width - (axes.length > 1 ? EDGE.left : 8)
  const end = windows.at(-1).end
  const start = Math.min(windows[0].end - windows[0].seconds, end - SHORTEST)
  const x = (time) => EDGE.left + ((time - start) / (end - start)) * (right - EDGE.left)
  const bottom = HEIGHT - EDGE.bottom
  const parts = []

  const step = STEPS.find((seconds) => (end - start) / seconds <= width / 80) ?? STEPS.at(-1)
  for (let time = Math.ceil(start / step) * step; time <= end; time += step) {
    parts.push(element('path', { class: 'grid', d: `M${x(time)} ${EDGE.top}V${bottom}` }))
    parts.push(element('text', { x: Math.min(x(time), right - 16), y: HEIGHT - 6, 'text-anchor': 'middle' }, clock(new Date(time * 1000), step < 60)))
  }

  const lines = axes.flatMap(({ series, format, tick = format, most }, side) => {
    const values = series.flatMap(({ value }) => windows.map(value)).filter((value) => value !== null)
    const top = roundUp(Math.max(most, ...values))
    const y = (value) => bottom - (value / top) * (bottom - EDGE.top)
    for (const height of [0, top / 2, top]) {
      const place = side === 0 ? { x: EDGE.left - 6, 'text-anchor': 'end' } : { x: right + 6 }
      parts.push(element('text', { ...place, y: y(height) + 4 }, tick(height)))
      if (side === 0) parts.push(element('path', { class: 'grid', d: `M${EDGE.left} ${y(height)}H${right}` }))
    }
    return series.map(({ name, value }) => ({ name, d: path(windows, value, x, y), now: format(value(windows.at(-1))) }))
  })
  parts.push(...lines.map(({ d }, place) => element('path', { class: `line line-${place}`, d })))

  svg.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`)
  svg.replaceChildren(...parts)
  const words = lines.map(({ name, now }) => `${name} ${now}`)
  const title = figure.querySelector('figcaption').textContent
  svg.setAttribute('aria-label', `${title} from ${clock(new Date(start * 1000))} to ${clock(new Date(end * 1000))}. Now: ${words.join(', ')}.`)
  figure.querySelector('.legend').replaceChildren(...words.map((text, place) => {
    const item = document.createElement('li')
    item.className = `line-${place}`
    item.textContent = text
    return item
  }))
}
