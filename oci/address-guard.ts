// Which addresses may be connected to: checked after DNS, so that no name, number or redirect leads to a place that is not meant.
import { lookup } from 'node:dns'
import type { LookupAddress } from 'node:dns'
import { isIP } from 'node:net'
import type { LookupFunction } from 'node:net'
import { SkimmerError } from './errors.ts'

export type AllowAddress = (address: string) => boolean

/** Eight groups of an IPv6 address (without zone), or undefined. */
function groupsOf(address: string): number[] | undefined {
  if (isIP(address) !== 6) return undefined
  // WHATWG URLs write IPv6 in one canonical way, without dotted tails.
  const canonical = URL.parse(`http://[${address.replace(/%.*$/, '')}]/`)?.hostname.slice(1, -1)
  if (canonical === undefined) return undefined
  const [head, tail] = canonical.split('::')
  const parse = (text: string | undefined): number[] => (text ? text.split(':').map((group) => Number.parseInt(group, 16)) : [])
  const before = parse(head)
  const after = parse(tail)
  return [...before, ...Array.from({ length: 8 - before.length - after.length }, () => 0), ...after]
}

/**
 * The IPv4 address that an IPv6 one stands for: mapped (::ffff:0:0/96), compatible (::/96), translated (64:ff9b::/96, RFC 6052)
 * and 6to4 (2002::/16) forms. Everything else is returned as it is.
 */
export function plainAddress(address: string): string {
  const groups = groupsOf(address)
  if (groups === undefined) return address
  const dotted = (high: number, low: number): string => `${high >> 8}.${high & 255}.${low >> 8}.${low & 255}`
  const starts = (...prefix: number[]): boolean => prefix.every((group, index) => groups[index] === group)
  if (starts(0, 0, 0, 0, 0, 0xffff) || starts(0x64, 0xff9b, 0, 0, 0, 0)) return dotted(groups[6], groups[7])
  if (starts(0, 0, 0, 0, 0, 0) && (groups[6] !== 0 || groups[7] > 1)) return dotted(groups[6], groups[7])
  if (starts(0x2002)) return dotted(groups[1], groups[2])
  return address
}

const refusal = (host: string, address: string): SkimmerError =>
  new SkimmerError('FORBIDDEN', `${host} ${host === address ? 'is' : `is at ${address},`} an address that must not be connected to from here`, { details: { host, address } })

/** A URL whose host is a number needs no DNS, so the connection never asks a lookup. Throws FORBIDDEN. */
export function assertAllowed(url: URL, allow: AllowAddress, what: string): void {
  const host = url.hostname.replace(/^\[|\]$/g, '')
  if (isIP(host) === 0) return
  const address = plainAddress(host)
  if (!allow(address)) throw new SkimmerError('FORBIDDEN', `${what}: ${refusal(host, address).message}`, { details: { host, address } })
}

/** A lookup for net.connect that gives away only addresses that are allowed; FORBIDDEN when none is left. */
export function guardedLookup(allow: AllowAddress): LookupFunction {
  return (hostname, options, callback) => {
    lookup(hostname, { ...options, all: true }, (error, found) => {
      if (error !== null) return callback(error, [])
      const addresses = (found as LookupAddress[]).filter(({ address }) => allow(plainAddress(address)))
      if (addresses.length === 0) return callback(refusal(hostname, found[0]?.address ?? 'no address') as NodeJS.ErrnoException, [])
      if (options.all === true) callback(null, addresses)
      else callback(null, addresses[0].address, addresses[0].family)
    })
  }
}
