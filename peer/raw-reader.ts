// Reading a stretch of a resource's raw stream: from its raw file where there is one, else block by block.
import { blockAt, rawLength } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { SkimmerError } from '../oci/errors.ts'
import { unpackBlockAside } from './block-codec.ts'
import { UNPACKED } from './block-state.ts'
import { readExactly } from './pack-file.ts'
import type { RawFile } from './raw-file.ts'
import { READERS } from './shared-resource.ts'

export interface RawReaderParts {
  readonly id: string
  readonly table: BlockTable
  readonly state: Uint8Array
  readonly raw: RawFile
  /** A stored block's packed bytes, verified; NOT_FOUND. */
  readonly packed: (block: number) => Promise<Buffer>
  /** It was used just now. */
  readonly touch: () => void
}

export class RawReader {
  readonly #parts: RawReaderParts
  constructor(parts: RawReaderParts) {
    this.#parts = parts
  }

  /** See Resource.readRaw(). */
  async read(offset: number, length: number): Promise<Buffer> {
    const { id, table, packed } = this.#parts
    const end = offset + length
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0 || end > rawLength(table)) {
      throw new SkimmerError('INVALID_ARGUMENT', `${id}: ${length} bytes at ${offset} are outside of its ${rawLength(table)} bytes`)
    }
    if (length === 0) return Buffer.alloc(0)
    const first = blockAt(table, offset)
    const last = blockAt(table, end - 1)
    const unpacked = await this.#readFile(first, last, offset, length)
    if (unpacked !== undefined) return unpacked
    const into = Buffer.allocUnsafeSlow(length)
    for (let block = first; block <= last; block++) {
      const raw = await unpackBlockAside(id, table, block, await packed(block))
      const start = table.rawOffsets[block]
      into.set(raw.subarray(Math.max(0, offset - start), Math.min(raw.length, end - start)), Math.max(0, start - offset))
    }
    return into
  }

  async #readFile(first: number, last: number, offset: number, length: number): Promise<Buffer | undefined> {
    const { state, raw, touch } = this.#parts
    for (let block = first; block <= last; block++) if (state[block] !== UNPACKED) return undefined
    touch()
    // Counted in before the cell is looked at, as threads do: see RawFile.retire().
    Atomics.add(raw.cell, READERS, 1)
    try {
      const { fd } = raw
      return fd < 0 ? undefined : await readExactly(fd, offset, length)
    } finally {
      Atomics.sub(raw.cell, READERS, 1)
    }
  }
}
