import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import * as fs from 'node:fs'
import { fixedBlockTable } from '../../image/block-table.ts'
import type { BlockStore } from '../../peer/block-store.ts'
import { FRAME_HAVE, HAVE_BITMAP, HAVE_MORE, HAVE_WHOLE, readFrame, readHave } from '../../peer/exchange-wire.ts'
import { FrameCutter } from '../../peer/frames.ts'
import { HaveFeed } from '../../peer/have-feed.ts'
import { until } from './lab.ts'
import { fill, makeDirectory, openStore, sampleLayer } from './sample-layer.ts'

type News = [resource: string, kind: number, payload: number[]][]

/** A remote that listens: what it was sent, one entry a send. */
class Listener {
  readonly sends: News[] = []
  busy = false

  sendHave(bytes: Uint8Array): boolean {
    if (this.busy) return false
    const news: News = []
    new FrameCutter(1e6, (body) => {
      const { type, body: have } = readFrame(body)
      expect(type).toBe(FRAME_HAVE)
      const { resource, kind, payload } = readHave(have)
      news.push([resource, kind, kind === HAVE_MORE ? Array.from({ length: payload.length / 4 }, (_, index) => payload.readUInt32BE(index * 4)) : [...payload]])
    }).push(bytes)
    this.sends.push(news)
    return true
  }
}

describe('what is here is told', () => {
  let directory: string
  let store: BlockStore
  let feed: HaveFeed
  beforeEach(async () => {
    directory = makeDirectory()
    store = await openStore(directory)
    feed = new HaveFeed(store)
  })
  afterEach(async () => {
    feed.stop()
    await store.close()
    fs.rmSync(directory, { recursive: true, force: true })
  })

  const layer = (seed: number) => sampleLayer([3000, 4000, 5000, 6000], { seed })
  const add = (seed: number) => store.add(`layer:${seed}`, layer(seed).table, { diffId: layer(seed).diffId })

  test('at once when someone begins to listen, then in rounds: of all resources in one piece, once for each who listens', async () => {
    const [one, two] = [await add(1), await add(2)]
    await fill(one, layer(1), [2])
    const listeners = [new Listener(), new Listener()]
    for (const listener of listeners) for (const { id } of [one, two]) feed.add(id, listener)
    for (const { sends } of listeners) expect(sends).toEqual([[['layer:1', HAVE_BITMAP, [4]]], [['layer:2', HAVE_BITMAP, [0]]]])
    await fill(one, layer(1), [0])
    await fill(two, layer(2), [3, 1])
    const told = ({ sends }: Listener) => sends.slice(2).flat()
    await until('it was told', () => listeners.every((listener) => told(listener).flatMap(([, , blocks]) => blocks).length === 3))
    for (const [id, blocks] of [['layer:1', [0]], ['layer:2', [1, 3]]] as const) {
      const news = told(listeners[0]).filter(([resource]) => resource === id)
      expect(news.every(([, kind]) => kind === HAVE_MORE)).toBe(true)
      expect(news.flatMap(([, , numbers]) => numbers).toSorted()).toEqual(blocks)
    }
    expect(told(listeners[1])).toEqual(told(listeners[0]))
    await fill(two, layer(2), [0, 2])
    await until('the whole was told', () => listeners.every(({ sends }) => sends.at(-1)!.some(([id, kind]) => id === 'layer:2' && kind === HAVE_WHOLE)))
  })

  test('who could take nothing is told all that it missed, of each resource, as soon as it can', async () => {
    const [one, two] = [await add(1), await add(2)]
    const listener = new Listener()
    for (const { id } of [one, two]) feed.add(id, listener)
    listener.busy = true
    await fill(one, layer(1), [1])
    await fill(two, layer(2), [0, 1])
    await new Promise((resolve) => { setTimeout(resolve, 150) })
    expect(listener.sends.length).toBe(2)
    listener.busy = false
    await until('it was told', () => listener.sends.length > 2)
    expect(listener.sends[2]).toEqual([['layer:1', HAVE_BITMAP, [2]], ['layer:2', HAVE_BITMAP, [3]]])
  })

  test('bitmaps of many large resources do not wait for each other in one piece', async () => {
    const listener = new Listener()
    const many = Array.from({ length: 12 }, (_, index) => `layer:${index}`)
    for (const id of many) await store.add(id, fixedBlockTable(120_000 * 10, 10), { open: true })
    listener.busy = true
    for (const id of many) feed.add(id, listener)
    listener.busy = false
    await until('all were told', () => listener.sends.flat().length === many.length)
    expect(listener.sends.length).toBe(3) // 15,000 bytes each, and no more than 64 KiB and one together
  })
})
