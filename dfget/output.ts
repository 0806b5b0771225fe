// Where a download's bytes go, in order.
export interface Output {
  /** As the user wrote it. */
  readonly name: string
  /** May what was written be taken back? */
  readonly restartable: boolean
  /** Bytes taken so far. */
  readonly position: number
  /** Told once, when the length is known. NO_SPACE: that will not go well. */
  expect(bytes: number): Promise<void>
  /** One after another. The bytes are lent until it resolves. NO_SPACE, FORBIDDEN, INTERNAL; ABORTED: nobody reads it any more. */
  write(chunks: readonly Buffer[]): Promise<void>
  restart(): Promise<void>
  /** All is here and right: only now a file gets its name. */
  finish(): Promise<void>
  /** Nothing of it stays. */
  discard(): Promise<void>
}
