// What names mean, in words. A test checks that nothing the gateway may report is missing here.

export const OUTCOMES = {
  hit: 'Stored and fresh',
  stale_while_revalidate: 'Stale, refreshed in the background',
  stale_if_error: 'Stale, instead of an error',
  stale_if_slow: 'Stale, because the fetch takes long',
  quota: 'Stale, because of the quota',
  max_stale: 'Stale, which the client accepts',
  only_if_cached: 'Stale, because the client wanted no upstream request',
  assembled: 'Assembled from other stored pages',
  filtered: 'Filtered from stored pages',
  miss: 'Not stored: fetched',
  stale: 'Stale: revalidated first',
  joined: 'Waited for a fetch in flight',
  not_cached: 'Not stored, and the client wanted no upstream request',
  quota_exhausted: 'Rejected: the quota is used up',
  circuit_open: 'Rejected: the circuit breaker is open',
  overloaded: 'Rejected: too many requests are waiting',
}
// Those that count as hits.
export const FROM_STORE = ['hit', 'stale_while_revalidate', 'stale_if_error', 'stale_if_slow', 'quota', 'max_stale', 'only_if_cached', 'assembled', 'filtered']

export const ROUTES = {
  tasks: 'Tasks',
  runs: 'Runs',
  run_tasks: 'Tasks of a run',
  task: 'Single tasks',
  changes: 'Changes',
  browser_tokens: 'Browser tokens',
  openapi: 'OpenAPI document',
  healthz: 'Health checks',
  other: 'Other paths',
}

export const ERRORS = {
  invalid_space_token: 'A client sent an invalid space token.',
  invalid_run_id: 'A client sent an invalid run id.',
  invalid_task_id: 'A client sent an invalid task id.',
  invalid_parameter: 'A client sent a query parameter out of range.',
  unknown_parameter: 'A client sent an unknown query parameter.',
  invalid_body: 'A client requested a browser token with an invalid body.',
  unauthenticated: 'A client sent no key, or an invalid one.',
  identity_unavailable: 'A client sent a token, but the identity provider’s keys have not been loaded yet.',
  space_not_allowed: 'A client requested a space that it may not read.',
  minting_not_allowed: 'A browser token tried to mint a browser token.',
  space_access_denied: 'Unpod denies the gateway’s user access to the space.',
  space_not_found: 'Unpod has no such space.',
  task_not_found: 'A client requested a task that is not among the newest.',
  list_incomplete: 'A request needed more tasks than could be fetched in time.',
  cursor_gone: 'A client went on from a cursor that cannot be honoured, and got a new one.',
  route_not_found: 'A client requested an unknown path.',
  method_not_allowed: 'A client used a method that the path does not support.',
  upstream_rejected: 'Unpod rejected a request.',
  rate_limited: 'A client exceeded its rate limit, or an address failed to authenticate too often.',
  upstream_auth_failed: 'Unpod rejects the gateway’s token: replace it.',
  upstream_failed: 'Unpod failed.',
  upstream_invalid_response: 'Unpod’s response was not a page of tasks.',
  upstream_unreachable: 'Unpod could not be reached.',
  upstream_timeout: 'Unpod did not respond in time.',
  not_cached: 'A client sent only-if-cached, and nothing usable was stored.',
  upstream_quota_exhausted: 'This minute’s quota is used up.',
  upstream_unavailable: 'The circuit breaker is open: Unpod keeps failing.',
  overloaded: 'Too many concurrent requests.',
  internal: 'A bug: see the log.',
}

export const CIRCUITS = {
  closed: 'Closed',
  half_open: 'Half open: one call at a time probes Unpod',
  open: 'Open: Unpod keeps failing',
}

export const STATES = {
  ready: 'Ready',
  degraded: 'Degraded',
  draining: 'Draining',
  unavailable: 'Unavailable',
}

export const PARTS = {
  listener: 'Listener',
  credentials: 'Credentials',
  circuits: 'Circuit breakers',
  answers: 'Responses',
  redis: 'Redis',
  identity: 'Identity provider',
}

export const WATCHES = {
  watching: 'Watching',
  following: 'Read by another replica',
  delayed: 'Delayed',
  lingering: 'Nobody listens, still reading',
  kept: 'Nobody listens, not reading',
  gone: 'Gone',
}

// Labels of `client` that name no client.
export const CLIENTS = {
  none: 'Not authenticated',
  background: 'Background refreshes',
}

// Why a part of the readiness is as it is; empty where its state says it all.
export function reason(part, why) {
  const named = (of) => Object.entries(of).map(([name, state]) => `${name} – ${CIRCUITS[state] ?? ERRORS[state] ?? state}`).join('; ')
  switch (part) {
    case 'credentials':
      return why.refused_by_upstream.length > 0 ? `Unpod rejects the token of ${why.refused_by_upstream.join(', ')}.` : ''
    case 'circuits':
      return named(why.not_closed)
    case 'answers':
      return named(why.nothing_with)
    case 'redis':
      return `${why.answers ? `Replicas connected: ${why.members}` : 'No answer'}. Purges pending: ${why.pending_purges}.`
    case 'identity':
      return `Keys: ${why.keys}.`
    default:
      return ''
  }
}
