// The option by which commands find the node on this machine.
import { Option } from 'commander'

export const socketOption = (): Option => new Option('--socket <PATH>', "the node's API socket").default('/run/skimmer/api.sock').env('SKIMMER_SOCKET')
