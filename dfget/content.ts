// A download's content on its way into its output: counted, its digest computed, and nothing given away as whole that is not right.
import { streamedDigest, type StreamedDigest } from '../source/content-digest.ts'
import type { Output } from './output.ts'

export class Content {
  readonly output: Output
  readonly #spec: string | undefined
  readonly #what: string
  #digest: StreamedDigest | undefined
  /** The newest chunk, where what is written cannot be taken back: it goes out when the digest is right. */
  #held: Buffer | undefined
  #received = 0

  constructor(output: Output, options: { digest?: string; what: string }) {
    this.output = output
    this.#spec = options.digest
    this.#what = options.what
    this.#digest = options.digest === undefined ? undefined : streamedDigest(options.digest)
  }

  /** Bytes taken; the next one wanted. */
  get received(): number {
    return this.#received
  }

  /** The bytes are lent until it resolves. */
  async write(chunks: readonly Buffer[]): Promise<void> {
    for (const chunk of chunks) {
      this.#received += chunk.length
      this.#digest?.update(chunk)
    }
    if (this.#digest === undefined || this.output.restartable) return await this.output.write(chunks)
    const before = this.#held
    this.#held = Buffer.from(chunks.at(-1)!)
    await this.output.write([...(before === undefined ? [] : [before]), ...chunks.slice(0, -1)])
  }

  /** CONFLICT when something is out that cannot be taken back. */
  async restart(): Promise<void> {
    if (this.output.position > 0) await this.output.restart()
    this.#held = undefined
    this.#received = 0
    this.#digest = this.#spec === undefined ? undefined : streamedDigest(this.#spec)
  }

  /** The digest, when there was one to be. DIGEST_MISMATCH. */
  async finish(): Promise<string | undefined> {
    const digest = this.#digest?.verify(this.#what)
    if (this.#held !== undefined) await this.output.write([this.#held])
    await this.output.finish()
    return digest
  }
}
