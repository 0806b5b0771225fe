// Setting a client up and undoing it: what would change, and doing it so that every file can be given back byte for byte.
import { unlinkSync } from 'node:fs'
import { type ClientFiles, decode } from './client-files.ts'
import { backUp, type FileChange, isChange, makeDirectories, removeDirectories, writeChange } from './file-change.ts'
import type { FileEdit, SetupClient, SetupRequest } from './setup-client.ts'
import { readRecord, type RecordedFile, recordPath, recordText, sha256, type SetupRecord } from './setup-record.ts'

interface PlannedFile extends FileChange {
  /** What an undo gives back. */
  readonly base: Buffer | undefined
  readonly recorded: RecordedFile | undefined
}

export interface PlannedSetup {
  /** Only files that change. */
  readonly changes: readonly FileChange[]
  readonly notes: readonly string[]
  /** Writes everything; answers the backups it made. */
  perform(): string[]
}

/** What the client's files would become. Everything is read and checked; nothing is written. */
export function planSetup(client: SetupClient, asked: SetupRequest, files: ClientFiles): PlannedSetup {
  const record = readRecord(client.record, files)
  const request = { ...asked, registries: client.registries(asked.registries, record?.registries ?? []) }
  const { edits, notes } = client.plan(request, files)
  const recorded = new Map(record?.files.map((file) => [file.path, file]))
  const previous = removers(client, request, record, files)
  const planned = edits.map((edit): PlannedFile => planFile(edit, files, recorded.get(edit.path), previous))
  // Files of the setup before that this one does not need lose their entries: another proxy, for instance.
  const left = [...recorded.values()].filter(({ path }) => !edits.some((edit) => edit.path === path))
  const dropped = record === undefined || record.proxy === request.proxy ? [] : left.map((file) => planRemoval(file, files, previous))
  const changes = [...planned.filter(isChange), ...dropped.map(({ change }) => change).filter(isChange)]
  return { changes, notes, perform: () => perform(client, request, files, { planned, changes, dropped, record }) }
}

/** How entries that are there already are taken out of a file: by their marks, or because the record says that they are ours. */
function removers(client: SetupClient, asked: SetupRequest, record: SetupRecord | undefined, files: ClientFiles): (path: string) => FileEdit | undefined {
  const request: SetupRequest = record === undefined ? asked : { proxy: record.proxy, registries: record.registries, configFile: record.configFile, certsDirectory: record.certsDirectory }
  const edits = client.marked(request, files)
  if (record !== undefined) {
    try {
      const ours = new Set(record.files.map(({ path }) => path))
      edits.push(...client.plan(request, files).edits.filter(({ path }) => ours.has(path)))
    } catch {
      // What can be planned no more can still be found by its marks.
    }
  }
  return (path) => edits.find((edit) => edit.path === path)
}

function planFile(edit: FileEdit, files: ClientFiles, recorded: RecordedFile | undefined, previous: (path: string) => FileEdit | undefined): PlannedFile {
  const before = files.bytes(edit.path)
  let base = before
  if (before !== undefined && recorded !== undefined && sha256(before) === recorded.after) {
    base = recorded.before === null ? undefined : Buffer.from(recorded.before, 'base64')
  } else if (before !== undefined) {
    const text = decode(before, edit.path)
    const rest = previous(edit.path)?.remove(text) ?? text
    if (rest !== text) base = rest === '' ? undefined : Buffer.from(rest)
  }
  const after = Buffer.from(edit.apply(base === undefined ? undefined : decode(base, edit.path)))
  return { path: edit.path, before, after, base, recorded }
}

function planRemoval(file: RecordedFile, files: ClientFiles, remover: (path: string) => FileEdit | undefined): { change: FileChange; exact: boolean; file: RecordedFile } {
  const now = files.bytes(file.path)
  const was = file.before === null ? undefined : Buffer.from(file.before, 'base64')
  if (now === undefined || (was !== undefined && now.equals(was))) return { change: { path: file.path, before: now, after: now }, exact: true, file }
  if (sha256(now) === file.after) return { change: { path: file.path, before: now, after: was }, exact: true, file }
  const text = decode(now, file.path)
  const rest = remover(file.path)?.remove(text) ?? text
  return { change: { path: file.path, before: now, after: rest === '' && was === undefined ? undefined : Buffer.from(rest) }, exact: false, file }
}

