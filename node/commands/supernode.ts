// `skimmer supernode`: the datacenter's cache, indexer and scheduler.
import type { Command } from 'commander'
import { addSettings, loadSettings, SETTINGS_HELP } from '../../command-line/settings.ts'
import { SUPERNODE_SETTINGS, supernodeConfig } from '../config/supernode-settings.ts'
import { interruptible } from '../../command-line/interrupt.ts'

export function addSupernode(program: Command): void {
  const command = program
    .command('supernode')
    .summary("run a datacenter's supernode")
    .description(
      'Runs a supernode: it downloads each layer once from its registry, indexes it while it streams in, keeps it, and tells nodes which peers to ask. ' +
      'One per datacenter is enough; nodes keep running without it. It needs no root. Its console is at the HTTP address.',
    )
    .addHelpText('after', `
${SETTINGS_HELP}

GET /api/v1/identity at the HTTP address answers the address that nodes are given (--supernodes), with the peer id they trust it by.
SIGTERM stops it; everything it holds is there again at the next start.`)
  addSettings(command, SUPERNODE_SETTINGS).action(async (flags: Record<string, unknown>) => {
    const config = loadSettings(SUPERNODE_SETTINGS, flags)
    const [{ Supernode }, { createLogger }] = await Promise.all([import('../../supernode/supernode.ts'), import('../../command-line/log.ts')])
    const logger = createLogger(config['log.level'], 'supernode')
    await interruptible(async (signal) => {
      const supernode = await Supernode.start(supernodeConfig(config), { logger })
      if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
      logger.info('stopping')
      await supernode.stop()
    })
  })
}
