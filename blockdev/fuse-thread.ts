// A FUSE thread: reads requests from the fd, answers what is local with one write, hands the rest to the daemon. Never waits for it.
import fs from 'node:fs'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import type { MessagePort } from 'node:worker_threads'
import { setUnpackedCacheBytes } from '../peer/shared-resource.ts'
import { busyCell, CONTROL, COUNT, COUNTS, seenCell } from './fuse-messages.ts'
import type { News, Report, ThreadData } from './fuse-messages.ts'
import { ERRNO, IN_HEADER, OP, REQUEST_BUFFER } from './fuse-protocol.ts'
import { FuseResponder } from './fuse-responder.ts'
import type { Outcome } from './fuse-responder.ts'

const data = workerData as ThreadData
const port = parentPort as MessagePort
const { fd, control, counts } = data
const responder = new FuseResponder(data.touches)
const countsAt = data.thread * COUNTS
setUnpackedCacheBytes(data.cacheBytes)

const tell = (report: Report): void => port.postMessage(report)

function take(news: News): void {
  switch (news.kind) {
    case 'publish': return responder.publish(news.published)
    case 'withdraw': return responder.withdraw(news.room, news.name)
    case 'restored': responder.restored = true; return
    case 'answer': answer(Buffer.from(news.request.buffer, news.request.byteOffset, news.request.length), news.request.length, news.error); return
    case 'stop': port.close()
  }
}

/** One write for header and data. ENOENT: the kernel no longer waits (the reader was killed, or the request was sent again). */
function send(length: number): boolean {
  try {
    fs.writeSync(fd, responder.out, 0, length)
    return true
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    if (code === 'ENODEV') return false
    if (code !== 'ENOENT') tell({ kind: 'trouble', message: `answering a FUSE request failed: ${(error as Error).message}` })
    return true
  }
}

function respond(request: Buffer, length: number): Outcome {
  try {
    return responder.answer(request, length)
  } catch (error) {
    return { kind: 'failed', length: responder.refuse(request, ERRNO.EIO), reason: (error as Error).message }
  }
}

/** Returns false when the connection is gone. `error` is an errno to fail with, 0 to answer. */
function answer(request: Buffer, length: number, error: number): boolean {
  const parked = data.role === 'answerer'
  const outcome: Outcome = error === 0 ? respond(request, length) : { kind: 'reply', length: responder.refuse(request, error) }
  switch (outcome.kind) {
    case 'reply':
    case 'failed': {
      if (error === 0 && request.readUInt32LE(4) === OP.READ) {
        counts[countsAt + COUNT.READS]++
        counts[countsAt + COUNT.BYTES] += outcome.length
      }
      const alive = send(outcome.length)
      const failure = outcome.kind === 'failed' ? outcome.reason : undefined
      if (parked) tell({ kind: 'answered', unique: request.readBigUInt64LE(8), failure })
      else if (failure !== undefined) tell({ kind: 'trouble', message: `a read failed: ${failure}` })
      return alive
    }
    case 'needs':
    case 'unknown': {
      counts[countsAt + COUNT.WAITS]++
      const { needs, offset, length: wanted } = outcome.kind === 'needs' ? outcome : { needs: [], offset: 0, length: 0 }
      tell({ kind: 'park', unique: request.readBigUInt64LE(8), pid: request.readUInt32LE(32), request: Uint8Array.from(request.subarray(0, length)), needs, offset, length: wanted })
      return true
    }
    case 'interrupt':
      tell(outcome)
      return true
    case 'silent':
      return true
  }
}

function catchUp(): void {
  const version = Atomics.load(control, CONTROL.VERSION)
  if (version === Atomics.load(control, seenCell(data.thread))) return
  for (let message = receiveMessageOnPort(port); message !== undefined; message = receiveMessageOnPort(port)) take(message.message as News)
  Atomics.store(control, seenCell(data.thread), version)
}

function readRequests(): void {
  const request = Buffer.allocUnsafeSlow(REQUEST_BUFFER)
  const busy = busyCell(data.thread)
  for (;;) {
    let length: number
    try {
      length = fs.readSync(fd, request, 0, REQUEST_BUFFER, null)
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code
      // ENOENT: the request was interrupted while we fetched it. EINTR, EAGAIN: ask again.
      if (code === 'ENOENT' || code === 'EINTR' || code === 'EAGAIN') continue
      if (code !== 'ENODEV' && code !== 'ECONNABORTED') tell({ kind: 'trouble', message: `reading FUSE requests failed: ${(error as Error).message}` })
      return tell({ kind: 'gone' })
    }
    // Busy is said before the news are looked at: whoever withdraws something first tells the news, then waits for idle threads.
    Atomics.store(control, busy, 1)
    catchUp()
    counts[countsAt + COUNT.REQUESTS]++
    const alive = length < IN_HEADER || answer(request, length, 0)
    Atomics.store(control, busy, 0)
    if (!alive) return tell({ kind: 'gone' })
    if (Atomics.load(control, CONTROL.STOP) !== 0) return
  }
}

if (data.role === 'reader') readRequests()
else {
  port.on('message', (news: News) => {
    take(news)
    if ('version' in news) Atomics.store(control, seenCell(data.thread), news.version)
  })
}
