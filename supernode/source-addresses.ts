// Where the supernode fetches files from for others: not from its own host, nor from services that answer only neighbours on the link.
import { BlockList, isIP } from 'node:net'
import { addressClass } from '../oci/address-class.ts'

/** Never a source, besides the unspecified ones: multicast, reserved. */
const nowhere = new BlockList()
for (const [network, prefix] of [['224.0.0.0', 4], ['240.0.0.0', 4]] as const) nowhere.addSubnet(network, prefix, 'ipv4')
nowhere.addSubnet('ff00::', 8, 'ipv6')

/**
 * Answers whether files may be fetched from an address; IPv4 addresses come as such, whatever dress they wore. This host and its neighbourhood (loopback,
 * link-local, cloud metadata) are none unless `loopback` says so: what listens there believes that whoever can reach it is a friend.
 */
export function sourceAddresses(options: { loopback: boolean }): (address: string) => boolean {
  return address => {
    const plain = address.replace(/%.*$/, '')
    const kind = isIP(plain)
    if (kind === 0 || nowhere.check(plain, kind === 6 ? 'ipv6' : 'ipv4')) return false
    const where = addressClass(plain)
    return where === undefined || (options.loopback && where !== 'unspecified')
  }
}
