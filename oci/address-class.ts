// Addresses that are about one machine or one link: whoever names them from elsewhere means something that is none of their business.
import { lookup } from 'node:dns/promises'
import { BlockList, isIP } from 'node:net'
import { plainAddress } from './address-guard.ts'

export type AddressClass = 'unspecified' | 'loopback' | 'link-local' | 'metadata'

const NETWORKS: readonly (readonly [AddressClass, readonly string[]])[] = [
  // Where clouds tell a machine its secrets; first, because one of them is link-local too.
  ['metadata', ['169.254.169.254/32', '169.254.170.0/24', '100.100.100.200/32', '168.63.129.16/32', '192.0.0.192/32', 'fd00:ec2::/64', 'fd20:ce::254/128']],
  ['unspecified', ['0.0.0.0/8', '::/128']],
  ['loopback', ['127.0.0.0/8', '::1/128']],
  ['link-local', ['169.254.0.0/16', 'fe80::/10']],
]

const LISTS = NETWORKS.map(([name, networks]) => {
  const list = new BlockList()
  for (const network of networks) {
    const [address, bits] = network.split('/')
    list.addSubnet(address, Number(bits), address.includes(':') ? 'ipv6' : 'ipv4')
  }
  return [name, list] as const
})

/** Undefined: an address like others, private networks included. */
export function addressClass(address: string): AddressClass | undefined {
  const plain = plainAddress(address).replace(/%.*$/, '')
  const family = isIP(plain) === 6 ? 'ipv6' : 'ipv4'
  return LISTS.find(([, list]) => list.check(plain, family))?.[0]
}

/** The class of a URL's host, when all its addresses are of that one. */
export async function hostClass(url: URL): Promise<AddressClass | undefined> {
  const host = url.hostname.replace(/^\[|\]$/g, '')
  if (isIP(host) !== 0) return addressClass(host)
  const found = await lookup(host, { all: true }).catch(() => [])
  const classes = new Set(found.map(({ address }) => addressClass(address)))
  return classes.size === 1 ? [...classes][0] : undefined
}
