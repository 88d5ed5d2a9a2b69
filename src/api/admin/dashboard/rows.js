// Draws tables without touching what has not changed.

const MOST_NAMES = 50

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}

// Makes `body` show `rows`, each { key, cells, action }, and leaves alone what has not changed: the focus stays where it is.
export function showRows(body, rows) {
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]))
  const columns = body.parentElement.tHead.rows[0].cells
  const focused = document.activeElement
  rows.forEach(({ key, cells, action }, place) => {
    const row = known.get(key) ?? newRow(key, columns, cells.length, action)
    known.delete(key)
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null)
    cells.forEach((cell, column) => {
      setText(row.cells[column], cell.text ?? cell)
      row.cells[column].className = `${columns[column].className} ${cell.className ?? ''}`
    })
  })
  for (const row of known.values()) row.remove()
  body.closest('.table').hidden = rows.length === 0
  if (focused?.isConnected && document.activeElement !== focused) focused.focus()
}

function newRow(key, columns, cells, action) {
  const row = document.createElement('tr')
  row.dataset.key = key
  for (let column = 0; column < cells; column += 1) {
    const cell = document.createElement(column === 0 ? 'th' : 'td')
    if (column === 0) cell.scope = 'row'
    // On a narrow screen rows are cards without the table's head.
    cell.dataset.label = columns[column].textContent
    row.append(cell)
  }
  if (action) row.insertCell().append(action())
  return row
}

// Names what is left out of a table.
export function fold(id, names, what) {
  const details = document.getElementById(id)
  details.hidden = names.length === 0
  setText(details.querySelector('summary'), `${names.length} more ${what}`)
  const others = names.length > MOST_NAMES ? ` and ${names.length - MOST_NAMES} others` : ''
  setText(details.querySelector('p'), `${names.slice(0, MOST_NAMES).join(' · ')}${others}`)
}
