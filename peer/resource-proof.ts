// The proof of one resource: its whole stream must hash to its diffID; what comes of that for its blocks, its record and its raw file.
import { SkimmerError } from '../oci/errors.ts'
import { rawLength } from '../image/block-table.ts'
import { isPlain } from './block-codec.ts'
import type { PackFile } from './pack-file.ts'
import type { RawFile } from './raw-file.ts'
import type { Resource } from './resource.ts'
import type { ResourceKeeper } from './resource-keeper.ts'
import type { ResourceRecord } from './store-records.ts'
import type { StoredBlocks } from './stored-blocks.ts'

/** What the prover answers when the stream is right; for who has seen that already. */
const SEEN = { result: 'proved', raw: false } as const

export class ResourceProof {
  readonly #resource: Resource
  readonly #pack: PackFile
  readonly #raw: RawFile
  readonly #blocks: StoredBlocks
  /** The resource's own, which this changes. */
  readonly #record: ResourceRecord
  readonly #keeper: ResourceKeeper
  #running: Promise<void> | undefined

  constructor(resource: Resource, parts: { pack: PackFile; raw: RawFile; blocks: StoredBlocks; record: ResourceRecord; keeper: ResourceKeeper }) {
    this.#resource = resource
    this.#pack = parts.pack
    this.#raw = parts.raw
    this.#blocks = parts.blocks
    this.#record = parts.record
    this.#keeper = parts.keeper
  }

  /** See Resource.prove() and Resource.provedByReading(); two at once are one. */
  run(wantRaw: boolean, seen = false): Promise<void> {
    this.#running ??= this.#prove(wantRaw, seen).finally(() => {
      this.#running = undefined
    })
    return this.#running
  }

  async #prove(wantRaw: boolean, seen: boolean): Promise<void> {
    const { diffId: digest, id, table, quarantineReason } = this.#resource
    if (digest === undefined) throw new SkimmerError('INVALID_ARGUMENT', `${id}: there is no diffID to prove it against`)
    if (quarantineReason !== undefined) throw new SkimmerError('DIGEST_MISMATCH', `${id} is quarantined: ${quarantineReason}`)
    if (!this.#blocks.whole) throw new SkimmerError('CONFLICT', `${id}: only ${this.#blocks.count} of ${table.count} blocks are here; bring the others first`)
    if (this.#record.proved && (!wantRaw || this.#raw.fd >= 0)) return
    const plain = isPlain(table)
    const leave = this.#blocks.enter()
    let taken = 0
    try {
      if (wantRaw && !plain && await this.#keeper.takeRaw(this.#resource, rawLength(table))) taken = rawLength(table)
      const answer = seen ? await this.#pack.sync().then(() => SEEN) : await this.#keeper.prover.prove({ id, table, packFd: this.#pack.fd, digest, rawPath: taken > 0 ? this.#raw.path : undefined })
      if (this.#blocks.removed) throw this.#blocks.gone()
      if (answer.result !== 'proved') {
        this.#keeper.metrics.proof(answer.result === 'false' ? 'quarantined' : 'failed')
        if (answer.result === 'failed') throw new SkimmerError('UNAVAILABLE', `${id}: could not be proved: ${answer.reason}`)
        if (answer.result === 'damaged') {
          for (const block of answer.blocks) this.#blocks.drop(block)
          throw new SkimmerError('NOT_FOUND', `${id}: ${answer.blocks.length} blocks are damaged on disk and were dropped; bring them and prove again`, { details: { blocks: answer.blocks.slice(0, 100) } })
        }
        await this.#keeper.quarantine(id, answer.reason)
        throw new SkimmerError('DIGEST_MISMATCH', `${id}: ${answer.reason}; it is quarantined`)
      }
      const unpacked = answer.raw && this.#raw.publish(rawLength(table))
      await this.#recordProof(unpacked)
      if (unpacked) taken = 0
      if (plain) this.#raw.borrow(this.#pack.fd)
      this.#blocks.proved(plain || unpacked)
      this.#keeper.metrics.proof('proved')
    } finally {
      if (taken > 0) this.#keeper.give('raw', taken)
      leave()
    }
    this.#resource.emit('proved')
  }

  /** Only what is recorded for good counts: otherwise the raw file would be in the way of the next attempt. */
  async #recordProof(raw: boolean): Promise<void> {
    const { proved, raw: rawBefore } = this.#record
    Object.assign(this.#record, { proved: true, raw })
    try {
      await this.#keeper.save(this.#resource, true)
    } catch (error) {
      Object.assign(this.#record, { proved, raw: rawBefore })
      this.#raw.unlink()
      void this.#raw.retire()
      throw new SkimmerError('UNAVAILABLE', `${this.#resource.id}: its proof could not be recorded; check the disk`, { cause: error })
    }
  }
}
