// Which blocks of a request are sent next, and reading them from the pack straight into their frames.
import { readv } from 'node:fs'
import { promisify } from 'node:util'
import { SkimmerError } from '../oci/errors.ts'
import { BLOCK_HEADER, writeBlockHeader } from './exchange-wire.ts'
import type { BlockRange } from './exchange-wire.ts'
import type { Resource } from './resource.ts'

const readVector = promisify(readv)

/** One request being served. */
export interface Job {
  readonly request: number
  readonly resource: Resource
  readonly ranges: readonly BlockRange[]
  priority: number
  rangeIndex: number
  next: number
  /** Blocks that were not here when their turn came. */
  readonly absent: Set<number>
  readonly arrived: number[]
  onBlock?: (block: number) => void
  late?: NodeJS.Timeout
}

export interface Part { readonly job: Job; blocks: number[]; done: boolean }

/** Blocks of the job that can be sent now, up to about `budget` bytes. Those that are not here move to `absent`. */
export function takeBlocks(job: Job, budget: number): number[] {
  const { table, state } = job.resource
  const blocks: number[] = []
  let bytes = 0
  while (bytes < budget) {
    let block: number
    if (job.arrived.length > 0) block = job.arrived.shift()!
    else if (job.rangeIndex < job.ranges.length) {
      block = job.next++
      if (job.next >= job.ranges[job.rangeIndex].to && ++job.rangeIndex < job.ranges.length) job.next = job.ranges[job.rangeIndex].from
      if (state[block] === 0) {
        job.absent.add(block)
        continue
      }
    } else break
    blocks.push(block)
    bytes += table.packedOffsets[block + 1] - table.packedOffsets[block]
  }
  return blocks
}

/**
 * Writes the frames of these blocks into `run` from `start` on and returns where they end. Neighbours in the pack are read with one
 * call, each into its place behind its frame's header. The resource must be pinned, and its blocks verified. NOT_FOUND when one is gone.
 */
export async function readBlocks(resource: Resource, request: number, blocks: readonly number[], run: Buffer, start: number): Promise<number> {
  const { table, state } = resource
  let at = start
  for (let first = 0; first < blocks.length;) {
    const views: Buffer[] = []
    let bytes = 0
    let last = first
    do {
      const length = table.packedOffsets[blocks[last] + 1] - table.packedOffsets[blocks[last]]
      writeBlockHeader(run, at, request, blocks[last], length)
      views.push(run.subarray(at + BLOCK_HEADER, at + BLOCK_HEADER + length))
      at += BLOCK_HEADER + length
      bytes += length
      last++
    } while (last < blocks.length && blocks[last] === blocks[last - 1] + 1)
    const { bytesRead } = await readVector(resource.shared().packFd, views, table.packedOffsets[blocks[first]])
    if (bytesRead !== bytes) throw new SkimmerError('NOT_FOUND', `${resource.id}: blocks ${blocks[first]}-${blocks[last - 1]} are no longer here`)
    first = last
  }
  for (const block of blocks) if (state[block] === 0) throw new SkimmerError('NOT_FOUND', `${resource.id}: block ${block} is no longer here`)
  return at
}
