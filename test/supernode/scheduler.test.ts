// What the scheduler promises: few, near, living parents; a bounded fan-out; a tree without circles; the same answers for the same story.
import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { Scheduler } from '../../supernode/scheduler.ts'
import type { SchedulerOptions } from '../../supernode/scheduler.ts'

const RESOURCE = `layer:sha256:${'a'.repeat(64)}`
const SUPERNODE = 'the-supernode'

function start(options: SchedulerOptions = {}) {
  const time = { now: 1_000 }
  const scheduler = new Scheduler({ clock: () => time.now, supernodes: [SUPERNODE] }, options)
  const hello = (id: string, labels: Record<string, string> = {}, uploadSlots = 32): void =>
    scheduler.hello({ id, addrs: [`/ip4/10.0.0.1/tcp/1/p2p/${id}`], labels, uploadSlots })
  return { scheduler, time, hello, ids: (asker: string, count = 4, exclude: string[] = []) => scheduler.parents(asker, RESOURCE, count, exclude).map(parent => parent.peerId) }
}

describe('whom to ask', () => {
  test('a peer that holds the resource is offered, the asker itself never', () => {
    const { scheduler, hello, ids } = start()
    for (const id of ['a', 'b']) hello(id)
    scheduler.announce('a', RESOURCE, 1)
    expect(ids('b')).toEqual(['a'])
    expect(scheduler.parents('b', RESOURCE, 4)[0]).toMatchObject({ whole: true, fill: 1, tree: true })
    expect(ids('a')).not.toContain('a')
  })

  test('the same rack comes before the same zone, and the same zone before another', () => {
    const { scheduler, hello, ids } = start()
    hello('asker', { zone: 'z1', rack: 'r1' })
    hello('far', { zone: 'z2', rack: 'r1' })
    hello('near', { zone: 'z1', rack: 'r2' })
    hello('nearest', { zone: 'z1', rack: 'r1' })
    for (const id of ['far', 'near', 'nearest']) scheduler.announce(id, RESOURCE, 1)
    expect(ids('asker')).toEqual(['nearest', 'near', 'far'])
  })

  test('a peer that moves to another rack is found there', () => {
    const { scheduler, hello, ids } = start()
    hello('asker', { zone: 'z1', rack: 'r1' })
    hello('other', { zone: 'z1', rack: 'r1' })
    hello('mover', { zone: 'z2', rack: 'r9' })
    for (const id of ['other', 'mover']) scheduler.announce(id, RESOURCE, 1)
    expect(ids('asker', 1)).toEqual(['other'])
    hello('mover', { zone: 'z1', rack: 'r1' })
    hello('other', { zone: 'z3' })
    expect(ids('asker', 4)).toContain('mover')
  })

  test('peers that only begin are offered to each other, so that a crowd trades blocks', () => {
    const { hello, ids } = start()
    for (const id of ['a', 'b', 'c']) hello(id)
    expect(ids('a')).toEqual([])
    expect(ids('b')).toEqual(['a'])
    expect(ids('c').sort()).toEqual(['a', 'b'])
    expect(ids('a').sort()).toEqual(['b', 'c'])
  })

  test('a whole peer that asks all the same, for a block that went bad, stays a root for the others', () => {
    const { scheduler, hello, ids } = start()
    for (const id of ['a', 'b', 'c']) hello(id)
    for (const id of ['a', 'b']) scheduler.announce(id, RESOURCE, 1)
    expect(scheduler.parents('b', RESOURCE, 4)).toMatchObject([{ peerId: 'a', tree: false }])
    expect(scheduler.holdsWhole('b', RESOURCE)).toBe(true)
    expect(ids('c').sort()).toEqual(['a', 'b'])
  })

  test('the silent, the banned, the excluded and those who let go are not offered', () => {
    const { scheduler, time, hello, ids } = start({ deadAfterMs: 100 })
    for (const id of ['asker', 'silent', 'liar', 'gone', 'good']) hello(id)
    for (const id of ['silent', 'liar', 'gone', 'good']) scheduler.announce(id, RESOURCE, 1)
    expect(ids('asker').sort()).toEqual(['gone', 'good', 'liar', 'silent'])
    scheduler.gone('gone', RESOURCE)
    scheduler.ban('liar', 'sent a wrong block')
    time.now += 101
    hello('good')
    expect(ids('asker')).toEqual(['good'])
    expect(ids('asker', 4, ['good'])).toEqual([])
    expect(() => hello('liar')).toThrow(/banned: sent a wrong block/)
    hello('silent')
    expect(ids('asker')).toContain('silent') // a short break costs no new announcement
  })

  test('a peer that is silent for long is forgotten', () => {
    const { scheduler, time, hello, ids } = start()
    for (const id of ['asker', 'old']) hello(id)
    scheduler.announce('old', RESOURCE, 1)
    time.now += 11 * 60_000
    hello('asker')
    expect(scheduler.sweep()).toEqual(['old'])
    expect(ids('asker')).toEqual([])
    expect(scheduler.peerCount).toBe(1)
  })

  test('a stranger must say hello first', () => {
    const { scheduler } = start()
    expect(() => scheduler.parents('x', RESOURCE, 1)).toThrow(/hello/)
    expect(() => scheduler.announce('x', RESOURCE, 1)).toThrow(/hello/)
  })
})

