// Who has a resource pinned: for as long as this process lives, or until taken off.

export class Pins {
  readonly #passing = new Set<string>()
  readonly #lasting: Set<string>

  /** `lasting`: those that were saved. */
  constructor(lasting: Iterable<string>) {
    this.#lasting = new Set(lasting)
  }

  get any(): boolean { return this.#passing.size > 0 || this.#lasting.size > 0 }
  get owners(): string[] { return [...new Set([...this.#lasting, ...this.#passing])] }
  /** What must be saved. */
  get lasting(): string[] { return [...this.#lasting] }

  /** True when this must be saved. */
  add(owner: string, lasting: boolean): boolean {
    if (!lasting) this.#passing.add(owner)
    else if (!this.#lasting.has(owner)) {
      this.#lasting.add(owner)
      return true
    }
    return false
  }

  /** True when this must be saved. */
  delete(owner: string): boolean {
    this.#passing.delete(owner)
    return this.#lasting.delete(owner)
  }
}
