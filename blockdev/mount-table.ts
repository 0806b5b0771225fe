// Reads /proc/self/mountinfo: what is mounted where. Reading it never touches the mounted file systems.
import fs from 'node:fs'

export interface MountEntry {
  readonly id: number
  readonly parent: number
  /** `major:minor` */
  readonly device: string
  readonly root: string
  readonly mountPoint: string
  readonly options: string
  readonly type: string
  readonly source: string
  readonly superOptions: string
}

/** The kernel writes space, tab, newline and backslash as octal escapes. */
const unescape = (text: string): string => text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))

/** Parse mountinfo text, in mount order. Lines that do not look like the format of proc(5) are left out. */
export function parseMountinfo(text: string): MountEntry[] {
  const entries: MountEntry[] = []
  for (const line of text.split('\n')) {
    const [front, back] = line.split(' - ', 2)
    if (back === undefined) continue
    const fields = front.split(' ')
    const [type, source, superOptions] = back.split(' ')
    if (fields.length < 6 || source === undefined) continue
    entries.push({
      id: Number(fields[0]), parent: Number(fields[1]), device: fields[2], root: unescape(fields[3]), mountPoint: unescape(fields[4]),
      options: fields[5], type, source: unescape(source), superOptions: superOptions ?? '',
    })
  }
  return entries
}

export const mountTable = (): MountEntry[] => parseMountinfo(fs.readFileSync('/proc/self/mountinfo', 'utf8'))

/** Mounts at `directory` or below it, in mount order (take them down from the end). */
export function mountsUnder(directory: string): MountEntry[] {
  const prefix = directory.endsWith('/') ? directory : `${directory}/`
  return mountTable().filter((entry) => entry.mountPoint === directory || entry.mountPoint.startsWith(prefix))
}
