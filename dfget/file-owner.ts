// Whose file beside FILE it is: a process, told from every other one on any host, now and later.
import { hash } from 'node:crypto'
import { readFileSync, readlinkSync } from 'node:fs'
import { hostname } from 'node:os'

const HOST = hash('sha256', `${hostname()} ${pidNamespace()}`, 'hex').slice(0, 8)
/** Who writes: this process on this host, told from a later one with the same number. A name with a process that is gone is garbage. */
export const OWNER = `${HOST}-${process.pid}-${startOf(process.pid) ?? 0}`

export interface Owner {
  readonly here: boolean
  readonly pid: number
  readonly start: string
}

export function ownerOf(text: string): Owner | undefined {
  const [, host, pid, start] = /^([0-9a-f]{8})-(\d{1,10})-(\d{1,20})$/.exec(text) ?? []
  return start === undefined ? undefined : { here: host === HOST, pid: Number(pid), start }
}

export const alive = ({ pid, start }: Owner): boolean => startOf(pid) === start

/** In clock ticks since the machine started; undefined: no such process. */
function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
  } catch {
    return undefined
  }
}

function pidNamespace(): string {
  try {
    return readlinkSync('/proc/self/ns/pid')
  } catch {
    return ''
  }
}
