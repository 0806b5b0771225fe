// What the store remembers in LevelDB: one record and one table a resource, last uses, quarantine, and other rooms' key spaces.
import * as fs from 'node:fs'
import { Level } from 'level'
import type { Logger } from 'pino'
import * as z from 'zod'
import { SkimmerError } from '../oci/errors.ts'
import { HASH_LENGTH, MAX_BLOCKS } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { checkTable, sha256 } from './block-codec.ts'

const recordSchema = z.object({
  version: z.literal(1),
  /** The pack's file name. */
  file: z.string().regex(/^[0-9a-f]{32}$/),
  /** sha256 of the encoded table, hex: a record and its table belong together or not at all. */
  tableHash: z.string().regex(/^[0-9a-f]{64}$/),
  diffId: z.string().optional(),
  origin: z.record(z.string(), z.unknown()).optional(),
  proved: z.boolean(),
  /** The raw file was complete and synced when this was written. */
  raw: z.boolean(),
  pins: z.array(z.string()),
  /** Hashes of zeros in its table are not known yet. */
  open: z.boolean().optional(),
})
export type ResourceRecord = z.infer<typeof recordSchema>

/** A key space in the store's database for another room: an abstract-level sublevel of strings, or JSON values if asked. */
export type KeySpace<V> = ReturnType<typeof openKeySpace<V>>
const openKeySpace = <V>(db: Level<string, string>, name: string, valueEncoding: 'utf8' | 'json' | 'view') => db.sublevel<string, V>(['room', name], { valueEncoding })

/** LevelDB's own 4 and 8 MiB would be a tenth of the node's memory; records are few and short. */
const DATABASE = { writeBufferSize: 1024 * 1024, cacheSize: 2 * 1024 * 1024 }

export class StoreRecords {
  readonly #db: Level<string, string>
  readonly #records
  readonly #tables
  readonly #uses
  readonly #quarantine
  readonly #logger: Logger
  private constructor(db: Level<string, string>, logger: Logger) {
    this.#db = db
    this.#logger = logger
    this.#records = db.sublevel<string, unknown>('resources', { valueEncoding: 'json' })
    this.#tables = db.sublevel<string, Uint8Array>('tables', { valueEncoding: 'view' })
    this.#uses = db.sublevel<string, unknown>('uses', { valueEncoding: 'json' })
    this.#quarantine = db.sublevel<string, string>('quarantine', { valueEncoding: 'utf8' })
  }

  /**
   * Opens the database, repairs it when it is damaged, and starts anew beside it when even that fails. CONFLICT when another process has it.
   * A disk that is full, gone or not ours is no damage: NO_SPACE or UNAVAILABLE, and nothing is touched.
   */
  static async open(directory: string, logger: Logger): Promise<StoreRecords> {
    const attempt = async (): Promise<StoreRecords> => {
      const db = new Level<string, string>(directory, DATABASE)
      await db.open()
      return new StoreRecords(db, logger)
    }
    try {
      return await attempt()
    } catch (error) {
      const cause = (error as Error).cause as NodeJS.ErrnoException | undefined
      if (cause?.code === 'LEVEL_LOCKED') throw new SkimmerError('CONFLICT', `${directory}: another process uses this block store; stop it or choose another directory`, { cause: error })
      const reason = cause?.message ?? (error as Error).message
      if (/no space left|quota exceeded/i.test(reason)) throw new SkimmerError('NO_SPACE', `${directory}: the block store cannot open on a full disk; free space on it`, { cause: error })
      if (cause?.code === 'LEVEL_IO_ERROR' && !/no such file/i.test(reason)) throw new SkimmerError('UNAVAILABLE', `${directory}: the block store cannot open: ${reason}`, { cause: error })
      logger.error({ reason, directory }, 'the block store database is damaged; repairing it')
    }
    try {
      // LevelDB has it in its binding; the types of `level` cover browsers too and leave it out.
      await (Level as unknown as { repair(directory: string): Promise<void> }).repair(directory)
      return await attempt()
    } catch (error) {
      const aside = `${directory}.damaged-${Date.now()}`
      fs.renameSync(directory, aside)
      logger.error({ error: (error as Error).message, aside }, 'the block store database cannot be repaired; it was put aside and the store starts empty')
      return await attempt()
    }
  }

