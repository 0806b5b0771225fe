// Where the supernode fetches files from for others: not from its own host, nor from services that answer only neighbours on the link.
import { BlockList, isIP } from 'node:net'

/** Never a source: unspecified, multicast, reserved. */
const nowhere = new BlockList()
/** This host, and its neighbourhood: what listens there believes that whoever can reach it is a friend. */
const near = new BlockList()

for (const [network, prefix] of [['0.0.0.0', 8], ['224.0.0.0', 4], ['240.0.0.0', 4]] as const) nowhere.addSubnet(network, prefix, 'ipv4')
for (const [network, prefix] of [['::', 128], ['ff00::', 8]] as const) nowhere.addSubnet(network, prefix, 'ipv6')
for (const [network, prefix] of [['127.0.0.0', 8], ['169.254.0.0', 16]] as const) near.addSubnet(network, prefix, 'ipv4')
for (const [network, prefix] of [['::1', 128], ['fe80::', 10]] as const) near.addSubnet(network, prefix, 'ipv6')
// Cloud metadata services outside of the link-local ranges: Alibaba, Oracle, AWS by IPv6.
for (const address of ['100.100.100.200', '192.0.0.192']) near.addAddress(address, 'ipv4')
near.addAddress('fd00:ec2::254', 'ipv6')

/** Answers whether files may be fetched from an address; IPv4 addresses come as such, whatever dress they wore. */
export function sourceAddresses(options: { loopback: boolean }): (address: string) => boolean {
  return address => {
    const kind = isIP(address.replace(/%.*$/, ''))
    if (kind === 0) return false
    const family = kind === 6 ? 'ipv6' : 'ipv4'
    const plain = address.replace(/%.*$/, '')
    return !nowhere.check(plain, family) && (options.loopback || !near.check(plain, family))
  }
}
