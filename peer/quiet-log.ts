// The log of libp2p, which nobody reads unless DEBUG asks for it.
import type { ComponentLogger, Logger } from '@libp2p/interface'

const nothing = (): void => {}
const quiet: Logger = Object.assign(nothing.bind(undefined), { error: nothing, trace: nothing, enabled: false, newScope: () => quiet })

/**
 * libp2p makes three loggers for each stream, each of which asks the terminal for its colours: hundreds of system calls for a pull. Undefined, which is libp2p's
 * own, where the environment variable DEBUG is set.
 */
export const quietLog = (): ComponentLogger | undefined => process.env.DEBUG ? undefined : { forComponent: () => quiet }