  keySpace<V = string>(name: string, valueEncoding: 'utf8' | 'json' | 'view' = 'utf8'): KeySpace<V> {
    return openKeySpace<V>(this.#db, name, valueEncoding)
  }

  /** All resources that are sound; the others are forgotten, each with a line in the log. */
  async load(): Promise<{ id: string; record: ResourceRecord; table: BlockTable; lastUse: number }[]> {
    const loaded = []
    const uses = new Map<string, unknown>()
    for (const key of await this.#damagedKeys(this.#uses)) await this.#uses.del(key)
    for await (const [id, use] of this.#uses.iterator()) uses.set(id, use)
    for (const id of await this.#records.keys().all()) {
      try {
        const record = recordSchema.parse(await this.#records.get(id))
        const bytes = await this.#tables.get(id)
        if (bytes === undefined) throw new SkimmerError('INVALID_DATA', `${id}: its block table is gone`)
        if (sha256(bytes).toString('hex') !== record.tableHash) throw new SkimmerError('INVALID_DATA', `${id}: its block table is damaged`)
        const use = uses.get(id)
        loaded.push({ id, record, table: decodeTable(bytes, id), lastUse: typeof use === 'number' ? use : 0 })
      } catch (error) {
        this.#logger.error({ resource: id, error: (error as Error).message }, 'dropped a resource whose record is damaged')
        await this.remove(id)
      }
    }
    return loaded
  }

  async #damagedKeys(space: { keys(): { all(): Promise<string[]> }; get(key: string): Promise<unknown> }): Promise<string[]> {
    const damaged: string[] = []
    for (const key of await space.keys().all()) await space.get(key).catch(() => damaged.push(key))
    return damaged
  }

  /** Record and table, both or neither. */
  async add(id: string, record: ResourceRecord, encodedTable: Uint8Array, durable = false): Promise<void> {
    await this.#db.batch([
      { type: 'put', sublevel: this.#records, key: id, value: record },
      { type: 'put', sublevel: this.#tables, key: id, value: encodedTable },
    ] as never, { sync: durable } as object)
  }

  /** `durable`: on disk, not merely with the kernel, when it resolves. */
  async update(id: string, record: ResourceRecord, durable: boolean): Promise<void> {
    await this.#records.put(id, record, { sync: durable } as object)
  }

  async remove(id: string): Promise<void> {
    await this.#db.batch([
      { type: 'del', sublevel: this.#records, key: id },
      { type: 'del', sublevel: this.#tables, key: id },
      { type: 'del', sublevel: this.#uses, key: id },
    ] as never)
  }

  async saveUses(uses: readonly (readonly [id: string, lastUse: number])[]): Promise<void> {
    await this.#uses.batch(uses.map(([key, value]) => ({ type: 'put' as const, key, value })))
  }

  async loadQuarantine(): Promise<Map<string, string>> {
    return new Map(await this.#quarantine.iterator().all())
  }

  async quarantine(id: string, reason: string): Promise<void> {
    await this.#quarantine.put(id, reason, { sync: true } as object)
  }

  async endQuarantine(id: string): Promise<void> {
    await this.#quarantine.del(id, { sync: true } as object)
  }

  close(): Promise<void> {
    return this.#db.close()
  }
}

const asBytes = (array: Float64Array<SharedArrayBuffer>): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength)

/** count (u32), raw offsets and packed offsets (f64 each, count + 1), codecs, hashes; little-endian as the machine is. */
export function encodeTable(table: BlockTable): Buffer {
  const count = Buffer.alloc(4)
  count.writeUInt32LE(table.count)
  return Buffer.concat([count, asBytes(table.rawOffsets), asBytes(table.packedOffsets), table.codecs, table.hashes])
}

function decodeTable(bytes: Uint8Array, name: string): BlockTable {
  const count = bytes.length < 4 ? -1 : Buffer.from(bytes.buffer, bytes.byteOffset, 4).readUInt32LE()
  if (count < 0 || count > MAX_BLOCKS || bytes.length !== 4 + 16 * (count + 1) + count * (1 + HASH_LENGTH)) throw new SkimmerError('INVALID_DATA', `${name}: its block table has the wrong size`)
  const offsets = 8 * (count + 1)
  const copy = (start: number, length: number): SharedArrayBuffer => {
    const shared = new SharedArrayBuffer(length)
    new Uint8Array(shared).set(bytes.subarray(start, start + length))
    return shared
  }
  const table = {
    count,
    rawOffsets: new Float64Array(copy(4, offsets)),
    packedOffsets: new Float64Array(copy(4 + offsets, offsets)),
    codecs: new Uint8Array(copy(4 + 2 * offsets, count)),
    hashes: new Uint8Array(copy(4 + 2 * offsets + count, count * HASH_LENGTH)),
  }
  checkTable(table, name)
  return table
}