describe('never worse than the supernode', () => {
  const slowly = { peerId: 'slow', bytes: 2 << 20, blocks: 20, failures: 0, millis: 20_000 }
  const quickly = { peerId: SUPERNODE, bytes: 8 << 20, blocks: 80, failures: 0, millis: 1_000 }

  test('a parent far slower than the supernode is dropped for a while, and gets another chance later', () => {
    const { scheduler, time, hello, ids } = start({ penaltyMs: 10_000 })
    for (const id of ['asker', 'slow', 'other']) hello(id)
    scheduler.announce('slow', RESOURCE, 1)
    expect(ids('asker')).toContain('slow')
    scheduler.report('asker', RESOURCE, [slowly, quickly])
    expect(ids('asker')).not.toContain('slow')
    expect(ids('other')).toContain('slow')
    time.now += 10_001
    hello('slow')
    expect(ids('asker')).toContain('slow')
  })

  test('one that fails is left alone by who saw it; by all only when several say so', () => {
    const { scheduler, hello, ids } = start()
    const failing = { peerId: 'bad', bytes: 0, blocks: 0, failures: 3, millis: 10 }
    for (const id of ['c1', 'c2', 'c3', 'c4', 'bad']) hello(id)
    scheduler.announce('bad', RESOURCE, 1)
    scheduler.report('c1', RESOURCE, [failing])
    for (let again = 0; again < 10; again++) scheduler.report('c1', RESOURCE, [failing])
    expect(ids('c1', 8)).not.toContain('bad')
    expect(ids('c4', 8)).toContain('bad')
    scheduler.report('c2', RESOURCE, [failing])
    scheduler.report('c3', RESOURCE, [failing])
    expect(ids('c4', 8)).not.toContain('bad')
  })
})

describe('bounds', () => {
  test('a full parent is not offered; its children are, and leases that end make room', () => {
    const { scheduler, time, hello, ids } = start({ maxFanOut: 2, leaseMs: 1_000 })
    hello('seed')
    scheduler.announce('seed', RESOURCE, 1)
    for (const id of ['a', 'b', 'c']) hello(id)
    expect(ids('a', 1)).toEqual(['seed'])
    expect(ids('b', 1)).toEqual(['seed'])
    expect(ids('c', 4).sort()).toEqual(['a', 'b'])
    time.now += 1_001
    expect(ids('c', 4)).toContain('seed')
  })

  test('upload slots bound the children of a peer over all resources', () => {
    const { scheduler, hello } = start()
    hello('seed', {}, 2)
    for (let resource = 0; resource < 4; resource++) scheduler.announce('seed', `layer:${resource}`, 1)
    for (let peer = 0; peer < 4; peer++) hello(`p${peer}`)
    const served = [0, 1, 2, 3].filter(at => scheduler.parents(`p${at}`, `layer:${at}`, 4).length > 0)
    expect(served).toHaveLength(2)
    expect(scheduler.parents('p0', 'layer:3', 4).map(parent => parent.peerId)).toContain('seed') // already a child of it
  })

  test('too many peers or resources are refused with a clear error', () => {
    const { scheduler, hello } = start({ maxPeers: 2, maxResourcesPerPeer: 1 })
    hello('a')
    hello('b')
    expect(() => hello('c')).toThrow(/takes no more/)
    scheduler.announce('a', 'layer:1', 1)
    expect(() => scheduler.announce('a', 'layer:2', 1)).toThrow(/more than 1 resources/)
  })
})

const names = fc.integer({ min: 0, max: 11 }).map(at => `p${at}`)
const resources = fc.integer({ min: 0, max: 2 }).map(at => `layer:${at}`)
const step = fc.oneof(
  { weight: 3, arbitrary: fc.record({ what: fc.constant('hello' as const), peer: names, zone: fc.constantFrom('z1', 'z2'), slots: fc.constant(4) }) },
  { weight: 4, arbitrary: fc.record({ what: fc.constant('announce' as const), peer: names, resource: resources, fill: fc.constantFrom(0, 0.2, 0.9, 1) }) },
  { weight: 8, arbitrary: fc.record({ what: fc.constant('parents' as const), peer: names, resource: resources, count: fc.integer({ min: 1, max: 8 }) }) },
  fc.record({ what: fc.constant('gone' as const), peer: names, resource: resources }),
  fc.record({ what: fc.constant('leave' as const), peer: names }),
  fc.record({ what: fc.constant('ban' as const), peer: names }),
  fc.record({ what: fc.constant('report' as const), peer: names, parent: names, resource: resources, failures: fc.integer({ min: 0, max: 4 }), millis: fc.integer({ min: 0, max: 100_000 }) }),
  fc.record({ what: fc.constant('wait' as const), millis: fc.constantFrom(1, 400, 1_200) }),
)
type Step = typeof step extends fc.Arbitrary<infer S> ? S : never

