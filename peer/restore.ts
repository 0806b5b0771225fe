// What the disk says of a resource after a restart: which of its blocks may be served, and how sure that is.
import type { Logger } from 'pino'
import { packedLength, rawLength } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { ABSENT, STORED, UNPACKED } from './block-state.ts'
import { KnownHashes } from './known-hashes.ts'
import { PackFile } from './pack-file.ts'
import { RawFile } from './raw-file.ts'
import type { ResourceParts } from './resource-keeper.ts'
import type { ResourceRecord } from './store-records.ts'

/**
 * A proved resource with its raw file is served as it is: both files were on disk before the proof was recorded. Everything else counts as
 * stored, and is verified at its first use: notes and data of the last moments may have reached the disk in any order. A block whose hash was
 * learnt after the table was last saved cannot be verified, and is not here.
 */
export function restoreResource(components: { logger: Logger }, file: string, id: string, record: ResourceRecord, table: BlockTable): Pick<ResourceParts, 'pack' | 'raw' | 'state' | 'record'> {
  const pack = new PackFile(file, table.count)
  const raw = new RawFile(`${file}.raw`)
  const state = new Uint8Array(new SharedArrayBuffer(table.count))
  const size = pack.size()
  const complete = size === packedLength(table)
  const notes = pack.readNotes()
  const hashes = new KnownHashes(id, table, record.open === true)
  if (notes === undefined && size > 0 && !record.proved) components.logger.warn({ resource: id }, 'dropped the blocks of a resource: the note of which were written is gone')
  for (let block = 0; block < table.count; block++) {
    const noted = notes === undefined ? record.proved && complete : notes[block] !== 0
    state[block] = noted && hashes.knows(block) && size >= table.packedOffsets[block + 1] ? STORED : ABSENT
  }
  const unpacked = record.proved && record.raw && complete && raw.publish(rawLength(table))
  if (unpacked) for (let block = 0; block < table.count; block++) if (state[block] === STORED) state[block] = UNPACKED
  return { pack, raw, state, record: { ...record, raw: unpacked } }
}
