// What is remembered of who may read what, to the millisecond.
import { describe, expect, test } from '@jest/globals'
import { MemoryLevel } from 'memory-level'
import { pino } from 'pino'
import type { KeySpace } from '../../peer/store-records.ts'
import { ClientAccess } from '../../registry-proxy/client-access.ts'
import type { AccessFact } from '../../registry-proxy/client-access.ts'
import type { Caller } from '../../registry-proxy/caller.ts'
import type { Upstream } from '../../registry-proxy/upstream-choice.ts'

const caller: Caller = { authorization: 'Basic x', kind: 'client', identity: 'client x' }
const upstream = { registry: 'registry', repository: 'private/app' } as Upstream
const DIGEST = `sha256:${'0'.repeat(64)}`

describe('who may read what', () => {
  test.each([[0, [false]], [1, [true, false]], [1000, [true, true, false]]])('a yes lasts %i ms, and none of it is nothing at all', async (accessTtlMs, answers) => {
    let now = 5_000_000
    const space = new MemoryLevel<string, string>().sublevel<string, AccessFact>('access', { valueEncoding: 'json' }) as unknown as KeySpace<AccessFact>
    const access = new ClientAccess({ space, logger: pino({ level: 'silent' }), clock: () => now }, { accessTtlMs, accessOfflineMs: 2_000 })
    await access.open()
    access.granted(caller, upstream, DIGEST, 10)
    const seen: boolean[] = []
    for (const at of [0, accessTtlMs - 1, accessTtlMs].filter((time, index, all) => time >= 0 && all.indexOf(time) === index)) {
      now = 5_000_000 + at
      seen.push(access.mayRead(caller, upstream, DIGEST))
    }
    expect(seen).toEqual(answers)
    expect(access.mayReadOffline(caller, upstream, DIGEST)).toBe(true)
    expect(access.mayRead({ ...caller, identity: 'client y' }, upstream, DIGEST)).toBe(false)
    now = 5_000_000 + 2_000
    expect(access.mayReadOffline(caller, upstream, DIGEST)).toBe(false)
  })
})
