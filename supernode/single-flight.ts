// One piece of work for all who want it at the same time.

export class SingleFlight<Result> {
  readonly #running = new Map<string, Promise<Result>>()

  /** The running work of this name, or `work` started now. */
  run(name: string, work: () => Promise<Result>): Promise<Result> {
    let running = this.#running.get(name)
    if (running === undefined) {
      running = work().finally(() => this.#running.delete(name))
      this.#running.set(name, running)
    }
    return running
  }
}