const OPTIONS = { fanOut: 2, maxFanOut: 3, deadAfterMs: 1_000, leaseMs: 900, forgetAfterMs: 3_000 }

/** Lives through a story and checks what must always hold; returns every answer given. */
function live(story: readonly Step[]): string[][] {
  const { scheduler, time, hello } = start(OPTIONS)
  const known = new Map<string, number>()
  const banned = new Set<string>()
  const answers: string[][] = []
  for (let at = 0; at < 12; at++) { hello(`p${at}`, {}, 4); known.set(`p${at}`, time.now) }
  for (const event of story) {
    if (event.what === 'wait') { time.now += event.millis; for (const id of scheduler.sweep()) known.delete(id); continue }
    if (event.what === 'hello') {
      if (banned.has(event.peer)) { expect(() => hello(event.peer)).toThrow(); continue }
      hello(event.peer, { zone: event.zone }, event.slots)
      known.set(event.peer, time.now)
      continue
    }
    if (!known.has(event.peer)) continue
    if (event.what === 'leave') { if (!banned.has(event.peer)) { scheduler.leave(event.peer); known.delete(event.peer) } continue }
    if (event.what === 'ban') { scheduler.ban(event.peer, 'test'); banned.add(event.peer); continue }
    known.set(event.peer, time.now)
    if (event.what === 'announce') scheduler.announce(event.peer, event.resource, event.fill)
    if (event.what === 'gone') scheduler.gone(event.peer, event.resource)
    if (event.what === 'report') scheduler.report(event.peer, event.resource, [{ peerId: event.parent, bytes: 2 << 20, blocks: 1, failures: event.failures, millis: event.millis }])
    if (event.what === 'parents') {
      const offers = scheduler.parents(event.peer, event.resource, event.count)
      answers.push(offers.map(offer => offer.peerId))
      expect(offers.length).toBeLessThanOrEqual(event.count)
      expect(new Set(offers.map(offer => offer.peerId)).size).toBe(offers.length)
      for (const offer of offers) {
        expect(offer.peerId).not.toBe(event.peer)
        expect(banned.has(offer.peerId)).toBe(false)
        expect(time.now - known.get(offer.peerId)!).toBeLessThanOrEqual(OPTIONS.deadAfterMs)
      }
    }
    for (const resource of ['layer:0', 'layer:1', 'layer:2']) {
      const holders = new Map(scheduler.holders(resource).map(holder => [holder.peerId, holder]))
      const treeChildren = new Map<string, number>()
      for (const holder of holders.values()) {
        expect(holder.children).toBeLessThanOrEqual(OPTIONS.maxFanOut)
        if (holder.treeParent !== undefined) treeChildren.set(holder.treeParent, (treeChildren.get(holder.treeParent) ?? 0) + 1)
        // Up the tree: it ends.
        let steps = 0
        for (let at = holder.treeParent; at !== undefined; at = holders.get(at)!.treeParent) expect(++steps).toBeLessThanOrEqual(holders.size)
      }
      for (const children of treeChildren.values()) expect(children).toBeLessThanOrEqual(OPTIONS.fanOut)
    }
  }
  return answers
}

describe('whatever happens', () => {
  test('nobody is overloaded, dead or banned peers are never offered, the tree has no circles, and the same story gives the same answers', () => {
    fc.assert(fc.property(fc.array(step, { minLength: 1, maxLength: 120 }), story => {
      expect(live(story)).toEqual(live(story))
    }), { numRuns: 150 })
  })

  test('ten thousand peers that all want one resource: everybody is served by a few, nobody serves many', () => {
    const { scheduler, hello } = start()
    const peers = Array.from({ length: 10_000 }, (_, at) => `p${at}`)
    peers.forEach((id, at) => hello(id, { zone: `z${at % 3}`, rack: `r${at % 100}` }))
    scheduler.announce('p0', RESOURCE, 1)
    let unserved = 0
    for (const id of peers.slice(1)) if (scheduler.parents(id, RESOURCE, 4).length === 0) unserved++
    expect(unserved).toBe(0)
    const holders = scheduler.holders(RESOURCE)
    expect(Math.max(...holders.map(holder => holder.children))).toBeLessThanOrEqual(10)
    const parentOf = new Map(holders.map(holder => [holder.peerId, holder.treeParent]))
    let deepest = 0
    let rooted = 0
    for (const id of peers) {
      let depth = 0
      let at = id
      for (let up = parentOf.get(at); up !== undefined; up = parentOf.get(at)) { at = up; depth++ }
      deepest = Math.max(deepest, depth)
      if (at === 'p0') rooted++
    }
    expect(rooted / peers.length).toBeGreaterThan(0.99)
    expect(deepest).toBeLessThan(30)
  })
})