function perform(client: SetupClient, request: SetupRequest, files: ClientFiles, plan: { planned: PlannedFile[]; changes: FileChange[]; dropped: ReturnType<typeof planRemoval>[]; record: SetupRecord | undefined }): string[] {
  const backups: string[] = []
  const kept = (plan.record?.files ?? []).filter(({ path }) => ![...plan.planned, ...plan.dropped.map(({ file }) => file)].some((file) => file.path === path))
  const recordFiles: RecordedFile[] = [...kept]
  const made = [...(plan.record?.directories ?? [])]
  for (const file of plan.planned) {
    // Entries that were there before and are not ours are not undone either.
    if (!isChange({ path: file.path, before: file.base, after: file.after })) continue
    const unbroken = file.recorded !== undefined && file.before !== undefined && sha256(file.before) === file.recorded.after
    let backup = file.recorded?.backup
    if (isChange(file) && file.before !== undefined && !unbroken) {
      backup = backUp(file.path, files)
      backups.push(backup)
    }
    if (isChange(file)) made.push(...makeDirectories(file.path, files))
    recordFiles.push({ path: file.path, before: file.base?.toString('base64') ?? null, after: sha256(file.after!), ...(backup === undefined ? {} : { backup }) })
  }
  // First what an undo needs, then the files themselves: a crash between leaves nothing that could not be undone.
  const { proxy, configFile, certsDirectory } = request
  const registries = [...new Set([...(plan.record?.registries ?? []), ...request.registries])]
  if (recordFiles.length === 0) dropRecord(client, plan.record, files)
  else writeRecord(client, { version: 1, proxy, registries, configFile, certsDirectory, directories: made, files: recordFiles }, files)
  for (const change of plan.changes) writeChange(change, files)
  for (const { file, exact } of plan.dropped) tidy(file, exact, files)
  return backups
}

function writeRecord(client: SetupClient, record: SetupRecord, files: ClientFiles): void {
  const path = recordPath(client.record)
  const directories = [...record.directories, ...makeDirectories(path, files, 0o700)]
  const change: FileChange = { path, before: files.bytes(path), after: Buffer.from(recordText({ ...record, directories })) }
  // It may hold what a configuration holds, passwords too.
  if (isChange(change)) writeChange(change, files, 0o600)
}

function dropRecord(client: SetupClient, record: SetupRecord | undefined, files: ClientFiles): void {
  if (record === undefined) return
  const path = recordPath(client.record)
  writeChange({ path, before: files.bytes(path), after: undefined }, files)
  removeDirectories(record.directories, files)
}

/** After a file was given back: our copy of it goes. */
function tidy(file: RecordedFile, exact: boolean, files: ClientFiles): void {
  if (!exact || file.backup === undefined) return
  const copy = files.bytes(file.backup)
  const now = files.bytes(file.path)
  if (copy !== undefined && now !== undefined && copy.equals(now)) unlinkSync(files.actual(file.backup))
}

/** What an undo would change. */
export function planUndo(client: SetupClient, asked: SetupRequest, files: ClientFiles): PlannedSetup {
  const record = readRecord(client.record, files)
  const notes: string[] = []
  if (record === undefined) {
    const edits = client.marked(asked, files)
    const changes = edits.map((edit): FileChange => {
      const before = files.bytes(edit.path)!
      const rest = edit.remove(decode(before, edit.path))
      return { path: edit.path, before, after: rest === '' ? undefined : Buffer.from(rest) }
    }).filter(isChange)
    if (changes.length > 0) notes.push('There is no record of the setup: what bears its marks is taken out, the rest stays.')
    return { changes, notes, perform: () => (changes.forEach((change) => writeChange(change, files)), []) }
  }
  const remover = removers(client, asked, record, files)
  const removals = record.files.map((file) => planRemoval(file, files, remover))
  for (const { exact, file } of removals) {
    if (!exact) notes.push(`${file.path} was changed since the setup: only Skimmer's entries are taken out${file.backup === undefined ? '' : `; as it was before the setup it is in ${file.backup}`}.`)
  }
  const changes = removals.map(({ change }) => change).filter(isChange)
  return {
    changes,
    notes,
    perform() {
      for (const change of changes) writeChange(change, files)
      for (const { file, exact } of removals) tidy(file, exact, files)
      dropRecord(client, record, files)
      return []
    },
  }
}
