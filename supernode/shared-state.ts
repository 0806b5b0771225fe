// The state that several supernodes would share (images, layers, access, traces, jobs) behind one small interface; here over the embedded database.
import type { Logger } from 'pino'
import type { ZodType } from 'zod'
import { LRUCache } from 'lru-cache'

/** Named values of one kind. What does not fit the schema when it is read (an older or damaged value) counts as missing. */
export interface StateSpace<Value> {
  get(key: string): Promise<Value | undefined>
  put(key: string, value: Value): Promise<void>
  /** Read, change and write as one step: updates of one key run one after another. undefined from `change` leaves it as it is. */
  update(key: string, change: (value: Value | undefined) => Value | undefined): Promise<Value | undefined>
  delete(key: string): Promise<void>
  entries(): AsyncIterable<[key: string, value: Value]>
}

export interface SharedState {
  space<Value>(name: string, schema: ZodType<Value>): StateSpace<Value>
}

/** What the block store's database gives: an ordered key space of strings. */
export interface TextSpace {
  get(key: string): Promise<string | undefined>
  put(key: string, value: string): Promise<void>
  del(key: string): Promise<void>
  iterator(): AsyncIterable<[string, string]>
}

/** Values kept parsed in memory for each space: those of the images that are starting now. */
const CACHED_VALUES = 4_096

export class EmbeddedState implements SharedState {
  readonly #open: (name: string) => TextSpace
  readonly #logger: Logger

  /** `open` gives a key space of its own for every name. */
  constructor(components: { open: (name: string) => TextSpace; logger: Logger }) {
    this.#open = components.open
    this.#logger = components.logger
  }

  space<Value>(name: string, schema: ZodType<Value>): StateSpace<Value> {
    return new EmbeddedSpace<Value>(this.#open(name), name, schema, this.#logger)
  }
}

class EmbeddedSpace<Value> implements StateSpace<Value> {
  readonly #texts: TextSpace
  readonly #name: string
  readonly #schema: ZodType<Value>
  readonly #logger: Logger
  readonly #updates = new Map<string, Promise<unknown>>()
  readonly #cache = new LRUCache<string, { value: Value }>({ max: CACHED_VALUES })

  constructor(texts: TextSpace, name: string, schema: ZodType<Value>, logger: Logger) {
    this.#texts = texts
    this.#name = name
    this.#schema = schema
    this.#logger = logger
  }

  async get(key: string): Promise<Value | undefined> {
    const cached = this.#cache.get(key)
    if (cached !== undefined) return cached.value
    const text = await this.#texts.get(key)
    if (text === undefined) return undefined
    const value = this.#parse(key, text)
    if (value !== undefined) this.#cache.set(key, { value })
    return value
  }

  async put(key: string, value: Value): Promise<void> {
    this.#cache.set(key, { value })
    await this.#texts.put(key, JSON.stringify(value))
  }

  async update(key: string, change: (value: Value | undefined) => Value | undefined): Promise<Value | undefined> {
    const step = async (): Promise<Value | undefined> => {
      const before = await this.get(key)
      const after = change(before)
      if (after === undefined) return before
      await this.put(key, after)
      return after
    }
    const done = (this.#updates.get(key) ?? Promise.resolve()).then(step, step)
    this.#updates.set(key, done)
    try {
      return await done
    } finally {
      if (this.#updates.get(key) === done) this.#updates.delete(key)
    }
  }

  async delete(key: string): Promise<void> {
    this.#cache.delete(key)
    await this.#texts.del(key)
  }

  async *entries(): AsyncGenerator<[string, Value]> {
    for await (const [key, text] of this.#texts.iterator()) {
      const value = this.#parse(key, text)
      if (value !== undefined) yield [key, value]
    }
  }

  #parse(key: string, text: string): Value | undefined {
    try {
      return this.#schema.parse(JSON.parse(text))
    } catch (error) {
      this.#logger.warn({ space: this.#name, key, err: error }, 'a stored value is damaged or of another version; it counts as missing')
      return undefined
    }
  }
}
