// Worker thread: streams a pack in order, checks every block and the sha256 of the raw stream, and writes the raw file on the way.
import * as crypto from 'node:crypto'
import * as fs from 'node:fs'
import * as os from 'node:os'
import { parentPort } from 'node:worker_threads'
import { rawLength } from '../image/block-table.ts'
import { isBlock, unpackBlock } from './block-codec.ts'
import type { ProofAnswer, ProofTask } from './proof.ts'

/** A raw file goes to the disk in steps of this size: one sync of gigabytes at the end would stall everyone's reads. */
const SYNC_EVERY_BYTES = 64 * 1024 * 1024

if (parentPort === null) throw new Error('proof-worker.ts runs as a worker thread only')
const port = parentPort
port.on('message', (task: ProofTask) => port.postMessage(run(task)))

// Proving is background work: this thread steps back for those that answer reads. Linux knows a niceness per thread.
try {
  os.setPriority(Number(fs.readlinkSync('/proc/thread-self').split('/').at(-1)), 10)
} catch {
  // Without it proofs only compete a little more.
}

function run(task: ProofTask): ProofAnswer {
  const output = task.rawPath === undefined ? undefined : new RawOutput(task.rawPath)
  try {
    const { table } = task
    const hash = crypto.createHash('sha256')
    const bad: number[] = []
    let buffer = Buffer.allocUnsafeSlow(0)
    for (let block = 0; block < table.count; block++) {
      const start = table.packedOffsets[block]
      const length = table.packedOffsets[block + 1] - start
      if (buffer.length < length) buffer = Buffer.allocUnsafeSlow(length)
      const packed = buffer.subarray(0, length)
      if (!readFully(task.packFd, packed, start) || !isBlock(table, block, packed)) {
        bad.push(block)
        continue
      }
      if (bad.length > 0) continue // The stream is broken already; what is left is to find all that must be fetched again.
      const raw = unpackBlock(task.id, table, block, packed)
      hash.update(raw)
      output?.write(raw)
    }
    if (bad.length > 0) return { number: task.number, result: 'damaged', blocks: bad }
    const digest = `sha256:${hash.digest('hex')}`
    if (digest !== task.digest) return { number: task.number, result: 'false', reason: `the stream of ${rawLength(table)} bytes hashes to ${digest}, not to ${task.digest}` }
    fs.fsyncSync(task.packFd)
    const raw = output?.finish() ?? false
    return { number: task.number, result: 'proved', raw }
  } catch (error) {
    // Packed bytes that hash as the table says but do not unpack: the table lies, and so does whoever made it.
    if ((error as { code?: string }).code === 'INVALID_DATA') return { number: task.number, result: 'false', reason: (error as Error).message }
    return { number: task.number, result: 'failed', reason: (error as Error).message }
  } finally {
    output?.close()
  }
}

/**
 * The raw file while it is written. It gets its name when all of it is on disk, so that a file of that name is never half-written,
 * whatever an older record says of it. A full disk costs the file, not the proof.
 */
class RawOutput {
  readonly #path: string
  readonly #halfPath: string
  #fd: number
  #position = 0
  #synced = 0
  constructor(path: string) {
    this.#path = path
    this.#halfPath = `${path}.half`
    try {
      this.#fd = fs.openSync(this.#halfPath, 'w', 0o600)
    } catch {
      this.#fd = -1
    }
  }

  write(bytes: Uint8Array): void {
    if (this.#fd < 0) return
    try {
      let done = 0
      while (done < bytes.length) done += fs.writeSync(this.#fd, bytes, done, bytes.length - done, this.#position + done)
      this.#position += done
      if (this.#position - this.#synced >= SYNC_EVERY_BYTES) {
        fs.fdatasyncSync(this.#fd)
        this.#synced = this.#position
      }
    } catch {
      this.#giveUp()
    }
  }

  /** On disk, name and all; or false. */
  finish(): boolean {
    if (this.#fd < 0) return false
    try {
      fs.fsyncSync(this.#fd)
      fs.renameSync(this.#halfPath, this.#path)
      const directory = fs.openSync(this.#path.slice(0, this.#path.lastIndexOf('/')), 'r')
      fs.fsyncSync(directory)
      fs.closeSync(directory)
      fs.closeSync(this.#fd)
      this.#fd = -1
      return true
    } catch {
      this.#giveUp()
      return false
    }
  }

  /** An unfinished file goes. */
  close(): void {
    if (this.#fd >= 0) this.#giveUp()
  }

  #giveUp(): void {
    fs.closeSync(this.#fd)
    this.#fd = -1
    fs.rmSync(this.#halfPath, { force: true })
  }
}

function readFully(fd: number, into: Buffer, position: number): boolean {
  let done = 0
  while (done < into.length) {
    const got = fs.readSync(fd, into, done, into.length - done, position + done)
    if (got === 0) return false
    done += got
  }
  return true
}
