// Who waits for a download to change hears of each change, of the time that passed, and of the end.
import { describe, expect, test } from '@jest/globals'
import { getEventListeners } from 'node:events'
import { DownloadContent } from '../../peer/download-content.ts'
import type { Peer } from '../../peer/peer.ts'

function content(): { content: DownloadContent; changes: () => number } {
  let changes = 0
  return { content: new DownloadContent({} as Peer, { name: 'it', pin: 'it', peers: true, onPart: () => {}, onChange: () => { changes++ } }), changes: () => changes }
}

describe('waiting for a download to change', () => {
  test('one change wakes all, and who waits again waits for the next one', async () => {
    const { content: one, changes } = content()
    const { signal } = new AbortController()
    const woken: string[] = []
    const all = ['a', 'b', 'c'].map(async name => {
      await one.change(60_000, signal)
      woken.push(name)
    })
    await Promise.resolve()
    expect(woken).toEqual([])
    one.changed()
    await Promise.all(all)
    expect(woken).toEqual(['a', 'b', 'c'])
    const next = one.change(60_000, signal).then(() => woken.push('next'))
    await new Promise(resolve => { setTimeout(resolve, 20) })
    expect(woken).toHaveLength(3)
    one.changed()
    await next
    expect(changes()).toBe(2)
    expect(getEventListeners(signal, 'abort')).toHaveLength(1)
  })

  test('without a change everyone looks again after a while, sooner who asks for it', async () => {
    const { content: one } = content()
    const { signal } = new AbortController()
    const order: string[] = []
    await Promise.all([one.change(10_000, signal).then(() => order.push('clock')), content().content.change(30, signal).then(() => order.push('soon'))])
    expect(order).toEqual(['soon', 'clock'])
  })

  test('the end of a signal ends its waiters with its reason; others only look again', async () => {
    const { content: one } = content()
    const [ended, other] = [new AbortController(), new AbortController()]
    const reason = new Error('enough')
    const waits = [one.change(60_000, ended.signal), one.change(10, ended.signal), one.change(60_000, other.signal)]
    ended.abort(reason)
    expect(await Promise.allSettled(waits)).toEqual([{ status: 'rejected', reason }, { status: 'rejected', reason }, { status: 'fulfilled', value: undefined }])
    await expect(one.change(60_000, ended.signal)).rejects.toBe(reason)
  })
})
