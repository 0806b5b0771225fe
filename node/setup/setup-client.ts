// What `skimmer setup` needs to know of a client: which files it reads, what goes into them, how it takes them up.
import type { ClientFiles } from './client-files.ts'

export interface SetupRequest {
  /** The registry proxy, without a slash at the end: http://127.0.0.1:4001. */
  readonly proxy: string
  /** HOST or HOST:PORT; empty: all of them, where the client can be told so. */
  readonly registries: readonly string[]
  /** Instead of the client's usual configuration file (containerd, docker). */
  readonly configFile?: string
  /** Instead of the directory that containerd's configuration names. */
  readonly certsDirectory?: string
}

/** How one file is edited. Both are pure; texts keep everything that is not Skimmer's. */
export interface FileEdit {
  readonly path: string
  /** The text with Skimmer's entries; `text` has none of them (undefined: there is no file). The same text: they were there already, somebody else's. Throws SkimmerError. */
  apply(text: string | undefined): string
  /** The text without Skimmer's entries; they may have been edited, moved or be gone. */
  remove(text: string): string
}

export interface SetupPlan {
  readonly edits: readonly FileEdit[]
  /** What the user should know: what is not reached this way, what must be done by hand. */
  readonly notes: readonly string[]
}

export interface SetupClient {
  readonly name: string
  /** Clients that read the same files have one record. */
  readonly record: string
  readonly summary: string
  /** How the client takes up what was changed or, with `undone`, given back; told after the change. */
  reload(changed: readonly string[], undone: boolean): string[]
  /** The registries to set up, given those asked for now and those set up before. */
  registries(asked: readonly string[], before: readonly string[]): readonly string[]
  /** Throws SkimmerError when the client's files do not allow it. */
  plan(request: SetupRequest, files: ClientFiles): SetupPlan
  /** Files that hold entries of Skimmer's, known by their marks alone: for an undo without a record. */
  marked(request: SetupRequest, files: ClientFiles): FileEdit[]
}
