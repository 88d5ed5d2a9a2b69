// Prints who was called about what, with types generated from the gateway's OpenAPI document:
//
//   npm install openapi-fetch && npx openapi-typescript http://127.0.0.1:8080/openapi.json -o gateway.ts
//
// Usage: GATEWAY_URL=http://127.0.0.1:8080 GATEWAY_KEY=... SPACE=... node report.ts (Node 22.18 or later)

import createClient from 'openapi-fetch'

import type { components, paths } from './gateway.ts'

type Task = components['schemas']['Task']

const { GATEWAY_URL: baseUrl, GATEWAY_KEY, SPACE = '' } = process.env
const gateway = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${GATEWAY_KEY}` } })

function line(task: Task): string {
  const name = task.user_info?.full_name ?? 'somebody'
  const call = task.output?.call_id ?? 'no call yet'
  return `${task.task_id}: ${name}, ${task.task?.objective ?? 'no objective'}, ${task.status}, ${call}`
}

const { data, error } = await gateway.GET('/spaces/{space_token}/tasks', {
  params: { path: { space_token: SPACE }, query: { page: 1, page_size: 20 } },
})
if (error) {
  console.error(`${error.code}: ${error.message} (request ${error.request_id})`)
  process.exit(1)
}
data.data.forEach((task) => console.log(line(task)))
